//! What a device, its link and this crate's own kernels and products reach, each alone: the rates that a plan's floors
//! and a benchmark's ratios are held against.
//!
//! A [`Bed`] has memory of its own, which is never a plan's: it is made and freed while no backend is open. Its values
//! are random, as a device that multiplies zeros is faster than it ever is at work.

mod elementwise;
mod packing;
mod quantising;
mod rates;
mod search;
mod shapes;
mod together;

use std::time::Duration;

use cudarc::driver::sys;
use headinfer_core::cpu::measure::median;
use headinfer_core::model::synthetic::{Half, SyntheticKv};
use headinfer_core::plan::{GEMM_WORKSPACE, Memory, Span};

use crate::arena::{DeviceArena, Memories, Pointer};
use crate::device::{Context, DeviceInfo, memory};
use crate::error::{CudaError, Named};
use crate::gemm::Gemm;
use crate::launch::Kernels;
use crate::launch::attention_prefill::PrefillKernel;
use crate::slab::HostSlab;
use crate::stream::{Event, Stream};
use crate::{CudaOptions, OpenError};

pub use elementwise::{Elementwise, Passed};
pub use packing::{Packed, Packing, PackingRates};
pub use rates::Rates;
pub use search::Searched;
pub use shapes::{Attended, Product, layer_products};

/// A run is repeated for this long, after two that are not counted…
const ENOUGH: Duration = Duration::from_millis(250);
/// …and at least and at most this many times.
const TIMES: (usize, usize) = (5, 50);
/// What is compared runs in turns for this long in all, and at least and at most so many turns.
const COMPARED: Duration = Duration::from_millis(500);
const TURNS: (usize, usize) = (15, 500);
/// The device waits this long before each turn, so that what is timed is there when it begins.
const AHEAD_NS: u64 = 40_000;
/// Ranges start at multiples of this many bytes, as a plan's do.
const ALIGN: u64 = 256;

/// Which way copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Host to device.
    In,
    /// Device to host.
    Out,
    /// Both at once, on two streams.
    Both,
}

/// A device with memory to measure on.
pub struct Bed {
    info: DeviceInfo,
    head_dim: usize,
    device_bytes: u64,
    /// Of the host's memory, one half to copy from, one to copy to.
    half: u64,
    marks: [Event; 3],
    lanes: [Stream; 2],
    memories: Memories,
    kernels: Kernels,
    gemm: Gemm,
    context: Context,
}

impl Bed {
    /// Opens the device with kernels for heads of `head_dim`, and allocates: `device_bytes` there, `host_bytes` pinned.
    ///
    /// # Errors
    /// [`OpenError`] when the device or a library is missing, or memory is refused.
    pub fn open(
        options: &CudaOptions,
        head_dim: usize,
        device_bytes: u64,
        host_bytes: u64,
    ) -> Result<Self, OpenError> {
        let context = Context::open(options.ordinal)?;
        context.enter()?;
        let device_bytes = device_bytes.next_multiple_of(ALIGN);
        let half = (host_bytes.min(device_bytes) / 2).next_multiple_of(ALIGN);
        let device_bytes = device_bytes.max(2 * half);
        let memories = Memories {
            device: DeviceArena::new(device_bytes, false)?,
            host: HostSlab::new(2 * half, false)?,
        };
        let prefill = options.prefill.unwrap_or_else(|| context.info.prefill_kernel(head_dim));
        let kernels = Kernels::load(&context.info, head_dim, prefill, options.cache_dir.as_deref())?;
        let bed = Self {
            info: context.info.clone(),
            head_dim,
            device_bytes,
            half,
            marks: [Event::new(true)?, Event::new(true)?, Event::new(false)?],
            lanes: [Stream::new()?, Stream::new()?],
            memories,
            kernels,
            gemm: Gemm::new(GEMM_WORKSPACE)?,
            context,
        };
        bed.scatter()?;
        let (from, to) = (bed.device(0, 2 * half), bed.host(0, 2 * half));
        bed.memories.copy(from, to, bed.lanes[0].raw())?;
        bed.lanes[0].synchronize()?;
        Ok(bed)
    }

    /// The device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Which kernel computes prefill attention.
    pub fn prefill_kernel(&self) -> PrefillKernel {
        self.kernels.prefill()
    }

