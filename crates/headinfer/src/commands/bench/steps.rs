//! Running steps under measurement: how long, how much attention in how much of that time, what was copied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use headinfer_core::backend::{Stats, Timed};
use headinfer_core::cpu::measure::median;
use headinfer_core::engine::sample::greedy_margin;
use headinfer_core::engine::{Progress, Session};
use headinfer_core::plan::{DeviceKind, Lane, Op, Plan, Request, Schedule, Step};
use serde::Serialize;

use super::ceilings::{Ceilings, Meter, Reached};
use super::profile::Profile;
use super::report::Spread;
use crate::args::{Environment, MeasureArgs};
use crate::model_source::{Model, ModelSource};
use crate::progress::Prefill;
use crate::{device, interrupt, open, summary};

/// A model opened for measurement, and what measures the machine beside it.
pub(super) struct Bench {
    pub(super) session: Session,
    meter: Option<Meter>,
}

impl Bench {
    /// Loads, plans what `ask` makes of the flags' request, and opens.
    ///
    /// # Errors
    /// When the model cannot be loaded, nothing fits, or the system refuses memory.
    pub(super) fn open(
        args: &MeasureArgs,
        environment: &Environment,
        ask: impl FnOnce(Request) -> Request,
    ) -> Result<Self> {
        let (model, plan) = prepare(args, environment, ask)?;
        Self::of_plan(&model, plan, None, args, environment)
    }

    /// As [`Bench::open`], with the machine's ceilings measured before.
    ///
    /// # Errors
    /// As [`Bench::open`], and when the ceilings cannot be measured.
    pub(super) fn metered(args: &MeasureArgs, environment: &Environment) -> Result<Self> {
        let (model, plan) = prepare(args, environment, |request| request)?;
        let meter = Meter::start(&plan, args.engine.threads, environment.cache.as_deref())?;
        Self::of_plan(&model, plan, Some(meter), args, environment)
    }

    fn of_plan(
        model: &Model,
        plan: Arc<Plan>,
        meter: Option<Meter>,
        args: &MeasureArgs,
        environment: &Environment,
    ) -> Result<Self> {
        let mut session = open::session(model, plan, &args.engine, environment.cache.as_deref())?;
        session.backend_mut().record_timeline(true);
        Ok(Self { session, meter })
    }

    /// Forgets the ceilings of the steps so far.
    pub(super) fn begin(&mut self) {
        self.meter.iter_mut().for_each(Meter::begin);
    }

    /// Frees everything and measures the ceilings once more. The statistics are the backend's at its end.
    ///
    /// # Errors
    /// When the ceilings cannot be measured.
    ///
    /// # Panics
    /// When it is not metered.
    pub(super) fn finish(self) -> Result<(Arc<Plan>, Stats, Ceilings)> {
        let (plan, stats) = (self.session.plan().clone(), self.session.backend().stats());
        drop(self.session);
        let meter = self.meter.expect("what is reported is metered");
        Ok((plan, stats, meter.finish()?))
    }

    /// A step that is not counted: a GPU loads kernels when they are first used. Leaves the session as it was.
    ///
    /// # Errors
    /// When the engine fails.
    pub(super) fn warm(&mut self, ids: &[u32]) -> Result<()> {
        let (knobs, start) = (self.session.plan().knobs(), self.session.tokens().len());
        if knobs.device == DeviceKind::Cuda {
            let rows = knobs.chunk.min(ids.len());
            self.session.step(&ids[..rows], 1)?;
            self.session.rewind(start);
        }
        Ok(())
    }

    /// Takes in `ids` in steps of at most a chunk. Logits are computed for the last row of the last.
    ///
    /// # Errors
    /// When the engine fails, or Ctrl-C was pressed.
    pub(super) fn prefill(&mut self, ids: &[u32]) -> Result<Measured> {
        let _cooperative = interrupt::cooperative();
        let plan = self.session.plan().clone();
        let start = self.session.tokens().len();
        let steps = steps(&plan, start, ids.len());
        let work: Vec<f64> = steps.iter().map(|s| plan.step_cost(s).floor_s(&plan.request.machine)).collect();
        let all: f64 = work.iter().sum();
        let mut total = Measured::default();
        let (mut bar, mut done) = (Prefill::new(ids.len()), 0.0);
        for (step, work) in steps.iter().zip(&work) {
            let from = step.past - start;
            total.add(self.step(&ids[from..from + step.rows], step.logit_rows)?);
            done += work;
            let left = total.seconds * (all / done - 1.0);
            let remaining = Duration::try_from_secs_f64(left).unwrap_or(Duration::ZERO);
            let elapsed = Duration::from_secs_f64(total.seconds);
            bar.update(&Progress { done: from + step.rows, total: ids.len(), elapsed, remaining });
            if interrupt::requested() {
                return Err(interrupt::interrupted(&format!("after {} tokens", from + step.rows)).into());
            }
        }
        Ok(total)
    }

