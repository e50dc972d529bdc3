//! The plan's events where one side is the Host lane: flags in pinned memory. A stream raises one by a kernel behind
//! what is waited for, and is held by a kernel that watches one: the host's main thread never waits within a step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUstream;
use headinfer_core::plan::{Command, Event, Lane, Plan, Schedule};

use crate::OpenError;
use crate::arena::{Memories, Pointer};
use crate::error::CudaError;
use crate::host::{Flag, HostLane, Job, Ran, Ticket};
use crate::launch::Kernels;

const LANES: usize = Lane::ALL.len();

/// The Host lane of a backend, and who waits for what.
pub(crate) struct Handover {
    // Dropped first: its thread looks at the flags.
    lane: HostLane,
    flags: [(Flag, Pointer); LANES],
    /// The last number that each lane's flag was or will be raised to.
    numbers: [u32; LANES],
    /// Which lane's flag, at which number, an event of the step is.
    events: Vec<Option<(Lane, u32)>>,
    /// Events of streams that commands of the Host lane wait for.
    wanted: Vec<bool>,
    /// The start of the step.
    start: u32,
    /// The last command of the Host lane that the compute lane waits for.
    awaited: u32,
    /// Whether it is kept when commands of this step run.
    timed: bool,
    _memories: Arc<Memories>,
}

impl Handover {
    /// Of a plan that gives heads to the CPU; `threads` of 0 are all cores but one.
    pub(crate) fn open(
        plan: &Plan,
        memories: &Arc<Memories>,
        threads: usize,
    ) -> Result<Option<Self>, OpenError> {
        if plan.layout().host_attended_total() == 0 {
            return Ok(None);
        }
        let mut flags = Vec::with_capacity(LANES);
        for lane in Lane::ALL {
            let span = plan.layout().flag(lane);
            let number = &mut memories.host::<u32>(span)[0];
            *number = 0;
            // SAFETY: from here on only atomic operations and the device touch it; `memories` outlives the lane.
            flags.push((unsafe { Flag::new(number) }, memories.mapped(span)?));
        }
        let threads = if threads == 0 { threads_beside() } else { threads };
        let lane = HostLane::start(threads).map_err(OpenError::Threads)?;
        Ok(Some(Self {
            lane,
            flags: flags.try_into().unwrap_or_else(|_| unreachable!("a flag for each lane")),
            numbers: [0; LANES],
            events: Vec::new(),
            wanted: Vec::new(),
            start: 0,
            awaited: 0,
            timed: false,
            _memories: memories.clone(),
        }))
    }

    /// A step starts on `compute`, once the last one is done.
    pub(crate) fn begin(
        &mut self,
        schedule: &Schedule,
        kernels: &Kernels,
        compute: CUstream,
        timed: bool,
    ) -> Result<(), CudaError> {
        self.events = vec![None; schedule.events];
        self.wanted = vec![false; schedule.events];
        let mut of_host = schedule.commands.iter().filter(|c| c.lane == Lane::Host).peekable();
        if of_host.peek().is_none() {
            return Ok(());
        }
        of_host.flat_map(|c| &c.waits).for_each(|event| self.wanted[event.0 as usize] = true);
        self.timed = timed;
        self.lane.take_times();
        self.start = self.raise(Lane::Compute, kernels, compute)?;
        Ok(())
    }

    /// Holds `stream` until `event`; false when it is another stream's, for which the caller waits.
    pub(crate) fn wait(
        &mut self,
        event: Event,
        kernels: &Kernels,
        (lane, stream): (Lane, CUstream),
    ) -> Result<bool, CudaError> {
        let Some((Lane::Host, number)) = self.events[event.0 as usize] else { return Ok(false) };
        if lane == Lane::Compute {
            self.awaited = number;
        }
        kernels.await_flag(stream, self.flags[Lane::Host.index()].1, number)?;
        Ok(true)
    }

    /// `event` was signalled on `stream`: the CPU is told, where it waits for it.
    pub(crate) fn signalled(
        &mut self,
        event: Event,
        kernels: &Kernels,
        (lane, stream): (Lane, CUstream),
    ) -> Result<(), CudaError> {
        if self.wanted[event.0 as usize] {
            let number = self.raise(lane, kernels, stream)?;
            self.events[event.0 as usize] = Some((lane, number));
        }
        Ok(())
    }

    /// Puts a command on the Host lane.
    pub(crate) fn put(&mut self, index: usize, command: &Command, run: Box<dyn FnOnce() + Send>) {
        let ticket = |lane: Lane, number| Ticket { flag: self.flags[lane.index()].0, number };
        let of_event =
            |event: &Event| self.events[event.0 as usize].map(|(lane, number)| ticket(lane, number));
        let mut waits = vec![ticket(Lane::Compute, self.start)];
        waits.extend(command.waits.iter().filter_map(of_event));
        let number = self.numbers[Lane::Host.index()].wrapping_add(1);
        let done = ticket(Lane::Host, number);
        self.numbers[Lane::Host.index()] = number;
        if let Some(event) = command.signals {
            self.events[event.0 as usize] = Some((Lane::Host, number));
        }
        self.lane.put(Job { command: index, waits, done, timed: self.timed, run });
    }

    /// The step is done on `compute` when it is on the Host lane.
    pub(crate) fn end(&mut self, kernels: &Kernels, compute: CUstream) -> Result<(), CudaError> {
        let (_, flag) = self.flags[Lane::Host.index()];
        let last = self.numbers[Lane::Host.index()];
        if self.awaited != last {
            self.awaited = last;
            kernels.await_flag(compute, flag, last)?;
        }
        Ok(())
    }

    /// # Errors
    /// When a command of the Host lane could not be done.
    pub(crate) fn check(&self) -> Result<(), CudaError> {
        let failed = self.lane.failure();
        failed.map_or(Ok(()), |why| Err(CudaError::call("attention on the CPU", why)))
    }

    /// When the Host lane's commands of the last step ran, by the device's clock. `since` tells when an event of a stream
    /// came; none of the commands began before what it waited for, and the one that began soonest after is taken to have
    /// begun at once.
    pub(crate) fn times(
        &self,
        schedule: &Schedule,
        since: impl Fn(Event) -> Result<Duration, CudaError>,
    ) -> Result<Vec<(usize, Duration, Duration)>, CudaError> {
        let ran = self.lane.take_times();
        let mut zero: Option<Instant> = None;
        for Ran { command, begun, .. } in &ran {
            let of_stream = |event: &&Event| !matches!(self.events[event.0 as usize], Some((Lane::Host, _)));
            for event in schedule.commands[*command].waits.iter().filter(of_stream) {
                if let Some(at) = begun.checked_sub(since(*event)?) {
                    zero = Some(zero.map_or(at, |zero| zero.min(at)));
                }
            }
        }
        let time = |at: Instant| zero.map_or(Duration::ZERO, |zero| at.saturating_duration_since(zero));
        Ok(ran.into_iter().map(|r| (r.command, time(r.begun), time(r.ended))).collect())
    }

    fn raise(&mut self, lane: Lane, kernels: &Kernels, stream: CUstream) -> Result<u32, CudaError> {
        let number = &mut self.numbers[lane.index()];
        *number = number.wrapping_add(1);
        kernels.raise_flag(stream, self.flags[lane.index()].1, *number)?;
        Ok(*number)
    }
}

/// Threads that attend beside the link: one core is left to it, and to whoever puts commands on the lanes.
pub(crate) fn threads_beside() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() - 1).max(1))
}