    /// Bytes of device memory in use that are not this bed's: the context, the kernels, and other processes.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    pub fn overhead_bytes(&self) -> Result<u64, CudaError> {
        self.context.enter()?;
        let (free, total) = memory()?;
        Ok(total.saturating_sub(free).saturating_sub(self.device_bytes))
    }

    /// Bytes per second of copies of `bytes` each between pinned memory and the device, back to back: those of one
    /// way, or of each way while both run.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When a copy is empty or larger than half the host's memory.
    pub fn link(&mut self, way: Way, bytes: u64) -> Result<f64, CudaError> {
        let count = self.half / bytes;
        assert!(bytes > 0 && count > 0, "{} bytes cannot be copied {bytes} at a time", self.half);
        let [near, far] = [0, 1].map(|i| self.lanes[i].raw());
        let seconds = self.time(|bed| {
            for at in (0..count).map(|i| i * bytes) {
                if way != Way::Out {
                    bed.memories.copy(bed.host(at, bytes), bed.device(at, bytes), near)?;
                }
                if way != Way::In {
                    let to = bed.host(bed.half + at, bytes);
                    bed.memories.copy(bed.device(bed.half + at, bytes), to, far)?;
                }
            }
            Ok(())
        })?;
        Ok((count * bytes) as f64 / seconds)
    }

    /// Bytes per second of a copy within the device, those read and those written.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    pub fn device_copy(&mut self) -> Result<f64, CudaError> {
        let bytes = self.device_bytes / 2;
        let [from, to] = [0, bytes].map(|offset| self.memories.pointer(self.device(offset, bytes)));
        let seconds = self.time(|bed| bed.copy_within(from, to, bytes))?;
        Ok(2.0 * bytes as f64 / seconds)
    }

    /// A copy within the device, of a range that was taken from it to another.
    fn copy_within(&self, from: Pointer, to: Pointer, bytes: u64) -> Result<(), CudaError> {
        // SAFETY: both ranges are of the allocation, which outlives the stream.
        unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.lanes[0].raw()) }
            .result()
            .named("cuMemcpyDtoDAsync")
    }

    /// Median seconds of each of `count` things, which `time` measures. They take turns, so that the clock, which falls
    /// as the device warms, is the same for all.
    fn in_turns(
        &mut self,
        count: usize,
        mut time: impl FnMut(&mut Self, usize) -> Result<Duration, CudaError>,
    ) -> Result<Vec<f64>, CudaError> {
        self.context.enter()?;
        let mut times = vec![Vec::new(); count];
        let mut total = Duration::ZERO;
        while times[0].len() < TURNS.0 || (total < COMPARED && times[0].len() < TURNS.1) {
            for (index, times) in times.iter_mut().enumerate() {
                let time = time(self, index)?;
                total += time;
                times.push(time.as_secs_f64());
            }
        }
        Ok(times.iter().map(|times| median(times).max(1e-9)).collect())
    }

    /// Time of what `run` puts on the first stream, all of it there when the first begins.
    fn timed(
        &mut self,
        mut run: impl FnMut(&mut Self) -> Result<(), CudaError>,
    ) -> Result<Duration, CudaError> {
        self.kernels.delay(self.lanes[0].raw(), AHEAD_NS)?;
        self.once(&mut run)
    }

    /// Median seconds of what `run` puts on the streams, over fresh values.
    fn time(&mut self, mut run: impl FnMut(&mut Self) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.context.enter()?;
        self.scatter()?;
        for _ in 0..2 {
            self.once(&mut run)?;
        }
        let (mut times, mut total) = (Vec::new(), Duration::ZERO);
        while times.len() < TIMES.0 || (total < ENOUGH && times.len() < TIMES.1) {
            let time = self.once(&mut run)?;
            total += time;
            times.push(time);
        }
        times.sort();
        Ok(times[times.len() / 2].as_secs_f64().max(1e-9))
    }

    /// The second stream starts no sooner than the first, and the first ends no sooner than the second.
    fn once(
        &mut self,
        run: &mut impl FnMut(&mut Self) -> Result<(), CudaError>,
    ) -> Result<Duration, CudaError> {
        self.lanes[0].record(&self.marks[0])?;
        self.lanes[1].wait(&self.marks[0])?;
        run(self)?;
        let ([near, far], [begin, end, other]) = (&self.lanes, &self.marks);
        far.record(other)?;
        near.wait(other)?;
        near.record(end)?;
        near.synchronize()?;
        end.since(begin)
    }

    /// Fills the device's memory with normal values anew.
    fn scatter(&self) -> Result<(), CudaError> {
        let all = self.memories.pointer(self.device(0, self.device_bytes));
        let law = SyntheticKv::new(0, 0, Half::Key);
        self.kernels.synthetic_kv(self.lanes[0].raw(), law, 0, all, self.device_bytes / 2)?;
        self.lanes[0].synchronize()
    }

    /// Writes all of a range of the device's memory.
    fn put(&self, span: Span, bytes: &[u8]) -> Result<(), CudaError> {
        self.memories.put(span, bytes)
    }

    fn device(&self, offset: u64, bytes: u64) -> Span {
        Span { memory: Memory::Device, offset, bytes }
    }

    fn host(&self, offset: u64, bytes: u64) -> Span {
        Span { memory: Memory::Host, offset, bytes }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // What follows needs the context on this thread; without it everything is gone already.
        let _ = self.context.enter();
    }
}

/// Hands out the device's memory from its start.
struct Ranges<'a> {
    memories: &'a Memories,
    end: u64,
}

impl<'a> Ranges<'a> {
    fn new(memories: &'a Memories) -> Self {
        Self { memories, end: 0 }
    }

    fn take(&mut self, bytes: u64) -> Pointer {
        self.memories.pointer(self.span(bytes))
    }

    fn span(&mut self, bytes: u64) -> Span {
        let span = Span { memory: Memory::Device, offset: self.end, bytes };
        self.end += bytes.next_multiple_of(ALIGN);
        span
    }
}
