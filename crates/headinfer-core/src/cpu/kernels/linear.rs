//! y = x · wᵀ (+ bias), weights read where they lie.
//!
//! Up to 16 rows: each weight is read once and meets all rows; a row's bits do not depend on how many rows there
//! are. A single row meets the weights of several outputs at once, so that as many streams from memory are under way.
//! More rows: `linear_panels`.

use super::Isa;
use super::attention::front;
use super::linear_panels::many_rows;
use super::share::{portion, share};
use super::simd::{Kernel, Simd, dispatch};
use crate::dtype::DType;
use crate::model::weights::TensorView;

/// Rows up to which the weights' bytes are the cost.
const FEW_ROWS: usize = 16;
/// Rows that share each loaded vector.
const ROWS: usize = 4;
/// Outputs that one row meets at once: as many rows of weights as are read side by side.
const OUTPUTS: usize = 4;
/// Outputs of one task with few rows, at most.
const TASK_OUTPUTS: usize = 64;
/// Lanes of the widest vector.
const LANES_MAX: usize = 16;

/// A row-major weight `[rows, cols]` (a vector: `[rows, 1]`), aligned to its element.
pub type WeightMatrix<'a> = TensorView<'a>;

impl TensorView<'_> {
    /// Element `i` in row-major order, as f32.
    ///
    /// # Panics
    /// When there is no such element.
    pub fn value(&self, i: usize) -> f32 {
        match self.dtype {
            DType::Bf16 => f32::from_bits(u32::from(self.words()[i]) << 16),
            DType::F16 => half::f16::from_bits(self.words()[i]).to_f32(),
            DType::F32 => self.floats()[i],
        }
    }

    pub(super) fn words(&self) -> &[u16] {
        bytemuck::cast_slice(self.bytes)
    }

    pub(super) fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(self.bytes)
    }
}

/// A weight, its bias, and where row 0 of its outputs starts in what products of one call write.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[outputs, depth]`.
    pub weight: WeightMatrix<'a>,
    /// `[outputs, 1]`.
    pub bias: Option<WeightMatrix<'a>>,
    /// Element of `out`.
    pub at: usize,
}

