//! The two memories of a plan: one allocation on the device, one pinned mapping on the host. Made once, never
//! grown. Turns spans into addresses and knows nothing of what lies there.

use std::ffi::c_void;

use cudarc::driver::sys::CUstream;
use cudarc::driver::{result, sys};
use headinfer_core::plan::{Memory, Span};
use headinfer_core::units::Bytes;
use memmap2::{Advice, MmapMut};
use rayon::prelude::*;

use crate::OpenError;
use crate::error::{CudaError, Named};

/// Registering more at once was seen to fail.
const PIN_BYTES_MAX: usize = 64 << 30;
/// Memory one task touches.
const TOUCH_BYTES: usize = 64 << 20;
const PAGE: usize = 4096;

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

/// The host's part: huge pages, touched by all cores, registered with the driver in pieces.
pub(crate) struct HostSlab {
    base: *mut u8,
    bytes: u64,
    pinned: Vec<usize>,
    // Owns the memory behind `base`; never touched through.
    _map: Option<MmapMut>,
}

// SAFETY: `base` is memory of our own; who reads and writes it is ordered by the plan's events and by waiting for
// them before the host looks.
unsafe impl Send for HostSlab {}
// SAFETY: as above.
unsafe impl Sync for HostSlab {}

impl HostSlab {
    /// Maps and pins `bytes`.
    pub(crate) fn new(bytes: u64, poison: bool) -> Result<Self, OpenError> {
        if bytes == 0 {
            let base = std::ptr::NonNull::<u64>::dangling().as_ptr().cast();
            return Ok(Self { base, bytes, pinned: Vec::new(), _map: None });
        }
        let refused = |source| OpenError::HostMemory { bytes: Bytes(bytes), source };
        let mut map = MmapMut::map_anon(bytes as usize).map_err(refused)?;
        // Large pages make touching and pinning several times faster; a refusal only costs that.
        let _ = map.advise(Advice::HugePage);
        map.par_chunks_mut(TOUCH_BYTES).for_each(|chunk| match poison {
            true => chunk.fill(0xff),
            false => chunk.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0),
        });
        let base = map.as_mut_ptr();
        let mut slab = Self { base, bytes, pinned: Vec::new(), _map: Some(map) };
        for start in (0..bytes as usize).step_by(PIN_BYTES_MAX) {
            slab.pin(start, PIN_BYTES_MAX.min(bytes as usize - start))?;
        }
        Ok(slab)
    }

    fn pin(&mut self, start: usize, bytes: usize) -> Result<(), OpenError> {
        let flags = sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the range lies in the mapping; `drop` unregisters it before the mapping goes.
        let pinned =
            unsafe { sys::cuMemHostRegister_v2(self.base.add(start).cast::<c_void>(), bytes, flags) };
        let pinned = pinned.result().named("cuMemHostRegister");
        pinned.map_err(|error| OpenError::Pin {
            bytes: Bytes(self.bytes),
            done: Bytes(start as u64),
            error,
        })?;
        self.pinned.push(start);
        Ok(())
    }

    /// Bytes mapped: what the plan asked for.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn at(&self, span: Span) -> *mut u8 {
        assert!(span.memory == Memory::Host && span.offset + span.bytes <= self.bytes, "{span:?}");
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.base.add(span.offset as usize) }
    }
}

impl Drop for HostSlab {
    fn drop(&mut self) {
        for start in &self.pinned {
            // SAFETY: registered by `pin`, unregistered once.
            let _ = unsafe { sys::cuMemHostUnregister(self.base.add(*start).cast::<c_void>()) };
        }
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

    /// The address under which kernels read a host span in place, at the speed of the link. The span lies in one
    /// pinned piece.
    pub(crate) fn mapped(&self, span: Span) -> Result<Pointer, CudaError> {
        let piece = |offset: u64| offset / PIN_BYTES_MAX as u64;
        assert_eq!(
            piece(span.offset),
            piece(span.offset + span.bytes - 1),
            "{span:?} is pinned in two pieces"
        );
        let mut address: Pointer = 0;
        // SAFETY: the span is inside the mapping, which is registered; writes one address.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, self.host.at(span).cast::<c_void>(), 0) }
            .result()
            .named("cuMemHostGetDevicePointer")?;
        Ok(address)
    }

    /// A host span as elements. No lane may be writing it, nor any other borrow of it live.
    #[allow(clippy::mut_from_ref)] // the plan's regions are disjoint; callers take one span at a time
    pub(crate) fn host<T: bytemuck::Pod>(&self, span: Span) -> &mut [T] {
        // SAFETY: inside the mapping; exclusive by the contract above. `cast_slice` checks the alignment.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.host.at(span), span.bytes as usize) };
        bytemuck::cast_slice_mut(bytes)
    }

    /// Copies `from` to `to` on `stream`, in whichever direction their memories say.
    pub(crate) fn copy(&self, from: Span, to: Span, stream: CUstream) -> Result<(), CudaError> {
        assert_eq!(from.bytes, to.bytes, "a copy keeps its size");
        let host = if from.memory == Memory::Host { from } else { to };
        // A copy within one registered piece is the only kind that is certainly asynchronous.
        let mut done = 0;
        while done < from.bytes {
            let room = PIN_BYTES_MAX as u64 - (host.offset + done) % PIN_BYTES_MAX as u64;
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
                let (from, to) = (self.host.at(from).cast_const().cast::<c_void>(), self.device.at(to));
                // SAFETY: both ranges are inside their memories and live as long as the streams.
                unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream) }
                    .result()
                    .named("cuMemcpyHtoDAsync")
            }
            (Memory::Device, Memory::Host) => {
                let (from, to) = (self.device.at(from), self.host.at(to).cast::<c_void>());
                // SAFETY: as above.
                unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, stream) }
                    .result()
                    .named("cuMemcpyDtoHAsync")
            }
            _ => unreachable!("no op copies within one memory"),
        }
    }
}
