//! The MLP's activation.

use super::{Kernels, Spread, Start, blocks, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;

#[repr(C)]
struct SwigluParams {
    rows: Pointer,
    gate_bias: Pointer,
    up_bias: Pointer,
    width: u32,
    row_blocks: u32,
}

impl Kernels {
    /// Over bf16 `[rows, gate | up]` of `2 * width` columns, into the gate's. Biases may be null (0).
    pub(crate) fn swiglu(
        &self,
        start: Start,
        (at, rows): (Pointer, usize),
        width: usize,
        (gate_bias, up_bias): (Pointer, Pointer),
    ) -> Result<(), CudaError> {
        let row_blocks = blocks((width / 8) as u64, THREADS);
        let mut params = SwigluParams { rows: at, gate_bias, up_bias, width: width as u32, row_blocks };
        let spread = Spread { grid: (rows as u32 * row_blocks, 1), block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.swiglu, &spread, start, "swiglu", &mut params) }
    }
}
