//! Waiting on a lane, for tests.

use cudarc::driver::sys::CUstream;

use super::{Kernels, Spread, launch};
use crate::error::CudaError;

#[repr(C)]
struct DelayParams {
    nanoseconds: u64,
}

impl Kernels {
    /// Keeps `stream` busy.
    pub(crate) fn delay(&self, stream: CUstream, nanoseconds: u64) -> Result<(), CudaError> {
        let spread = Spread { grid: (1, 1), block: 1, shared: 0 };
        // SAFETY: the kernel's layout; it touches no memory.
        unsafe { launch(self.delay, &spread, stream, "delay", &mut DelayParams { nanoseconds }) }
    }
}
