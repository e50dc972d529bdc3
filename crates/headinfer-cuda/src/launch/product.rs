//! Products of a few rows, which decode is made of: the weights are read once, at the rate of the device's memory.

use super::{Kernels, Spread, Start, blocks, launch};
use crate::arena::Pointer;
use crate::error::CudaError;
use crate::gemm::{Output, Shape};

/// Rows of x that the kernels are made for, in order.
pub(super) const ROWS: [usize; 6] = [1, 2, 3, 4, 8, 16];
/// Rows of x at most: a row has the same bits among as many.
pub(crate) const ROWS_MAX: usize = ROWS[ROWS.len() - 1];
const WARPS: u32 = 8;
/// Outputs of a warp.
const OUTPUTS: u32 = 2;

#[repr(C)]
struct ProductParams {
    weight: Pointer,
    from: Pointer,
    to: Pointer,
    out: u32,
    inner: u32,
    from_stride: u32,
    to_stride: u32,
    output: u32,
    rows: u32,
}

/// Whether a product has few enough rows, and rows that begin at multiples of 16 bytes. Of the shape alone, so that a
/// shape always gives the same bits.
pub(crate) fn fits(shape: &Shape) -> bool {
    let counts = [shape.out, shape.inner, shape.from_stride, shape.to_stride];
    shape.rows <= ROWS_MAX
        && shape.inner.is_multiple_of(8)
        && shape.from_stride.is_multiple_of(8)
        && counts.iter().all(|count| u32::try_from(*count).is_ok())
}

impl Kernels {
    /// y = x · wᵀ: x bf16 `[rows, from_stride]`, w bf16 `[out, inner]`, y as the shape says.
    ///
    /// # Panics
    /// When the shape does not [`fit`](fits).
    pub(crate) fn product(
        &self,
        start: Start,
        shape: Shape,
        weight: Pointer,
        from: Pointer,
        to: Pointer,
    ) -> Result<(), CudaError> {
        assert!(fits(&shape), "{shape:?} is for cuBLASLt");
        let mut params = ProductParams {
            weight,
            from,
            to,
            out: shape.out as u32,
            inner: shape.inner as u32,
            from_stride: shape.from_stride as u32,
            to_stride: shape.to_stride as u32,
            output: match shape.to {
                Output::Bf16 => 0,
                Output::F32 => 1,
                Output::Accumulate => 2,
            },
            rows: shape.rows as u32,
        };
        let kernel = ROWS.partition_point(|rows| *rows < shape.rows);
        let grid = (blocks(shape.out as u64, WARPS * OUTPUTS), 1);
        let spread = Spread { grid, block: 32 * WARPS, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans, of the sizes that the shape says.
        unsafe { launch(self.products[kernel], &spread, start, "product", &mut params) }
    }
}
