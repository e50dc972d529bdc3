//! What passes between the device and the CPU within a step.

use cudarc::driver::sys::CUstream;

use super::{Kernels, Spread, blocks, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const BLOCK: u32 = 256;

#[repr(C)]
struct FlagParams {
    flag: Pointer,
    number: u32,
}

#[repr(C)]
struct GiveParams {
    from: Pointer,
    to: Pointer,
    count: u64,
}

#[repr(C)]
struct TakeParams {
    from: [Pointer; 3],
    to: [Pointer; 3],
    rows: u32,
    head_dim: u32,
    scale_log2: f32,
}

impl Kernels {
    /// Lets the CPU see `number` at the mapped address `flag`, after all that was put on `stream`.
    pub(crate) fn raise_flag(&self, stream: CUstream, flag: Pointer, number: u32) -> Result<(), CudaError> {
        let spread = Spread { grid: (1, 1), block: 1, shared: 0 };
        // SAFETY: the kernel's layout; the address is a flag's.
        unsafe { launch(self.raise_flag, &spread, stream, "raise_flag", &mut FlagParams { flag, number }) }
    }

    /// Holds `stream` until `flag` has reached `number`.
    pub(crate) fn await_flag(&self, stream: CUstream, flag: Pointer, number: u32) -> Result<(), CudaError> {
        let spread = Spread { grid: (1, 1), block: 1, shared: 0 };
        // SAFETY: as above.
        unsafe { launch(self.await_flag, &spread, stream, "await_flag", &mut FlagParams { flag, number }) }
    }

    /// `count` queries, bf16 on the device, to f32 at the mapped address `to`.
    pub(crate) fn give_queries(
        &self,
        stream: CUstream,
        from: Pointer,
        to: Pointer,
        count: u64,
    ) -> Result<(), CudaError> {
        let spread = Spread { grid: (blocks(count, BLOCK), 1), block: BLOCK, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe {
            launch(self.give_queries, &spread, stream, "give_queries", &mut GiveParams { from, to, count })
        }
    }

    /// The state of `rows` query rows from mapped addresses to the carried state: max, sum, accumulator.
    pub(crate) fn take_state(
        &self,
        stream: CUstream,
        from: [Pointer; 3],
        to: [Pointer; 3],
        rows: usize,
    ) -> Result<(), CudaError> {
        let scale_log2 = std::f32::consts::LOG2_E / (self.head_dim as f32).sqrt();
        let mut params =
            TakeParams { from, to, rows: rows as u32, head_dim: self.head_dim as u32, scale_log2 };
        let count = (rows * self.head_dim) as u64;
        let spread = Spread { grid: (blocks(count, BLOCK), 1), block: BLOCK, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.take_state, &spread, stream, "take_state", &mut params) }
    }
}
