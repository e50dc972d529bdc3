//! RMSNorm of rows.

use super::{Kernels, Spread, Start, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;

#[repr(C)]
struct NormParams {
    from: Pointer,
    weight: Pointer,
    to: Pointer,
    width: u32,
    eps: f32,
}

impl Kernels {
    /// f32 `[rows, width]` to bf16, normalised and weighted.
    pub(crate) fn rms_norm(
        &self,
        start: Start,
        (from, rows): (Pointer, usize),
        (weight, width): (Pointer, usize),
        to: Pointer,
        eps: f32,
    ) -> Result<(), CudaError> {
        let mut params = NormParams { from, weight, to, width: width as u32, eps };
        let spread = Spread { grid: (rows as u32, 1), block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.rms_norm, &spread, start, "rms_norm", &mut params) }
    }
}
