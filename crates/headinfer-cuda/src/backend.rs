//! The backend: puts a schedule's commands on three streams in the schedule's order, with its events and no others.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use headinfer_core::backend::{Backend, BackendError, Stats, Timed, copy_overlap};
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::plan::{
    Command, DECODE_ROWS, DeviceKind, Lane, Memory, Plan, RegionId, Role, STEPS_IN_FLIGHT, Schedule, Span,
};
use headinfer_core::units::Bytes;
use headinfer_core::watch::Watch;

use crate::OpenError;
use crate::arena::{DeviceArena, Memories};
use crate::attend_host;
use crate::device::{Context, DeviceInfo, memory};
use crate::error::{CudaError, Named};
use crate::exec::Executor;
use crate::gemm::Gemm;
use crate::handover::Handover;
use crate::launch::attention_prefill::PrefillKernel;
use crate::launch::{HEADS_MAX, Kernels, product};
use crate::log::Log;
use crate::past;
use crate::slab::{Driver, Growth, HostSlab};
use crate::stream::{Event, Pool, Stream};
use crate::watch::{Flight, Flights};
use crate::weights::{self, CudaWeights};

/// Widest head the attention kernels take.
const HEAD_DIM_MAX: usize = 256;
/// Longest delay of a command, when delays are asked for.
const DELAY_NS_MAX: u64 = 50_000;

/// How a CUDA backend runs.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Which device.
    pub ordinal: usize,
    /// Where compiled kernels are kept; `None` compiles them at every start.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of host memory that may still be taken, 0 when nobody tells: asked before each piece that is.
    pub host_left: Option<fn() -> u64>,
    /// Fill all memory with NaN first, so that a read before a write cannot go unseen (tests).
    pub poison: bool,
    /// Delay commands at random, from this seed: what events do not order then shows (tests).
    pub delays: Option<u64>,
    /// Threads that attend to the heads which the plan gives to the CPU; 0 means all cores but one.
    pub host_threads: usize,
    /// Which kernel computes prefill attention, instead of [`DeviceInfo::prefill_kernel`].
    pub prefill: Option<PrefillKernel>,
}

/// The CUDA backend of one plan.
pub struct Cuda {
    failed: Option<String>,
    log: Log,
    /// By turn: who looks on asks for those of a step while the next is put on the lanes.
    events: [Pool; STEPS_IN_FLIGHT],
    flights: Arc<Flights>,
    stamps: Pool,
    signallers: Vec<usize>,
    /// The stamp each command starts at.
    starts: Vec<usize>,
    step_start: Event,
    done: [Event; STEPS_IN_FLIGHT],
    ends: [Event; 2],
    steps: usize,
    delays: Option<u64>,
    stats: Stats,
    /// Free device memory once the context was made.
    free_before: u64,
    /// The least of it seen so far.
    free_least: u64,
    timeline: Vec<Timed>,
    keep_timeline: bool,
    logit_rows: usize,
    // Fields are dropped in order: what waits for the device, then what it uses, then the context.
    lanes: [Stream; 3],
    host: Option<Handover>,
    executor: Executor,
    context: Context,
}

impl Cuda {
    /// Opens the device, compiles or finds the kernels, allocates everything `plan` asks for, and fills in the
    /// weights.
    ///
    /// # Errors
    /// [`OpenError`] when the device or a library is missing, memory is refused, or the plan or the weights are
    /// of a kind that this backend does not run.
    pub fn open(plan: Arc<Plan>, weights: CudaWeights, options: &CudaOptions) -> Result<Self, OpenError> {
        check(&plan)?;
        weights.check(&plan)?;
        let context = Context::open(options.ordinal)?;
        context.enter()?;
        let (free, _) = memory()?;
        let bytes = Bytes(plan.device_bytes());
        Self::build(plan, weights, options, context, free).map_err(|error| match error {
            // Streams, kernels and cuBLASLt take memory beside the arena.
            OpenError::Cuda(error) if error.is_out_of_memory() && free < bytes.0 => {
                OpenError::DeviceMemory { bytes, free: Bytes(free) }
            }
            error => error,
        })
    }

