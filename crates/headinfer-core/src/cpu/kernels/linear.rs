//! y = x · wᵀ (+ bias), weights read where they lie.
//!
//! Up to 16 rows: each weight is read once and meets all rows; a row's bits do not depend on how many rows there
//! are. More rows: panels of weights are converted to f32 and multiplied by the `gemm` crate, one panel a task.

use rayon::prelude::*;

use super::Isa;
use super::simd::{Kernel, Simd, dispatch};
use crate::dtype::DType;
use crate::model::weights::TensorView;

/// Rows up to which the weights' bytes are the cost.
const FEW_ROWS: usize = 16;
/// Rows that share each loaded vector.
const ROWS: usize = 4;
/// Outputs of one task with few rows.
const OUTPUTS: usize = 16;
/// Outputs and depth of a converted panel: 512 KiB of f32, a core's own cache.
const PANEL: usize = 256;
const DEPTH: usize = 512;

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

    fn words(&self) -> &[u16] {
        bytemuck::cast_slice(self.bytes)
    }

    fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(self.bytes)
    }

    /// Elements `[from, from + to.len())` as f32.
    fn convert(&self, from: usize, to: &mut [f32]) {
        let end = from + to.len();
        match self.dtype {
            DType::Bf16 => {
                let words = &self.words()[from..end];
                to.iter_mut().zip(words).for_each(|(to, w)| *to = f32::from_bits(u32::from(*w) << 16));
            }
            DType::F16 => {
                let words = &self.words()[from..end];
                to.iter_mut().zip(words).for_each(|(to, w)| *to = half::f16::from_bits(*w).to_f32());
            }
            DType::F32 => to.copy_from_slice(&self.floats()[from..end]),
        }
    }
}

/// `out[row, o] = x[row] · w[o] + bias[o]` (`+=` when `accumulate`), for `rows` rows of `w.cols` elements. Rows of
/// `out` are `stride` apart.
#[allow(clippy::too_many_arguments)] // a matrix product and its epilogue
pub fn linear(
    isa: Isa,
    x: &[f32],
    rows: usize,
    w: WeightMatrix<'_>,
    bias: Option<WeightMatrix<'_>>,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    assert!(x.len() >= rows * w.cols && out.len() >= (rows - 1) * stride + w.rows, "shapes disagree");
    if !accumulate || bias.is_some() {
        out.par_chunks_mut(stride).take(rows).for_each(|out| {
            for (o, out) in out[..w.rows].iter_mut().enumerate() {
                let start = if accumulate { *out } else { 0.0 };
                *out = start + bias.map_or(0.0, |b| b.value(o));
            }
        });
    }
    if rows <= FEW_ROWS {
        few_rows(isa, &x[..rows * w.cols], rows, w, out, stride);
    } else {
        many_rows(x, rows, w, out, stride);
    }
}

fn few_rows(isa: Isa, x: &[f32], rows: usize, w: WeightMatrix<'_>, out: &mut [f32], stride: usize) {
    let x = arranged(isa, x, rows, w.cols, w.dtype);
    let mut dots = vec![0.0f32; w.rows * rows];
    dots.par_chunks_mut(OUTPUTS * rows).enumerate().for_each(|(task, dots)| {
        dispatch(isa, Dots { x: &x, rows, w, first: task * OUTPUTS, dots });
    });
    for (row, out) in out.chunks_mut(stride).take(rows).enumerate() {
        out[..w.rows].iter_mut().enumerate().for_each(|(o, out)| *out += dots[o * rows + row]);
    }
}

/// Rows in the order in which the weights' vectors arrive: of each 2 · LANES elements the even then the odd ones
/// for bf16, as they are for the others; padded with zeros to whole vectors.
fn arranged(isa: Isa, x: &[f32], rows: usize, cols: usize, dtype: DType) -> Vec<f32> {
    let width = dispatch(isa, PairWidth);
    let padded = cols.next_multiple_of(width);
    let mut out = vec![0.0; rows * padded];
    for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(padded)) {
        if dtype != DType::Bf16 {
            out[..cols].copy_from_slice(x);
            continue;
        }
        for (x, out) in x.chunks(width).zip(out.chunks_exact_mut(width)) {
            for (i, x) in x.iter().enumerate() {
                out[i / 2 + i % 2 * (width / 2)] = *x;
            }
        }
    }
    out
}

struct PairWidth;

impl Kernel for PairWidth {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self) -> usize {
        2 * S::LANES
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
}

