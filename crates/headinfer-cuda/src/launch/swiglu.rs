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
    count: u64,
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
        let count = (rows * width / 8) as u64;
        let mut params = SwigluParams { rows: at, gate_bias, up_bias, width: width as u32, count };
        let spread = Spread { grid: (blocks(count, THREADS), 1), block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.swiglu, &spread, start, "swiglu", &mut params) }
    }
}