    fn build(
        plan: Arc<Plan>,
        weights: CudaWeights,
        options: &CudaOptions,
        context: Context,
        free_before: u64,
    ) -> Result<Self, OpenError> {
        let layout = plan.layout();
        let device = DeviceArena::new(layout.bytes(Memory::Device), options.poison)?;
        let growth = Growth::new(layout.bytes(Memory::Host), layout.host_extent(0), options.poison);
        let driver = Driver { context: Some(context.handle()), left: options.host_left };
        let host = HostSlab::growing(growth, Arc::new(driver))?;
        let memories = Arc::new(Memories { device, host });
        let head_dim = plan.spec.head_dim;
        let prefill = options.prefill.unwrap_or_else(|| context.info.prefill_kernel(head_dim));
        let kernels = Kernels::load(&context.info, head_dim, prefill, options.cache_dir.as_deref())?;
        let lanes = [Stream::new()?, Stream::new()?, Stream::new()?];
        weights::fill(&plan, &weights, &memories, &kernels, lanes[0].raw())?;
        let gemm = Gemm::new(layout.region_bytes(RegionId::GemmWorkspace))?;
        let inv_freq = plan.spec.rope.inv_freq(plan.spec.head_dim);
        let host = Handover::open(&plan, &memories, options.host_threads)?;
        let stats = Stats { host_bytes: memories.host.bytes(), ..Stats::default() };
        let mut executor =
            Executor { plan, memories, kernels, gemm, inv_freq, early: context.info.starts_early() };
        executor.clear_pack_fault();
        executor.warm(lanes[0].raw())?;
        lanes[0].synchronize()?;
        let mut this = Self {
            failed: None,
            log: Log::default(),
            events: [Pool::new(false), Pool::new(false)],
            flights: Arc::new(Flights::new(context.handle())),
            stamps: Pool::new(true),
            signallers: Vec::new(),
            starts: Vec::new(),
            step_start: Event::new(true)?,
            done: [Event::new(false)?, Event::new(false)?],
            ends: [Event::new(false)?, Event::new(false)?],
            steps: 0,
            delays: options.delays,
            stats,
            free_before,
            free_least: u64::MAX,
            timeline: Vec::new(),
            keep_timeline: false,
            logit_rows: 0,
            lanes,
            host,
            executor,
            context,
        };
        this.measure()?;
        Ok(this)
    }

    /// The device it runs on.
    pub fn device(&self) -> &DeviceInfo {
        &self.context.info
    }

