//! Moving rows within the device's memory.

use cudarc::driver::sys::CUstream;

use super::{Kernels, Spread, blocks, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;
/// Ranges of a launch at most (`RANGES_MAX` in the kernel): those of as many heads as a launch takes.
const RANGES_MAX: usize = 128;
/// Blocks of a range at most: with those of some heads they fill a device.
const BLOCKS_MAX: u32 = 16;
/// Bytes that a thread moves at once.
const VECTOR: u64 = 16;

#[repr(C)]
struct MoveParams {
    from: [Pointer; RANGES_MAX],
    to: [Pointer; RANGES_MAX],
    count: u64,
}

#[repr(C)]
struct ClearParams {
    words: Pointer,
    count: u32,
}

impl Kernels {
    /// Copies `bytes`, a multiple of 16, from each first address to its second; both are multiples of 16.
    pub(crate) fn move_rows(
        &self,
        stream: CUstream,
        ranges: &[(Pointer, Pointer)],
        bytes: u64,
    ) -> Result<(), CudaError> {
        assert!(bytes.is_multiple_of(VECTOR), "{bytes} bytes");
        for some in ranges.chunks(RANGES_MAX) {
            let mut params = MoveParams { from: [0; RANGES_MAX], to: [0; RANGES_MAX], count: bytes / VECTOR };
            for (i, (from, to)) in some.iter().enumerate() {
                (params.from[i], params.to[i]) = (*from, *to);
            }
            let grid = (blocks(params.count, THREADS).min(BLOCKS_MAX), some.len() as u32);
            let spread = Spread { grid, block: THREADS, shared: 0 };
            // SAFETY: the kernel's layout; the addresses are spans of an op, which do not overlap.
            unsafe { launch(self.move_rows, &spread, stream, "move_rows", &mut params) }?;
        }
        Ok(())
    }

    /// `count` u32 at `words` become 0.
    pub(crate) fn clear_words(
        &self,
        stream: CUstream,
        words: Pointer,
        count: usize,
    ) -> Result<(), CudaError> {
        let spread = Spread { grid: (blocks(count as u64, THREADS), 1), block: THREADS, shared: 0 };
        // SAFETY: as above.
        unsafe {
            launch(
                self.clear_words,
                &spread,
                stream,
                "clear_words",
                &mut ClearParams { words, count: count as u32 },
            )
        }
    }
}
