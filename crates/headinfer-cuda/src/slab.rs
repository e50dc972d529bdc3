//! The host's memory of a plan: one mapping, its pages touched by all cores and pinned piece by piece, from its start
//! to its end. What is needed at once is ready when it opens; the rest grows ahead of its use on a thread of its own.
//! Knows no plan.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use cudarc::driver::sys;
use headinfer_core::units::Bytes;
use memmap2::{Advice, MmapMut};
use rayon::prelude::*;

use crate::OpenError;
use crate::device::Handle;
use crate::error::{CudaError, Named};

/// Memory pinned at once. 64 GiB at once were seen to fail; the driver makes others wait while it pins.
const PIECE_BYTES: u64 = 256 << 20;
/// Memory that is made ready beyond what was asked for: a few chunks of prefill.
const AHEAD_BYTES: u64 = 4 << 30;
/// Memory one task touches: a few huge pages.
const TOUCH_BYTES: usize = 8 << 20;
const PAGE: usize = 4096;

/// Who makes memory fit for copies, and tells how much may still be taken. A seam for tests.
pub(crate) trait Pin: Send + Sync + 'static {
    /// Registers a range of touched memory.
    fn pin(&self, start: *mut u8, bytes: usize) -> Result<(), CudaError>;

    /// Takes back what `pin` did for the range that starts here.
    fn unpin(&self, start: *mut u8);

    /// Bytes of host memory that may still be taken; `None` when nobody tells.
    fn left(&self) -> Option<u64>;
}

/// The driver of a GPU.
pub(crate) struct Driver {
    /// The context to pin for; `None` is the calling thread's, which only a slab that never grows can do with.
    pub(crate) context: Option<Handle>,
    /// Bytes of host memory that may still be taken, 0 when the system does not tell.
    pub(crate) left: Option<fn() -> u64>,
}

impl Pin for Driver {
    fn pin(&self, start: *mut u8, bytes: usize) -> Result<(), CudaError> {
        self.context.map_or(Ok(()), Handle::enter)?;
        // SAFETY: the range lies in the slab's mapping, which unpins it before it goes.
        unsafe { sys::cuMemHostRegister_v2(start.cast::<c_void>(), bytes, sys::CU_MEMHOSTREGISTER_DEVICEMAP) }
            .result()
            .named("cuMemHostRegister")
    }

    fn unpin(&self, start: *mut u8) {
        // SAFETY: registered by `pin`, unregistered once.
        let _ = unsafe { sys::cuMemHostUnregister(start.cast::<c_void>()) };
    }

    fn left(&self) -> Option<u64> {
        self.left.map(|left| left()).filter(|left| *left > 0)
    }
}

/// How a slab grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    /// Bytes mapped.
    pub(crate) bytes: u64,
    /// Of them ready when the slab opens.
    pub(crate) at_once: u64,
    /// Bytes of a piece.
    piece: u64,
    /// Bytes made ready beyond those asked for.
    ahead: u64,
    /// Fill with NaN patterns.
    poison: bool,
}

impl Growth {
    pub(crate) fn new(bytes: u64, at_once: u64, poison: bool) -> Self {
        Self { bytes, at_once, piece: PIECE_BYTES, ahead: AHEAD_BYTES, poison }
    }
}

/// The memory.
pub(crate) struct HostSlab {
    base: *mut u8,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    // Owns the memory behind `base`; never touched through.
    _map: Option<MmapMut>,
}

// SAFETY: `base` is memory of our own; who reads and writes it is ordered by the plan's events and by waiting for
// them before the host looks, and nobody touches what is not ready.
unsafe impl Send for HostSlab {}
// SAFETY: as above.
unsafe impl Sync for HostSlab {}

impl HostSlab {
    /// Maps and pins `bytes` for the calling thread's context.
    pub(crate) fn new(bytes: u64, poison: bool) -> Result<Self, OpenError> {
        let driver = Driver { context: None, left: None };
        Self::growing(Growth::new(bytes, bytes, poison), Arc::new(driver))
    }

    /// Maps all, makes ready what is needed at once, at least one piece, and begins to grow.
    pub(crate) fn growing(growth: Growth, pin: Arc<dyn Pin>) -> Result<Self, OpenError> {
        let shared = Shared {
            growth,
            pin,
            ready: AtomicU64::new(0),
            state: Mutex::new(State { wanted: growth.at_once + growth.ahead, ..State::default() }),
            changed: Condvar::new(),
        };
        let shared = Arc::new(shared);
        let Growth { bytes, at_once, .. } = growth;
        if bytes == 0 {
            let base = std::ptr::NonNull::<u64>::dangling().as_ptr().cast();
            return Ok(Self { base, shared, thread: None, _map: None });
        }
        let refused = |source| OpenError::HostMemory { bytes: Bytes(bytes), source };
        let map = MmapMut::map_anon(bytes as usize).map_err(refused)?;
        // Large pages make touching and pinning several times faster; a refusal only costs that.
        let _ = map.advise(Advice::HugePage);
        let base = map.as_ptr().cast_mut();
        let mut slab = Self { base, shared, thread: None, _map: Some(map) };
        while slab.shared.ready() < at_once.max(1) {
            slab.shared.grow(Base(base)).map_err(|refusal| refusal.at_open(&slab.shared))?;
        }
        if slab.shared.ready() < bytes {
            let (shared, base) = (slab.shared.clone(), Base(base));
            let thread = std::thread::Builder::new().name("host memory".into());
            slab.thread = Some(thread.spawn(move || shared.run(base)).map_err(refused)?);
        }
        Ok(slab)
    }