    /// Bytes of either memory, once all work so far is done (tests and tools).
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the range leaves its memory.
    pub fn read(&self, span: Span) -> Result<Vec<u8>, CudaError> {
        self.finish()?;
        let memories = &self.executor.memories;
        if span.memory == Memory::Host {
            memories.host.wait(span.offset + span.bytes)?;
            return Ok(memories.host::<u8>(span).to_vec());
        }
        let mut bytes = vec![0u8; span.bytes as usize];
        // SAFETY: the range is inside the arena, as `pointer` asserts.
        unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut bytes, memories.pointer(span)) }
            .named("cuMemcpyDtoH")?;
        Ok(bytes)
    }

    /// Writes bytes of either memory, once all work so far is done (tests and tools).
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the range leaves its memory, or is not as long as `bytes`.
    pub fn write(&mut self, span: Span, bytes: &[u8]) -> Result<(), CudaError> {
        self.finish()?;
        assert_eq!(span.bytes, bytes.len() as u64, "a range is written whole");
        let memories = &self.executor.memories;
        if span.memory == Memory::Host {
            memories.host::<u8>(span).copy_from_slice(bytes);
            return Ok(());
        }
        memories.put(span, bytes)
    }

    /// Waits until the host's memory of the first `rows` rows is there.
    fn ready(&self, rows: usize) -> Result<(), CudaError> {
        self.executor.memories.host.wait(self.executor.plan.layout().host_extent(rows))
    }

    fn finish(&self) -> Result<(), CudaError> {
        self.context.enter()?;
        self.lanes.iter().try_for_each(Stream::synchronize)?;
        self.host.as_ref().map_or(Ok(()), Handover::check)
    }

    fn lane(&self, lane: Lane) -> &Stream {
        match lane {
            Lane::Compute => &self.lanes[0],
            Lane::In => &self.lanes[1],
            Lane::Out => &self.lanes[2],
            Lane::Host => unreachable!("no stream: its commands run on the CPU"),
        }
    }

    fn step(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), CudaError> {
        self.context.enter()?;
        self.log.begin(schedule.step);
        // Here and not within the step: nothing is on a lane that could need it.
        self.ready(schedule.step.past + schedule.step.rows)?;
        self.begin(schedule, ids)?;
        for (index, command) in schedule.commands.iter().enumerate() {
            self.log.command(Some(command));
            self.command(schedule, index, command)?;
        }
        self.log.command(None);
        self.end()?;
        // Where times are kept, other events stand for the plan's.
        if !self.keep_timeline {
            let (turn, step) = ((self.steps - 1) % STEPS_IN_FLIGHT, self.steps);
            let flight =
                Flight::of(schedule, &self.executor.plan, step, &self.events[turn], &self.done[turn]);
            self.flights.add(turn, flight);
        }
        let cost = self.executor.plan.step_cost(&schedule.step);
        for lane in Lane::ALL {
            self.stats.bytes[lane.index()] += cost.lane_bytes(lane) as u64;
        }
        self.logit_rows = schedule.step.logit_rows;
        // Drivers and libraries take memory when work is put on a stream, not when it runs.
        self.measure()?;
        if self.keep_timeline {
            self.read_timeline(schedule)?;
        }
        Ok(())
    }

    /// Puts the ids on their way, and lets no lane start before the last step is done.
    fn begin(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), CudaError> {
        let turn = self.steps % STEPS_IN_FLIGHT;
        self.events[turn].grow(schedule.events)?;
        if self.steps >= STEPS_IN_FLIGHT {
            // The place of these ids was read by the step before the last.
            self.done[turn].synchronize()?;
            self.log.ended(STEPS_IN_FLIGHT);
        }
        self.flights.forget(turn);
        let plan = &self.executor.plan;
        let from = plan.host_ids_operand(ids.len(), turn).as_slice()[0].span;
        let to = plan.ids_operand(ids.len()).as_slice()[0].span;
        self.executor.memories.host::<u32>(from).copy_from_slice(ids);
        if self.steps > 0 {
            let last = &self.done[(self.steps - 1) % STEPS_IN_FLIGHT];
            self.lanes.iter().try_for_each(|lane| lane.wait(last))?;
        }
        let compute = &self.lanes[0];
        if let Some(host) = &mut self.host {
            host.begin(schedule, &self.executor.kernels, compute.raw(), self.keep_timeline)?;
        }
        if self.keep_timeline {
            self.stamps.grow(2 * schedule.commands.len())?;
            self.signallers.resize(schedule.events, 0);
            for (index, command) in schedule.commands.iter().enumerate() {
                command.signals.iter().for_each(|event| self.signallers[event.0 as usize] = index);
            }
            self.starts = starts(schedule);
            compute.record(&self.step_start)?;
        }
        let (from, to) = (self.executor.memories.mapped(from)?, self.executor.memories.pointer(to));
        self.executor.kernels.take_ids(compute.raw(), from, (to, ids.len()))
    }

    fn command(&mut self, schedule: &Schedule, index: usize, command: &Command) -> Result<(), CudaError> {
        if command.lane == Lane::Host {
            return self.command_of_host(schedule, index, command);
        }
        for event in &command.waits {
            self.wait(command.lane, *event)?;
        }
        let lane = self.lane(command.lane);
        if self.keep_timeline && self.starts[index] == 2 * index {
            lane.record(self.stamps.get(2 * index))?;
        }
        let stream = lane.raw();
        if let Some(seed) = &mut self.delays {
            self.executor.kernels.delay(stream, next_random(seed) % DELAY_NS_MAX)?;
        }
        self.executor.execute(&schedule.step, &command.op, stream, command.waits.is_empty())?;
        let lane = self.lane(command.lane);
        match command.signals {
            _ if self.keep_timeline => lane.record(self.stamps.get(2 * index + 1)),
            Some(event) => lane.record(self.event(event)),
            None => Ok(()),
        }?;
        match (&mut self.host, command.signals) {
            (Some(host), Some(event)) => {
                host.signalled(event, &self.executor.kernels, (command.lane, stream))
            }
            _ => Ok(()),
        }
    }

    fn command_of_host(
        &mut self,
        schedule: &Schedule,
        index: usize,
        command: &Command,
    ) -> Result<(), CudaError> {
        let Executor { plan, memories, .. } = &self.executor;
        let mut work = attend_host::work(plan, memories, schedule.step, &command.op);
        if let Some(seed) = &mut self.delays {
            let delay = Duration::from_nanos(next_random(seed) % DELAY_NS_MAX);
            work = Box::new(move || {
                std::thread::sleep(delay);
                work();
            });
        }
        let host = self.host.as_mut().expect("a plan with commands for the CPU has a lane for them");
        host.put(index, command, work);
        Ok(())
    }

    /// Lets what comes next on `lane` wait for an event.
    fn wait(&mut self, lane: Lane, event: headinfer_core::plan::Event) -> Result<(), CudaError> {
        let stream = self.lane(lane).raw();
        if let Some(host) = &mut self.host
            && host.wait(event, &self.executor.kernels, (lane, stream))?
        {
            return Ok(());
        }
        self.lane(lane).wait(self.event(event))
    }

    /// What stands for an event of the step: where times are kept, the stamp at the end of the command that signals
    /// it, as each event more is time between two commands.
    fn event(&self, event: headinfer_core::plan::Event) -> &Event {
        match self.keep_timeline {
            true => self.stamps.get(2 * self.signallers[event.0 as usize] + 1),
            false => self.events[self.steps % STEPS_IN_FLIGHT].get(event.0 as usize),
        }
    }

    /// The step is done when all lanes are.
    fn end(&mut self) -> Result<(), CudaError> {
        let [compute, others @ ..] = &self.lanes;
        for (lane, end) in others.iter().zip(&self.ends) {
            lane.record(end)?;
            compute.wait(end)?;
        }
        if let Some(host) = &mut self.host {
            host.end(&self.executor.kernels, compute.raw())?;
        }
        compute.record(&self.done[self.steps % STEPS_IN_FLIGHT])?;
        self.steps += 1;
        Ok(())
    }

    fn read_timeline(&mut self, schedule: &Schedule) -> Result<(), CudaError> {
        self.finish()?;
        let time = |stamp| self.stamps.get(stamp).since(&self.step_start);
        let mut times = Vec::with_capacity(schedule.commands.len());
        for (index, _) in schedule.commands.iter().enumerate().filter(|(_, c)| c.lane != Lane::Host) {
            times.push((index, time(self.starts[index])?, time(2 * index + 1)?));
        }
        if let Some(host) = &self.host {
            let since = |event: headinfer_core::plan::Event| time(2 * self.signallers[event.0 as usize] + 1);
            times.extend(host.times(schedule, since)?);
            times.sort_by_key(|(index, ..)| *index);
        }
        self.timeline.clear();
        for (command, start, end) in times {
            let Command { lane, op, .. } = &schedule.commands[command];
            self.stats.busy[lane.index()] += end.saturating_sub(start);
            self.timeline.push(Timed { command, lane: *lane, name: op.name(), start, end });
        }
        let (copy, hidden) = copy_overlap(&self.timeline);
        self.stats.copy += copy;
        self.stats.copy_hidden += hidden.min(copy);
        Ok(())
    }

    fn read_logits(&mut self) -> Result<Span, CudaError> {
        self.context.enter()?;
        let plan = &self.executor.plan;
        let to = plan.host_logits_operand(self.logit_rows).as_slice()[0].span;
        let from = plan.logits_operand(self.logit_rows).as_slice()[0].span;
        debug_assert_eq!(plan.logits_operand(self.logit_rows).as_slice()[0].role, Role::Logits);
        self.executor.memories.copy(from, to, self.lanes[0].raw())?;
        self.lanes[0].synchronize()?;
        self.host.as_ref().map_or(Ok(()), Handover::check)?;
        self.log.ended(0);
        Ok(to)
    }

    /// Device memory of the whole process, asked for whenever the device has less left than ever before. Without
    /// NVML an estimate: the plan's figure for the context, and what was taken since it was made.
    fn measure(&mut self) -> Result<(), CudaError> {
        let (free, _) = memory()?;
        if free < self.free_least {
            self.free_least = free;
            let context = self.executor.plan.request.machine.device_overhead;
            let estimate = || context + self.free_before.saturating_sub(free);
            let bytes = self.context.meter.process_bytes().unwrap_or_else(estimate);
            self.stats.device_bytes = self.stats.device_bytes.max(bytes);
        }
        Ok(())
    }

    /// # Errors
    /// When a step met a unit of the store that had no plane left: all that was computed from it is of no use.
    fn check_pack(&self) -> Result<(), BackendError> {
        self.executor.pack_fault().map_or(Ok(()), |unit| Err(self.executor.plan.no_plane(unit)))
    }

    /// A device that failed once is not used again.
    fn guard<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, CudaError>) -> Result<T, BackendError> {
        if let Some(failed) = &self.failed {
            return Err(BackendError(format!("the GPU failed before: {failed}")));
        }
        run(self).map_err(|error| {
            let report = self.log.report(&error);
            self.failed = Some(error.to_string());
            BackendError(report)
        })
    }
}

