//! Weights to the device from memory that is not pinned: several threads copy into one of two pinned buffers while the
//! other is on its way.

use std::cell::Cell;
use std::ffi::c_void;

use cudarc::driver::sys::{self, CUstream};
use rayon::prelude::*;

use crate::OpenError;
use crate::arena::Pointer;
use crate::error::{CudaError, Named};
use crate::slab::HostSlab;
use crate::stream::Event;

/// Bytes of one buffer at most: a long copy for the link, a small one to pin.
const BUFFER_BYTES: usize = 32 << 20;
/// Bytes one thread copies at once.
const TASK_BYTES: usize = 1 << 20;

/// Both buffers. They exist while weights are loaded and are no part of a plan.
pub(crate) struct Upload {
    // Waited for before the memory goes.
    sent: [Event; 2],
    slab: HostSlab,
    buffer: usize,
    turn: Cell<usize>,
}

impl Upload {
    /// For pieces of which the longest has `longest` bytes.
    pub(crate) fn new(longest: u64) -> Result<Self, OpenError> {
        let buffer = (longest as usize).clamp(1, BUFFER_BYTES);
        let slab = HostSlab::new(2 * buffer as u64, false)?;
        Ok(Self { sent: [Event::new(false)?, Event::new(false)?], slab, buffer, turn: Cell::new(0) })
    }

    /// Puts a copy of `from` to the device on `stream`; `from` may go when this returns.
    pub(crate) fn copy(&self, from: &[u8], to: Pointer, stream: CUstream) -> Result<(), CudaError> {
        for (i, part) in from.chunks(self.buffer).enumerate() {
            let turn = self.turn.replace(1 - self.turn.get());
            let sent = &self.sent[turn];
            sent.synchronize()?;
            let buffer = self.slab.at((turn * self.buffer) as u64, part.len() as u64);
            // SAFETY: this turn's buffer, which the device has read; `&self` stays on one thread.
            let staged = unsafe { std::slice::from_raw_parts_mut(buffer, part.len()) };
            let tasks = staged.par_chunks_mut(TASK_BYTES).zip(part.par_chunks(TASK_BYTES));
            tasks.for_each(|(to, from)| to.copy_from_slice(from));
            let to = to + (i * self.buffer) as u64;
            // SAFETY: the caller's range on the device; the buffer is not written before `sent`.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, buffer.cast::<c_void>(), part.len(), stream) }
                .result()
                .named("cuMemcpyHtoDAsync")?;
            sent.record(stream)?;
        }
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // A failure here shows again at the stream that the copies were put on.
        self.sent.iter().for_each(|sent| drop(sent.synchronize()));
    }
}
