//! y = x · wᵀ (+ bias) for many rows: panels of weights are converted to f32 and multiplied by the `gemm` crate, a panel and
//! some rows a task. A row's bits depend neither on the tasks nor on the threads there are.

use std::ops::Range;

use super::Isa;
use super::linear::{Product, WeightMatrix, begin};
use super::share::{portion, share_with};
use super::simd::{Kernel, Simd, dispatch};
use crate::dtype::DType;

/// Outputs and depth of a converted panel: 512 KiB of f32, a core's own cache.
const PANEL: usize = 256;
const DEPTH: usize = 512;
/// Rows of a task with many, at least: fewer pay too much for the panel.
const TASK_ROWS: usize = 64;
/// Outputs below which the rows of a panel stay together: `gemm` adds up products of up to 256 elements in another
/// order, and the threads there are must not decide which.
const SPLIT_OUTPUTS: usize = 16;

/// All products together, as for few rows.
pub(super) fn many_rows(
    isa: Isa,
    x: &[f32],
    rows: usize,
    products: &[Product<'_>],
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    for (i, a) in products.iter().enumerate() {
        assert!(a.at % stride + a.weight.rows <= stride, "outputs of one row pass its end");
        assert!(products[..i].iter().all(|b| apart(a, b, rows, stride)), "products write the same outputs");
    }
    let to = Cells(out.as_mut_ptr());
    share_with(
        blocks(rows, products),
        || vec![0.0f32; PANEL * DEPTH],
        |panel, block, _| multiply(isa, x, &block, &to, stride, accumulate, panel),
    );
}

/// Where tasks write rows and columns of their own.
struct Cells(*mut f32);

#[allow(unsafe_code)] // the interface of `gemm` is pointers
// SAFETY: each task of `many_rows` writes its own rows and columns.
unsafe impl Sync for Cells {}

impl Cells {
    fn at(&self, cell: usize) -> *mut f32 {
        self.0.wrapping_add(cell)
    }
}

/// Outputs `[first, first + outputs)` of a product, for some rows.
struct Block<'a> {
    product: Product<'a>,
    first: usize,
    outputs: usize,
    rows: Range<usize>,
}

/// All products in blocks of a panel of weights and some rows.
fn blocks<'a>(rows: usize, products: &[Product<'a>]) -> Vec<Block<'a>> {
    let mut left: usize = products.iter().map(|product| product.weight.rows.div_ceil(PANEL) * rows).sum();
    let mut blocks = Vec::new();
    for product in products {
        for first in (0..product.weight.rows).step_by(PANEL) {
            let outputs = PANEL.min(product.weight.rows - first);
            let mut from = 0;
            while from < rows {
                let some = portion(left).max(TASK_ROWS);
                let all = outputs < SPLIT_OUTPUTS || rows - from < some + TASK_ROWS;
                let to = if all { rows } else { from + some };
                blocks.push(Block { product: *product, first, outputs, rows: from..to });
                left -= to - from;
                from = to;
            }
        }
    }
    blocks
}

/// Whether two products write different rows, or different columns.
fn apart(a: &Product<'_>, b: &Product<'_>, rows: usize, stride: usize) -> bool {
    let ends = |p: &Product<'_>| (p.at / stride, p.at % stride, p.at % stride + p.weight.rows);
    let ((row_a, from_a, to_a), (row_b, from_b, to_b)) = (ends(a), ends(b));
    row_a.abs_diff(row_b) >= rows || to_a <= from_b || to_b <= from_a
}