    /// Bytes mapped: what the plan asked for.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.growth.bytes
    }

    /// A copy must not cross a multiple of this: the memory before and after was pinned apart.
    pub(crate) fn piece(&self) -> u64 {
        self.shared.growth.piece
    }

    /// Waits until the first `end` bytes are ready, and has more made ready beyond them.
    ///
    /// # Errors
    /// [`CudaError::Grow`] when they will never be.
    pub(crate) fn wait(&self, end: u64) -> Result<(), CudaError> {
        self.shared.wait(end)
    }

    /// A range's address.
    ///
    /// # Panics
    /// When the range leaves the mapping, or is not ready.
    pub(crate) fn at(&self, offset: u64, bytes: u64) -> *mut u8 {
        let (end, ready) = (offset + bytes, self.shared.ready());
        assert!(end <= self.bytes() && end <= ready, "{offset} + {bytes} of {}, {ready} ready", self.bytes());
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.base.add(offset as usize) }
    }
}

impl Drop for HostSlab {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for start in (0..self.shared.ready()).step_by(self.piece().max(1) as usize) {
            // SAFETY: inside the mapping, as what is ready is.
            self.shared.pin.unpin(unsafe { self.base.add(start as usize) });
        }
    }
}

/// What the slab and its thread both know.
struct Shared {
    growth: Growth,
    pin: Arc<dyn Pin>,
    /// Bytes from the start that are touched and pinned: whole pieces, or all. Changed under the lock.
    ready: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes from the start that are to be ready.
    wanted: u64,
    /// The slab is going.
    closed: bool,
    /// Nothing grows any more, for this reason if there is one.
    ended: bool,
    refused: Option<CudaError>,
}

/// Where the mapping begins, for the thread.
#[derive(Clone, Copy)]
struct Base(*mut u8);

// SAFETY: the thread only touches what is not ready, which nobody else does.
unsafe impl Send for Base {}
// SAFETY: as above: each task touches a range of its own.
unsafe impl Sync for Base {}

/// Why a piece cannot be had.
enum Refusal {
    /// So many bytes are left.
    Memory(u64),
    Pin(CudaError),
}

impl Refusal {
    fn at_open(self, shared: &Shared) -> OpenError {
        let (bytes, done) = (Bytes(shared.growth.bytes), Bytes(shared.ready()));
        match self {
            Self::Pin(error) => OpenError::Pin { bytes, done, error },
            Self::Memory(left) => {
                let source = std::io::Error::other(format!("{} are left", Bytes(left)));
                OpenError::HostMemory { bytes, source }
            }
        }
    }

    fn later(self, shared: &Shared) -> CudaError {
        let why = match self {
            Self::Memory(left) => format!("the system or its cgroup leaves {}", Bytes(left)),
            Self::Pin(error) => error.to_string(),
        };
        shared.stopped(why)
    }
}

impl Shared {
    fn ready(&self) -> u64 {
        self.ready.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self, why: String) -> CudaError {
        CudaError::Grow { bytes: Bytes(self.growth.bytes), done: Bytes(self.ready()), why }
    }

    /// Touches and pins the next piece.
    fn grow(&self, base: Base) -> Result<(), Refusal> {
        let start = self.ready();
        let bytes = self.growth.piece.min(self.growth.bytes - start);
        if let Some(left) = self.pin.left().filter(|left| *left < bytes) {
            return Err(Refusal::Memory(left));
        }
        // SAFETY: inside the mapping, and not ready: nobody else touches it.
        let piece = unsafe { std::slice::from_raw_parts_mut(base.0.add(start as usize), bytes as usize) };
        let poison = self.growth.poison;
        piece.par_chunks_mut(TOUCH_BYTES).for_each(|chunk| match poison {
            true => chunk.fill(0xff),
            false => chunk.iter_mut().step_by(PAGE).for_each(|byte| *byte = 0),
        });
        self.pin.pin(piece.as_mut_ptr(), piece.len()).map_err(Refusal::Pin)?;
        let state = self.state();
        self.ready.store(start + bytes, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Grows as far as is wanted until all is ready, refused, or the slab goes.
    fn run(&self, base: Base) {
        let _ended = Ended(self);
        while self.ready() < self.growth.bytes {
            let idle = |state: &mut State| !state.closed && state.wanted <= self.ready();
            let state = self.changed.wait_while(self.state(), idle);
            if state.unwrap_or_else(PoisonError::into_inner).closed {
                return;
            }
            if let Err(refusal) = self.grow(base) {
                let error = refusal.later(self);
                self.state().refused = Some(error);
                return;
            }
        }
    }

    fn wait(&self, end: u64) -> Result<(), CudaError> {
        let wanted = end.saturating_add(self.growth.ahead).min(self.growth.bytes);
        if self.ready() >= wanted {
            return Ok(());
        }
        let mut state = self.state();
        if wanted > state.wanted {
            state.wanted = wanted;
            self.changed.notify_all();
        }
        let waiting = |state: &mut State| self.ready() < end && !state.ended;
        let state = self.changed.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner);
        match self.ready() >= end {
            true => Ok(()),
            false => Err(state.refused.clone().unwrap_or_else(|| self.stopped("its thread ended".into()))),
        }
    }
}

/// However the thread ends, nobody waits for it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "slab_tests.rs"]
mod tests;
