//! Streams and events: a lane is a stream, and only the plan's events order them.

use std::time::Duration;

use cudarc::driver::DriverError;
use cudarc::driver::result;
use cudarc::driver::sys::{CUevent, CUevent_flags, CUresult, CUstream};

use crate::error::{CudaError, Named};
use crate::libraries;

/// A stream, destroyed when dropped.
pub(crate) struct Stream(CUstream);

// SAFETY: stream handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new() -> Result<Self, CudaError> {
        result::stream::create(result::stream::StreamKind::NonBlocking).map(Self).named("cuStreamCreate")
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.0
    }

    pub(crate) fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let flags = cudarc::driver::sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both handles are alive.
        unsafe { result::stream::wait_event(self.0, event.0, flags) }.named("cuStreamWaitEvent")
    }

    pub(crate) fn record(&self, event: &Event) -> Result<(), CudaError> {
        event.record(self.0)
    }

    /// Waits for all work so far; where an error of the device shows.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle is alive.
        unsafe { result::stream::synchronize(self.0) }.named("cuStreamSynchronize")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once; waiting first, as its work uses memory that goes next.
        unsafe {
            let _ = result::stream::synchronize(self.0);
            let _ = result::stream::destroy(self.0);
        }
    }
}

/// An event, destroyed when dropped.
pub(crate) struct Event(CUevent);

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that orders, and with `timed` also keeps its time, which costs a little.
    pub(crate) fn new(timed: bool) -> Result<Self, CudaError> {
        let flags = match timed {
            true => CUevent_flags::CU_EVENT_DEFAULT,
            false => CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        result::event::create(flags).map(Self).named("cuEventCreate")
    }

    /// Marks the work put on `stream` so far.
    pub(crate) fn record(&self, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: both handles are alive.
        unsafe { result::event::record(self.0, stream) }.named("cuEventRecord")
    }

    /// What others ask whether it has happened; good while `self` lives.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.0)
    }

    /// Waits until what was recorded has happened.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle is alive.
        unsafe { result::event::synchronize(self.0) }.named("cuEventSynchronize")
    }

    /// Time from `start` to this, both timed and past.
    pub(crate) fn since(&self, start: &Event) -> Result<Duration, CudaError> {
        // SAFETY: both handles are alive.
        let ms = unsafe { libraries::elapsed(start.0, self.0) }?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

/// An event as others may ask for it, who end before it is destroyed.
#[derive(Clone, Copy)]
pub(crate) struct Mark(CUevent);

// SAFETY: as for `Event`.
unsafe impl Send for Mark {}

impl Mark {
    /// Whether what was recorded last has happened. On a device that failed all has.
    pub(crate) fn happened(self) -> bool {
        // SAFETY: who made the mark keeps the event as long as it is asked for.
        let asked = unsafe { result::event::query(self.0) };
        asked != Err(DriverError(CUresult::CUDA_ERROR_NOT_READY))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Events made as they are needed and used again by every step.
pub(crate) struct Pool {
    timed: bool,
    events: Vec<Event>,
}

impl Pool {
    pub(crate) fn new(timed: bool) -> Self {
        Self { timed, events: Vec::new() }
    }

    /// At least `count` events.
    pub(crate) fn grow(&mut self, count: usize) -> Result<(), CudaError> {
        while self.events.len() < count {
            self.events.push(Event::new(self.timed)?);
        }
        Ok(())
    }

    pub(crate) fn get(&self, index: usize) -> &Event {
        &self.events[index]
    }
}