impl Backend for Cuda {
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError> {
        assert_eq!(ids.len(), schedule.step.rows, "one id per row");
        self.check_pack()?;
        self.guard(|this| this.step(schedule, ids))
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        if self.logit_rows == 0 {
            self.guard(|this| this.finish())?;
            self.check_pack()?;
            return Ok(&[]);
        }
        let span = self.guard(Self::read_logits)?;
        self.check_pack()?;
        Ok(self.executor.memories.host::<f32>(span))
    }

    fn fill_past(&mut self, rows: usize, seed: u64) -> Result<(), BackendError> {
        self.guard(|this| {
            this.finish()?;
            past::fill(&this.executor, rows, seed, this.lanes[0].raw())?;
            this.finish()
        })?;
        self.check_pack()
    }

    fn read_rows(&mut self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        self.check_pack()?;
        self.guard(|this| {
            this.ready(rows.end)?;
            this.finish()?;
            this.executor.read_rows(rows, held, to)
        })
    }

    fn write_rows(&mut self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        self.check_pack()?;
        let full = self.guard(|this| {
            this.ready(rows.end)?;
            this.finish()?;
            this.executor.write_rows(rows, from)
        })?;
        full.map_or(Ok(()), |unit| Err(self.executor.plan.no_plane(unit)))
    }

