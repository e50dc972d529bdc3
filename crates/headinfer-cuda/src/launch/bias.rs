//! A bias on rows of the residual stream.

use super::{Kernels, Spread, Start, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;

#[repr(C)]
struct BiasParams {
    rows: Pointer,
    bias: Pointer,
    width: u32,
}

impl Kernels {
    /// Adds the bf16 `bias` `[width]` to each of the f32 rows.
    pub(crate) fn add_bias(
        &self,
        start: Start,
        (to, rows): (Pointer, usize),
        (bias, width): (Pointer, usize),
    ) -> Result<(), CudaError> {
        let mut params = BiasParams { rows: to, bias, width: width as u32 };
        let spread = Spread { grid: (rows as u32, 1), block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.add_bias, &spread, start, "add_bias", &mut params) }
    }
}