impl Kernel for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let padded = self.x.len() / self.rows;
        let cols = self.w.cols;
        for (o, to) in self.dots.chunks_mut(self.rows).enumerate() {
            let from = (self.first + o) * cols;
            for (first, to) in to.chunks_mut(ROWS).enumerate() {
                let x = |r: usize| &self.x[(first * ROWS + r.min(to.len() - 1)) * padded..][..padded];
                let x: [&[f32]; ROWS] = std::array::from_fn(x);
                let dots = match self.w.dtype {
                    DType::F32 => dots_f32::<S>(&x, &self.w.floats()[from..from + cols]),
                    DType::Bf16 => dots_words::<S, true>(&x, &self.w.words()[from..from + cols]),
                    DType::F16 => dots_words::<S, false>(&x, &self.w.words()[from..from + cols]),
                };
                to.copy_from_slice(&dots[..to.len()]);
            }
        }
    }
}

#[inline(always)]
fn dots_words<S: Simd, const BF16: bool>(x: &[&[f32]; ROWS], w: &[u16]) -> [f32; ROWS] {
    let mut low = [S::splat(0.0); ROWS];
    let mut high = [S::splat(0.0); ROWS];
    for at in (0..w.len()).step_by(2 * S::LANES) {
        let rest = &w[at..];
        let mut whole = [0u16; 32];
        let from = if rest.len() >= 2 * S::LANES {
            rest
        } else {
            whole[..rest.len()].copy_from_slice(rest);
            &whole
        };
        let (a, b) = if BF16 { S::load_bf16(from) } else { S::load_f16(from) };
        for r in 0..ROWS {
            low[r] = S::fma(S::load(&x[r][at..]), a, low[r]);
            high[r] = S::fma(S::load(&x[r][at + S::LANES..]), b, high[r]);
        }
    }
    std::array::from_fn(|r| S::reduce_add(S::add(low[r], high[r])))
}

#[inline(always)]
fn dots_f32<S: Simd>(x: &[&[f32]; ROWS], w: &[f32]) -> [f32; ROWS] {
    let mut sums = [S::splat(0.0); ROWS];
    for at in (0..w.len()).step_by(S::LANES) {
        let rest = &w[at..];
        let mut whole = [0.0f32; 16];
        let from = if rest.len() >= S::LANES {
            rest
        } else {
            whole[..rest.len()].copy_from_slice(rest);
            &whole
        };
        let v = S::load(from);
        for r in 0..ROWS {
            sums[r] = S::fma(S::load(&x[r][at..]), v, sums[r]);
        }
    }
    std::array::from_fn(|r| S::reduce_add(sums[r]))
}

/// Where tasks write columns of their own.
struct Columns(*mut f32);

#[allow(unsafe_code)] // the interface of `gemm` is pointers
// SAFETY: each task of `many_rows` writes its own columns.
unsafe impl Sync for Columns {}

impl Columns {
    fn at(&self, column: usize) -> *mut f32 {
        self.0.wrapping_add(column)
    }
}

fn many_rows(x: &[f32], rows: usize, w: WeightMatrix<'_>, out: &mut [f32], stride: usize) {
    let cols = w.cols;
    assert!((rows - 1) * stride + w.rows <= out.len() && x.len() >= rows * cols && w.rows <= stride);
    let to = Columns(out.as_mut_ptr());
    (0..w.rows.div_ceil(PANEL)).into_par_iter().for_each_init(
        || vec![0.0f32; PANEL * DEPTH],
        |panel, task| {
            let first = task * PANEL;
            let outputs = PANEL.min(w.rows - first);
            for from in (0..cols).step_by(DEPTH) {
                let depth = DEPTH.min(cols - from);
                for (o, panel) in panel.chunks_mut(DEPTH).take(outputs).enumerate() {
                    w.convert((first + o) * cols + from, &mut panel[..depth]);
                }
                let (x, x_stride) = (x[from..].as_ptr(), cols as isize);
                let (n, out_stride) = (outputs, stride as isize);
                // SAFETY: reads stay in `x` and `panel`, writes in columns [first, first + outputs) of `out`:
                // inside it by the assertion above, and this task's own.
                #[allow(unsafe_code, reason = "as `Columns`")]
                unsafe {
                    gemm::gemm(
                        rows,
                        n,
                        depth,
                        to.at(first),
                        1,
                        out_stride,
                        true, // out
                        x,
                        1,
                        x_stride, // left
                        panel.as_ptr(),
                        DEPTH as isize,
                        1, // right, columns DEPTH apart
                        1.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            }
        },
    );
}