    /// Decodes `count` greedy tokens after the last step, whose commands are not timed.
    ///
    /// # Errors
    /// When the engine fails, or Ctrl-C was pressed.
    pub(super) fn decode(&mut self, count: usize) -> Result<Decoded> {
        let _cooperative = interrupt::cooperative();
        self.session.backend_mut().record_timeline(false);
        let (mut next, _) = greedy_margin(self.session.backend_mut().logits()?);
        let (mut times, mut ids, mut logits_hash) = (Vec::with_capacity(count), Vec::new(), String::new());
        while times.len() < count {
            ids.push(next);
            let begun = Instant::now();
            let logits = self.session.step(&[next], 1)?;
            (next, _) = greedy_margin(logits);
            logits_hash = summary::hash(logits);
            times.push(begun.elapsed().as_secs_f64());
            if interrupt::requested() {
                return Err(interrupt::interrupted(&format!("after {} tokens", times.len())).into());
            }
        }
        self.session.backend_mut().record_timeline(true);
        Ok(Decoded { ids, seconds: median(&times), spread: Spread::of(&times), logits_hash })
    }

    /// Seconds of one step whose commands are not timed, which costs a little, and the hash of its logits.
    ///
    /// # Errors
    /// When the engine fails.
    pub(super) fn timed(&mut self, ids: &[u32], logit_rows: usize) -> Result<(f64, String)> {
        self.session.backend_mut().record_timeline(false);
        let begun = Instant::now();
        let hash = summary::hash(self.session.step(ids, logit_rows)?);
        let seconds = begun.elapsed().as_secs_f64();
        self.session.backend_mut().record_timeline(true);
        Ok((seconds, hash))
    }

    /// One step, its commands timed.
    ///
    /// # Errors
    /// When the engine fails.
    pub(super) fn step(&mut self, ids: &[u32], logit_rows: usize) -> Result<Measured> {
        let plan = self.session.plan().clone();
        let step = Step { past: self.session.tokens().len(), rows: ids.len(), logit_rows };
        let before = self.session.backend().stats();
        let begun = Instant::now();
        let hash = summary::hash(self.session.step(ids, logit_rows)?);
        let seconds = begun.elapsed().as_secs_f64();
        let mut measured = Measured::default();
        let schedule = plan.schedule(step);
        let timeline = self.session.backend().timeline();
        measured.attention(&plan, &schedule, timeline);
        measured.profile = Profile::of(&plan, &schedule, timeline);
        measured.copies(&before, &self.session.backend().stats());
        if let Some(meter) = &mut self.meter {
            let cost = plan.step_cost(&step);
            meter.after(Reached {
                attention_flops: rate(measured.attention_flop, measured.attention_s),
                kv_bytes_s: rate(measured.kv_bytes, measured.attention_s),
                step_bytes_s: rate(cost.device_bytes + cost.host_bytes, seconds),
            });
        }
        Ok(Measured { steps: vec![step], tokens: ids.len(), seconds, logits_hash: hash, ..measured })
    }
}

fn rate(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

fn prepare(
    args: &MeasureArgs,
    environment: &Environment,
    ask: impl FnOnce(Request) -> Request,
) -> Result<(Model, Arc<Plan>)> {
    let source = ModelSource::parse(&args.model)?;
    let device = device::choose(args.engine.device)?;
    let model = source.find(&environment.hub)?;
    let request = open::request(model.generated_bytes(), device, args.context, &args.engine, environment);
    let plan = open::plan(&model.spec, &ask(request))?;
    Ok((model, plan))
}

/// Steps that take in `rows` tokens after `start`.
fn steps(plan: &Plan, start: usize, rows: usize) -> Vec<Step> {
    let chunk = plan.knobs().chunk;
    let step = |from: usize| {
        let take = chunk.min(rows - from);
        Step { past: start + from, rows: take, logit_rows: usize::from(from + take == rows) }
    };
    (0..rows).step_by(chunk).map(step).collect()
}

/// What some steps did.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pub(super) steps: Vec<Step>,
    pub(super) tokens: usize,
    pub(super) seconds: f64,
    /// Time during which some lane attended.
    pub(super) attention_s: f64,
    pub(super) attention_flop: f64,
    /// K and V that attention read.
    pub(super) kv_bytes: f64,
    /// Of them, those that the CPU read from the host's memory, and the time it took.
    pub(super) host_bytes: f64,
    pub(super) host_s: f64,
    /// Copies to the device, and from it.
    pub(super) to_device: Copied,
    pub(super) to_host: Copied,
    pub(super) copy_s: f64,
    pub(super) copy_hidden_s: f64,
    /// Every command's time.
    pub(super) profile: Profile,
    pub(super) logits_hash: String,
}