/// `out[at + row * stride + o] = x[row] · w[o] + bias[o]` (`+=` when `accumulate`), for `rows` rows of as many elements
/// as each weight has columns.
///
/// # Panics
/// When shapes disagree, or there is no product.
pub fn linear(
    isa: Isa,
    x: &[f32],
    rows: usize,
    products: &[Product<'_>],
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let cols = products[0].weight.cols;
    for Product { weight, at, .. } in products {
        let fits = out.len() >= at + (rows - 1) * stride + weight.rows;
        assert!(weight.cols == cols && x.len() >= rows * cols && fits, "shapes disagree");
    }
    if rows <= FEW_ROWS {
        few_rows(isa, &x[..rows * cols], rows, products, out, stride, accumulate);
        return;
    }
    many_rows(isa, x, rows, products, out, stride, accumulate);
}

/// What products are added to: outputs from `first` on.
pub(super) fn begin(out: &mut [f32], first: usize, bias: Option<WeightMatrix<'_>>, accumulate: bool) {
    if accumulate && bias.is_none() {
        return;
    }
    for (o, out) in out.iter_mut().enumerate() {
        let start = if accumulate { *out } else { 0.0 };
        *out = start + bias.map_or(0.0, |b| b.value(first + o));
    }
}

/// All products together: those of a step are too small to wait for each other.
fn few_rows(
    isa: Isa,
    x: &[f32],
    rows: usize,
    products: &[Product<'_>],
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let pairs = |product: &Product<'_>| product.weight.dtype == DType::Bf16;
    let form = |paired| {
        let needed = products.iter().any(|product| pairs(product) == paired);
        if needed { dispatch(isa, Arrange { x, rows, paired }) } else { Vec::new() }
    };
    let (paired, plain) = (form(true), form(false));
    let mut left: usize = products.iter().map(|product| product.weight.rows).sum();
    let mut dots = vec![0.0f32; left * rows];
    let (mut tasks, mut rest) = (Vec::new(), &mut *dots);
    for product in products {
        let x = if pairs(product) { &paired } else { &plain };
        let mut first = 0;
        while first < product.weight.rows {
            let outputs = (portion(left) / OUTPUTS * OUTPUTS).clamp(OUTPUTS, TASK_OUTPUTS);
            let outputs = outputs.min(product.weight.rows - first);
            let dots = front(&mut rest, outputs * rows);
            tasks.push(Dots { x, rows, w: product.weight, first, dots, next: &[] });
            first += outputs;
            left -= outputs;
        }
    }
    share(tasks, |task, next| {
        dispatch(isa, Dots { next: next.map_or(&[], Dots::bytes), ..task });
    });
    let mut rest = &*dots;
    for Product { weight, bias, at } in products {
        let (dots, after) = rest.split_at(weight.rows * rows);
        rest = after;
        for (row, out) in out[*at..].chunks_mut(stride).take(rows).enumerate() {
            let out = &mut out[..weight.rows];
            begin(out, 0, *bias, accumulate);
            out.iter_mut().zip(dots.iter().skip(row).step_by(rows)).for_each(|(out, dot)| *out += dot);
        }
    }
}

/// Rows in the order in which the weights' vectors arrive: of each 2 · LANES elements the even then the odd ones
/// where they arrive in pairs, else as they are; padded with zeros to whole vectors.
struct Arrange<'a> {
    x: &'a [f32],
    rows: usize,
    paired: bool,
}

impl Kernel for Arrange<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self) -> Vec<f32> {
        let cols = self.x.len() / self.rows;
        let padded = cols.next_multiple_of(2 * S::LANES);
        let mut out = vec![0.0; self.rows * padded];
        for (x, out) in self.x.chunks_exact(cols).zip(out.chunks_exact_mut(padded)) {
            if !self.paired {
                out[..cols].copy_from_slice(x);
                continue;
            }
            for (x, out) in x.chunks(2 * S::LANES).zip(out.chunks_exact_mut(2 * S::LANES)) {
                let (even, odd) = out.split_at_mut(S::LANES);
                even.iter_mut().zip(x.iter().step_by(2)).for_each(|(to, x)| *to = *x);
                odd.iter_mut().zip(x.iter().skip(1).step_by(2)).for_each(|(to, x)| *to = *x);
            }
        }
        out
    }
}

/// Some outputs for all rows.
struct Dots<'a> {
    x: &'a [f32],
    rows: usize,
    w: WeightMatrix<'a>,
    first: usize,
    /// `[outputs, rows]`.
    dots: &'a mut [f32],
    /// Weights of what the thread does next, if known.
    next: &'a [u8],
}

impl<'a> Dots<'a> {
    /// Weights from the first output on.
    fn bytes(&self) -> &'a [u8] {
        &self.w.bytes[self.first * self.w.cols * self.w.dtype.bytes()..]
    }
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.rows {
            1 => self.all::<S, 1, OUTPUTS>(),
            2 => self.all::<S, 2, 2>(),
            _ => self.all::<S, ROWS, 1>(),
        }
    }
}