    fn numerics(&self) -> Option<String> {
        let DeviceInfo { name, sm, multiprocessors, driver, nvrtc, .. } = &self.context.info;
        // cuBLASLt chooses its kernels by version and device.
        let cublas = crate::gemm::version();
        let library = format!("driver {driver} nvrtc {nvrtc} cublaslt {cublas}");
        let prefill = self.executor.kernels.prefill().name();
        // Chunks as short as a step of decode are attended to by the CPU too, where the plan gives it heads.
        let knobs = self.executor.plan.knobs();
        let cpu = match knobs.host_heads > 0 && knobs.chunk <= DECODE_ROWS {
            true => format!(" host {} {}", knobs.host_heads, Isa::detect().name()),
            false => String::new(),
        };
        let kv = self.executor.plan.lossy().map(|kv| format!(" {kv}")).unwrap_or_default();
        Some(format!("cuda {name} {sm} {multiprocessors} {prefill} {library}{cpu}{kv}"))
    }

    /// Those of the product kernels: cuBLASLt, which takes more, chooses its own by their number.
    fn rows_alike(&self) -> usize {
        product::ROWS_MAX.min(DECODE_ROWS)
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn watch(&self) -> Option<Arc<dyn Watch>> {
        Some(self.flights.clone())
    }

    fn record_timeline(&mut self, on: bool) {
        self.keep_timeline = on;
    }

    fn timeline(&self) -> &[Timed] {
        &self.timeline
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        self.flights.close();
        // What follows needs the context on this thread; without it everything is gone already.
        let _ = self.context.enter();
    }
}

/// Plans that this backend does not run.
pub(crate) fn check(plan: &Plan) -> Result<(), OpenError> {
    let (spec, k) = (&plan.spec, plan.knobs());
    let refuse = |text: String| Err(OpenError::Plan(text));
    if k.device != DeviceKind::Cuda {
        return refuse("the plan was made for the CPU".into());
    }
    if k.heads_per_group > HEADS_MAX {
        return refuse(format!("--heads-per-group must be at most {HEADS_MAX}, not {}", k.heads_per_group));
    }
    if spec.head_dim > HEAD_DIM_MAX {
        return refuse(format!("heads of {} elements; at most {HEAD_DIM_MAX} work on CUDA", spec.head_dim));
    }
    for (name, size) in
        [("head_dim", spec.head_dim), ("hidden_size", spec.hidden), ("intermediate_size", spec.intermediate)]
    {
        if size % 8 != 0 {
            return refuse(format!("{name} is {size}; CUDA needs a multiple of 8: use --device cpu"));
        }
    }
    Ok(())
}

/// The stamp at which each command starts, `2 * index` for one of its own. A command that waits for nothing starts when
/// the one before it on its lane has ended: each stamp more is time between two commands.
fn starts(schedule: &Schedule) -> Vec<usize> {
    let mut last: [Option<usize>; Lane::ALL.len()] = Default::default();
    let start = |(index, command): (usize, &Command)| {
        let before = last[command.lane.index()].replace(index);
        before.filter(|_| command.waits.is_empty()).map_or(2 * index, |before| 2 * before + 1)
    };
    schedule.commands.iter().enumerate().map(start).collect()
}

/// splitmix64 (Steele, Lea and Flood, 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