/// Greedy tokens after a prefill.
#[derive(Debug, Serialize)]
pub(super) struct Decoded {
    /// What was fed back.
    ids: Vec<u32>,
    /// A token, the median.
    pub(super) seconds: f64,
    #[serde(flatten)]
    pub(super) spread: Spread,
    /// Of the last.
    logits_hash: String,
}

/// Copies of one lane.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) bytes: u64,
    /// While one ran.
    pub(super) seconds: f64,
}

impl Measured {
    pub(super) fn add(&mut self, step: Measured) {
        self.steps.extend(step.steps);
        self.tokens += step.tokens;
        self.seconds += step.seconds;
        self.attention_s += step.attention_s;
        self.attention_flop += step.attention_flop;
        self.kv_bytes += step.kv_bytes;
        self.host_bytes += step.host_bytes;
        self.host_s += step.host_s;
        for (to, from) in [(&mut self.to_device, step.to_device), (&mut self.to_host, step.to_host)] {
            to.bytes += from.bytes;
            to.seconds += from.seconds;
        }
        self.copy_s += step.copy_s;
        self.copy_hidden_s += step.copy_hidden_s;
        self.profile.add(&step.profile);
        self.logits_hash = step.logits_hash;
    }

    fn attention(&mut self, plan: &Plan, schedule: &Schedule, timeline: &[Timed]) {
        // On the CPU device everything lies in the host's memory.
        let all_host = plan.knobs().device == DeviceKind::Cpu;
        let (mut busy, mut host) = (Vec::new(), Vec::new());
        for timed in timeline {
            let op = &schedule.commands[timed.command].op;
            if !matches!(op, Op::Attend { .. } | Op::AttendHost { .. }) {
                continue;
            }
            let cost = plan.command_cost(&schedule.step, op);
            self.attention_flop += cost.attention_flop;
            self.kv_bytes += cost.device_bytes + cost.host_bytes;
            busy.push((timed.start, timed.end));
            if all_host || timed.lane == Lane::Host {
                self.host_bytes += cost.device_bytes + cost.host_bytes;
                host.push((timed.start, timed.end));
            }
        }
        self.attention_s += covered(busy).as_secs_f64();
        self.host_s += covered(host).as_secs_f64();
    }

    fn copies(&mut self, before: &Stats, after: &Stats) {
        let lane = |lane: Lane| Copied {
            bytes: after.bytes[lane.index()] - before.bytes[lane.index()],
            seconds: (after.busy[lane.index()] - before.busy[lane.index()]).as_secs_f64(),
        };
        (self.to_device, self.to_host) = (lane(Lane::In), lane(Lane::Out));
        self.copy_s = (after.copy - before.copy).as_secs_f64();
        self.copy_hidden_s = (after.copy_hidden - before.copy_hidden).as_secs_f64();
    }

    /// Copies while they ran, bytes/s: to the device, or from it where none went there; 0 without copies.
    pub(super) fn link_bytes_s(&self) -> f64 {
        let way = if self.to_device.bytes > 0 { self.to_device } else { self.to_host };
        if way.seconds > 0.0 { way.bytes as f64 / way.seconds } else { 0.0 }
    }

    /// Share of the copies' time during which arithmetic ran too; 1 without copies.
    pub(super) fn hidden(&self) -> f64 {
        if self.copy_s > 0.0 { self.copy_hidden_s / self.copy_s } else { 1.0 }
    }
}

/// Time that some interval covers.
fn covered(mut intervals: Vec<(Duration, Duration)>) -> Duration {
    intervals.sort();
    let (mut total, mut end) = (Duration::ZERO, Duration::ZERO);
    for (from, to) in intervals {
        total += to.saturating_sub(from.max(end));
        end = end.max(to);
    }
    total
}

/// Random token ids.
pub(super) fn random_ids(count: usize, vocab: usize, seed: u64) -> Vec<u32> {
    // Knuth's 64-bit congruential generator (MMIX); its high bits.
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab as u64) as u32
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_once_where_intervals_overlap() {
        let at = |from, to| (Duration::from_secs(from), Duration::from_secs(to));
        assert_eq!(covered(vec![at(4, 6), at(0, 2), at(1, 3), at(5, 5)]).as_secs(), 5);
        assert_eq!(covered(Vec::new()), Duration::ZERO);
    }
}