impl Dots<'_> {
    /// `O` outputs for `R` rows at once.
    #[inline(always)]
    fn all<S: Simd, const R: usize, const O: usize>(self) {
        let padded = self.x.len() / self.rows;
        let (cols, bytes) = (self.w.cols, self.bytes());
        let size = cols * self.w.dtype.bytes();
        let outputs = self.dots.len() / self.rows;
        for (together, dots) in self.dots.chunks_mut(O * self.rows).enumerate() {
            let (from, count) = (together * O, dots.len() / self.rows);
            // Past the end the last output is computed again.
            let mut w: [&[u8]; O] = [&[]; O];
            for (o, w) in w.iter_mut().enumerate() {
                *w = &bytes[(from + o.min(count - 1)) * size..][..size];
            }
            let ahead = match from + O < outputs {
                true => bytes[(from + O) * size..].as_ptr(),
                false => self.next.as_ptr(),
            };
            for first in (0..self.rows).step_by(R) {
                let mut x: [&[f32]; R] = [&[]; R];
                for (r, x) in x.iter_mut().enumerate() {
                    *x = &self.x[(first + r).min(self.rows - 1) * padded..][..padded];
                }
                let sums = match self.w.dtype {
                    DType::F32 => dots_f32::<S, R, O>(&x, &w, ahead),
                    DType::Bf16 => dots_words::<S, true, R, O>(&x, &w, ahead),
                    DType::F16 => dots_words::<S, false, R, O>(&x, &w, ahead),
                };
                for (dots, sums) in dots.chunks_exact_mut(self.rows).zip(&sums) {
                    let count = R.min(self.rows - first);
                    dots[first..][..count].copy_from_slice(&sums[..count]);
                }
            }
        }
    }
}

/// Sums of products of some outputs and rows, lane by lane: of the first and of the second vector of each pair.
struct Sums<S: Simd, const R: usize, const O: usize> {
    low: [[S::V; R]; O],
    high: [[S::V; R]; O],
}

impl<S: Simd, const R: usize, const O: usize> Sums<S, R, O> {
    #[inline(always)]
    fn none() -> Self {
        Self { low: [[S::splat(0.0); R]; O], high: [[S::splat(0.0); R]; O] }
    }

    /// Adds the products of 2 · LANES weights of one output and elements of all rows from `at` on.
    #[inline(always)]
    fn add(&mut self, o: usize, x: &[&[f32]; R], at: usize, (low, high): (S::V, S::V)) {
        for r in 0..R {
            let x = &x[r][at..][..2 * S::LANES];
            self.low[o][r] = S::fma(S::load(x), low, self.low[o][r]);
            self.high[o][r] = S::fma(S::load(&x[S::LANES..]), high, self.high[o][r]);
        }
    }

    #[inline(always)]
    fn total(&self) -> [[f32; R]; O] {
        let mut sums = [[0.0; R]; O];
        for (o, sums) in sums.iter_mut().enumerate() {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = S::reduce_add(S::add(self.low[o][r], self.high[o][r]));
            }
        }
        sums
    }
}

/// x · w of 16-bit weights; asks for the lines of each output's successor meanwhile.
#[inline(always)]
fn dots_words<S: Simd, const BF16: bool, const R: usize, const O: usize>(
    x: &[&[f32]; R],
    w: &[&[u8]; O],
    ahead: *const u8,
) -> [[f32; R]; O] {
    let mut words: [&[u16]; O] = [&[]; O];
    for (words, w) in words.iter_mut().zip(w) {
        *words = bytemuck::cast_slice(w);
    }
    let (cols, size) = (words[0].len(), w[0].len());
    let whole = cols / (2 * S::LANES) * 2 * S::LANES;
    let mut sums = Sums::<S, R, O>::none();
    for at in (0..whole).step_by(2 * S::LANES) {
        for (o, words) in words.iter().enumerate() {
            S::prefetch(ahead.wrapping_add(o * size + 2 * at).cast());
            let from = &words[at..][..2 * S::LANES];
            let pair = if BF16 { S::load_bf16(from) } else { S::load_f16(from) };
            sums.add(o, x, at, pair);
        }
    }
    if whole < cols {
        for (o, words) in words.iter().enumerate() {
            let mut rest = [0u16; 2 * LANES_MAX];
            rest[..cols - whole].copy_from_slice(&words[whole..]);
            let pair = if BF16 { S::load_bf16(&rest) } else { S::load_f16(&rest) };
            sums.add(o, x, whole, pair);
        }
    }
    sums.total()
}

