//! The two memories of a plan: one allocation on the device, one pinned mapping on the host. Turns spans into
//! addresses and knows nothing of what lies there.

use std::ffi::c_void;

use cudarc::driver::sys::CUstream;
use cudarc::driver::{result, sys};
use headinfer_core::plan::{Memory, Span};
use headinfer_core::units::Bytes;

use crate::OpenError;
use crate::error::{CudaError, Named};
use crate::slab::HostSlab;

/// An address on the device, as kernels take it.
pub(crate) type Pointer = sys::CUdeviceptr;

/// The device's part.
pub(crate) struct DeviceArena {
    base: Pointer,
    bytes: u64,
}

impl DeviceArena {
    /// Allocates `bytes` on the current device, filled with NaN patterns where `poison` asks for it.
    pub(crate) fn new(bytes: u64, poison: bool) -> Result<Self, OpenError> {
        // SAFETY: freed by `drop`.
        let base = unsafe { result::malloc_sync(bytes.max(1) as usize) }.named("cuMemAlloc");
        let base = base.map_err(|error| match error {
            CudaError::Call { out_of_memory: true, .. } => {
                let free = crate::device::memory().map_or(0, |(free, _)| free);
                OpenError::DeviceMemory { bytes: Bytes(bytes), free: Bytes(free) }
            }
            error => error.into(),
        })?;
        let arena = Self { base, bytes };
        if poison {
            // SAFETY: the range is the allocation.
            unsafe { result::memset_d8_sync(base, 0xff, bytes as usize) }.named("cuMemsetD8")?;
        }
        Ok(arena)
    }

    fn at(&self, span: Span) -> Pointer {
        assert!(span.memory == Memory::Device && span.offset + span.bytes <= self.bytes, "{span:?}");
        self.base + span.offset
    }
}

impl Drop for DeviceArena {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, freed once, after the streams that used it were destroyed.
        let _ = unsafe { result::memory_free(self.base) };
    }
}

/// Both memories.
pub(crate) struct Memories {
    pub(crate) device: DeviceArena,
    pub(crate) host: HostSlab,
}

impl Memories {
    /// The device address of a span.
    pub(crate) fn pointer(&self, span: Span) -> Pointer {
        self.device.at(span)
    }

    /// Writes all of a span of the device's memory; it is there when this returns. The driver's call returns when it has
    /// read the bytes, which the device may have later, and streams do not wait for that.
    ///
    /// # Panics
    /// When the bytes are not as many as the span's.
    pub(crate) fn put(&self, span: Span, bytes: &[u8]) -> Result<(), CudaError> {
        assert_eq!(span.bytes, bytes.len() as u64, "a range is written whole");
        // SAFETY: the range is inside the arena, as `pointer` asserts, and `bytes` is as long.
        unsafe { result::memcpy_htod_sync(self.pointer(span), bytes) }.named("cuMemcpyHtoD")?;
        // SAFETY: the default stream, on which that copy is.
        unsafe { result::stream::synchronize(std::ptr::null_mut()) }.named("cuStreamSynchronize")
    }

    /// The address under which kernels read a host span in place, at the speed of the link.
    ///
    /// # Errors
    /// [`CudaError`] when pieces of the span, which were registered apart, do not follow one another for the device: with
    /// unified addressing they do.
    pub(crate) fn mapped(&self, span: Span) -> Result<Pointer, CudaError> {
        let (piece, start) = (self.host.piece(), self.host_at(span));
        let address = |offset: u64| {
            let at = start.wrapping_offset((offset - span.offset) as isize);
            let mut address: Pointer = 0;
            // SAFETY: the span is inside the mapping, which is registered; writes one address.
            unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, at.cast::<c_void>(), 0) }
                .result()
                .named("cuMemHostGetDevicePointer")?;
            Ok(address)
        };
        let first = address(span.offset)?;
        let borders = (span.offset / piece + 1) * piece..span.offset + span.bytes;
        for offset in borders.step_by(piece as usize) {
            if address(offset)? != first + (offset - span.offset) {
                let text = "host memory is in pieces for the device: use --weights resident".into();
                return Err(CudaError::call("cuMemHostGetDevicePointer", text));
            }
        }
        Ok(first)
    }

    /// A host span as elements, once it is ready. No lane may be writing it, nor any other borrow of it live.
    ///
    /// # Panics
    /// When the span will never be ready: who may meet that waits for it before.
    #[allow(clippy::mut_from_ref)] // spans of a command are disjoint, and a caller takes each once
    pub(crate) fn host<T: bytemuck::Pod>(&self, span: Span) -> &mut [T] {
        // A refusal shows as memory that is not ready.
        let _ = self.host.wait(span.offset + span.bytes);
        // SAFETY: inside the mapping; exclusive by the contract above. `cast_slice` checks the alignment.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.host_at(span), span.bytes as usize) };
        bytemuck::cast_slice_mut(bytes)
    }

    fn host_at(&self, span: Span) -> *mut u8 {
        assert!(span.memory == Memory::Host, "{span:?}");
        self.host.at(span.offset, span.bytes)
    }

    /// Copies `from` to `to` on `stream`, in whichever direction their memories say.
    pub(crate) fn copy(&self, from: Span, to: Span, stream: CUstream) -> Result<(), CudaError> {
        assert_eq!(from.bytes, to.bytes, "a copy keeps its size");
        let host = if from.memory == Memory::Host { from } else { to };
        self.host.wait(host.offset + host.bytes)?;
        let (piece, mut done) = (self.host.piece(), 0);
        while done < from.bytes {
            let room = piece - (host.offset + done) % piece;
            let part =
                |span: Span| Span { offset: span.offset + done, bytes: room.min(span.bytes - done), ..span };
            self.copy_piece(part(from), part(to), stream)?;
            done += room.min(from.bytes - done);
        }
        Ok(())
    }

    fn copy_piece(&self, from: Span, to: Span, stream: CUstream) -> Result<(), CudaError> {
        let bytes = from.bytes as usize;
        match (from.memory, to.memory) {
            (Memory::Host, Memory::Device) => {
                let (from, to) = (self.host_at(from).cast_const().cast::<c_void>(), self.device.at(to));
                // SAFETY: both ranges are inside their memories and live as long as the streams.
                unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream) }
                    .result()
                    .named("cuMemcpyHtoDAsync")
            }
            (Memory::Device, Memory::Host) => {
                let (from, to) = (self.device.at(from), self.host_at(to).cast::<c_void>());
                // SAFETY: as above.
                unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) }
                    .result()
                    .named("cuMemcpyDtoHAsync")
            }
            _ => unreachable!("no op copies within one memory"),
        }
    }
}