/// One block, a panel after another along the depth.
fn multiply(
    isa: Isa,
    x: &[f32],
    block: &Block<'_>,
    to: &Cells,
    stride: usize,
    accumulate: bool,
    panel: &mut [f32],
) {
    let Block { product: Product { weight, bias, at }, first, outputs, ref rows } = *block;
    let (cols, x) = (weight.cols, &x[rows.start * weight.cols..rows.end * weight.cols]);
    let cell = at + first + rows.start * stride;
    for row in 0..rows.len() {
        // SAFETY: inside `out`, as `linear` asserts, and this task's own.
        #[allow(unsafe_code, reason = "as `Cells`")]
        let out = unsafe { std::slice::from_raw_parts_mut(to.at(cell + row * stride), outputs) };
        begin(out, first, bias, accumulate);
    }
    for from in (0..cols).step_by(DEPTH) {
        let depth = DEPTH.min(cols - from);
        dispatch(isa, Widen { w: weight, first, from, depth, panel: &mut panel[..outputs * DEPTH] });
        let (left, left_stride) = (x[from..].as_ptr(), cols as isize);
        // SAFETY: reads stay in `x` and `panel`; writes are this task's rows and columns, inside `out` as `linear`
        // asserts.
        #[allow(unsafe_code, reason = "as `Cells`")]
        unsafe {
            gemm::gemm(
                rows.len(),
                outputs,
                depth,
                to.at(cell),
                1,
                stride as isize,
                true, // out
                left,
                1,
                left_stride,
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
}

/// Columns `[from, from + depth)` of some outputs' weights as f32, to rows of [`DEPTH`].
struct Widen<'a> {
    w: WeightMatrix<'a>,
    first: usize,
    from: usize,
    depth: usize,
    panel: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (o, to) in self.panel.chunks_exact_mut(DEPTH).enumerate() {
            let from = (self.first + o) * self.w.cols + self.from;
            let (span, to) = (from..from + self.depth, &mut to[..self.depth]);
            match self.w.dtype {
                DType::Bf16 => {
                    let words = &self.w.words()[span];
                    let whole = self.depth / S::LANES * S::LANES;
                    for (to, words) in to.chunks_exact_mut(S::LANES).zip(words.chunks_exact(S::LANES)) {
                        S::store(S::widen_bf16(words), to);
                    }
                    for (to, word) in to[whole..].iter_mut().zip(&words[whole..]) {
                        *to = f32::from_bits(u32::from(*word) << 16);
                    }
                }
                DType::F16 => {
                    let words = &self.w.words()[span];
                    to.iter_mut().zip(words).for_each(|(to, w)| *to = half::f16::from_bits(*w).to_f32());
                }
                DType::F32 => to.copy_from_slice(&self.w.floats()[span]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::linear;
    use super::super::linear::tests::{COLS, weights};
    use super::*;

    /// Two products, of 200 and of 3 outputs, added to what is there.
    fn many(threads: usize, x: &[f32], rows: usize, bytes: &[u8]) -> Vec<f32> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let matrix = |rows| WeightMatrix { dtype: DType::Bf16, rows, cols: COLS, bytes };
        let product = |outputs, at| Product { weight: matrix(outputs), bias: None, at };
        let mut out = vec![0.25; rows * 210];
        let products = [product(200, 0), product(3, 201)];
        pool.install(|| linear(Isa::detect(), x, rows, &products, &mut out, 210, true));
        out
    }

    #[test]
    fn many_rows_have_the_same_bits_on_any_number_of_threads_and_agree_with_f64() {
        let x: Vec<f32> = (0..300 * COLS).map(|i| ((i * 31 + 7) % 101) as f32 / 50.0 - 1.0).collect();
        let bytes = weights(DType::Bf16, 200);
        let alone = many(1, &x, 300, &bytes);
        assert!([2, 3, 16].iter().all(|threads| many(*threads, &x, 300, &bytes) == alone));
        let w = WeightMatrix { dtype: DType::Bf16, rows: 200, cols: COLS, bytes: &bytes };
        for (cell, got) in alone.iter().enumerate() {
            let (row, column) = (cell / 210, cell % 210);
            let output = [(0, 200), (201, 3)].iter().find(|(at, count)| (*at..at + count).contains(&column));
            let output = output.map(|(at, _)| column - at);
            let dot = |o: usize| -> f64 {
                let x = &x[row * COLS..][..COLS];
                x.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(w.value(o * COLS + i))).sum()
            };
            let exact = 0.25 + output.map_or(0.0, dot);
            assert!((f64::from(*got) - exact).abs() < 1e-5, "row {row} column {column}: {got}, not {exact}");
        }
    }

    #[test]
    #[should_panic(expected = "write the same outputs")]
    fn products_that_meet_are_refused() {
        let bytes = weights(DType::Bf16, 9);
        let weight = WeightMatrix { dtype: DType::Bf16, rows: 9, cols: COLS, bytes: &bytes };
        let product = |at| Product { weight, bias: None, at };
        linear(
            Isa::Portable,
            &[0.0; 20 * COLS],
            20,
            &[product(0), product(8)],
            &mut [0.0; 20 * 20],
            20,
            false,
        );
    }
}