/// As `dots_words`, of f32 weights, a vector at a time.
#[inline(always)]
fn dots_f32<S: Simd, const R: usize, const O: usize>(
    x: &[&[f32]; R],
    w: &[&[u8]; O],
    ahead: *const u8,
) -> [[f32; R]; O] {
    let mut floats: [&[f32]; O] = [&[]; O];
    for (floats, w) in floats.iter_mut().zip(w) {
        *floats = bytemuck::cast_slice(w);
    }
    let (cols, size) = (floats[0].len(), w[0].len());
    let whole = cols / S::LANES * S::LANES;
    let mut totals = [[S::splat(0.0); R]; O];
    for at in (0..cols).step_by(S::LANES) {
        for o in 0..O {
            S::prefetch(ahead.wrapping_add(o * size + 4 * at).cast());
            let mut rest = [0.0; LANES_MAX];
            let from = if at < whole {
                &floats[o][at..][..S::LANES]
            } else {
                rest[..cols - at].copy_from_slice(&floats[o][at..]);
                &rest
            };
            for r in 0..R {
                totals[o][r] = S::fma(S::load(&x[r][at..]), S::load(from), totals[o][r]);
            }
        }
    }
    let mut sums = [[0.0; R]; O];
    for o in 0..O {
        for r in 0..R {
            sums[o][r] = S::reduce_add(totals[o][r]);
        }
    }
    sums
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const COLS: usize = 77;

    /// Bytes of `rows` rows of weights between -1 and 1.
    pub(in super::super) fn weights(dtype: DType, rows: usize) -> Vec<u8> {
        let value = |i: usize| ((i * 7919 + 13) % 255) as f32 / 127.0 - 1.0;
        let values = (0..rows * COLS).map(value);
        match dtype {
            DType::Bf16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        }
    }

    #[test]
    fn products_have_the_same_bits_in_any_company_and_agree_with_f64() {
        let x: Vec<f32> = (0..5 * COLS).map(|i| ((i * 31 + 7) % 101) as f32 / 50.0 - 1.0).collect();
        for dtype in [DType::Bf16, DType::F16, DType::F32] {
            let bytes = [weights(dtype, 9), weights(dtype, 70)];
            let matrix = |i: usize| WeightMatrix { dtype, rows: [9, 70][i], cols: COLS, bytes: &bytes[i] };
            let product = |i: usize, at| Product { weight: matrix(i), bias: None, at };
            for isa in Isa::available() {
                let mut together = vec![f32::NAN; 5 * 79];
                linear(isa, &x, 5, &[product(0, 0), product(1, 9)], &mut together, 79, false);
                for (row, x) in x.chunks(COLS).enumerate() {
                    let mut alone = vec![f32::NAN; 79];
                    linear(isa, x, 1, &[product(0, 0)], &mut alone, 9, false);
                    linear(isa, x, 1, &[product(1, 0)], &mut alone[9..], 70, false);
                    assert_eq!(alone, together[row * 79..][..79], "{dtype:?} {isa:?} row {row}");
                    for (o, got) in alone.iter().enumerate() {
                        let (w, o) = if o < 9 { (matrix(0), o) } else { (matrix(1), o - 9) };
                        let exact: f64 = x
                            .iter()
                            .enumerate()
                            .map(|(i, x)| f64::from(*x) * f64::from(w.value(o * COLS + i)))
                            .sum();
                        assert!((f64::from(*got) - exact).abs() < 1e-5, "{dtype:?} {isa:?} {got} {exact}");
                    }
                }
                let mut pair = vec![f32::NAN; 2 * 9];
                linear(isa, &x[..2 * COLS], 2, &[product(0, 0)], &mut pair, 9, false);
                assert_eq!(pair[..9], together[..9], "{dtype:?} {isa:?} two rows");
            }
        }
    }
}
