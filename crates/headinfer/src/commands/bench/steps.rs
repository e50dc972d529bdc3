//! Running steps under measurement: how long, how much attention in how much of that time, what was copied.

use std::time::{Duration, Instant};

use anyhow::Result;
use headinfer_core::backend::{Stats, Timed};
use headinfer_core::cpu::measure::{Field, InTurns};
use headinfer_core::engine::{Progress, Session};
use headinfer_core::plan::{Lane, Op, Plan, Step};
use headinfer_core::units::Bytes;
use serde::Serialize;

use crate::args::{Environment, MeasureArgs};
use crate::measure::Ceilings;
use crate::model_source::ModelSource;
use crate::progress::Prefill;
use crate::{device, interrupt, measure, open, summary};

/// A model opened for measurement, and the ceilings of the machine: measured before the first step and after each, so
/// that what else the machine does meets both.
pub(super) struct Bench {
    pub(super) session: Session,
    ceilings: Vec<Ceilings>,
    /// Of each step.
    rates: Vec<Rates>,
    field: Field,
    pool: rayon::ThreadPool,
}

/// What a step reached.
struct Rates {
    attention_flops: f64,
    kv_bytes_s: f64,
    step_bytes_s: f64,
}

impl Bench {
    /// Loads, plans and opens; measures ceilings.
    ///
    /// # Errors
    /// When the model cannot be loaded, nothing fits, or the system refuses memory or threads.
    pub(super) fn open(args: &MeasureArgs, environment: &Environment) -> Result<Self> {
        let source = ModelSource::parse(&args.model)?;
        let device = device::choose(args.engine.device)?;
        let model = source.find(&environment.hub)?;
        let request = open::request(model.generated_bytes(), device, args.context, &args.engine, environment);
        let plan = open::plan(&model.spec, &request)?;
        let mut session = open::session(&model, plan, &args.engine, environment.cache.as_deref())?;
        session.backend_mut().record_timeline(true);
        let pool = measure::pool(args.engine.threads)?;
        // As much as the last step reads: caches shorten both the same.
        let last = Step { past: session.plan().knobs().context - 1, rows: 1, logit_rows: 1 };
        let cost = session.plan().step_cost(&last);
        let field = pool.install(|| measure::field((cost.device_bytes + cost.host_bytes) as u64))?;
        let ceilings = vec![pool.install(|| Ceilings::measure(&field))];
        Ok(Self { session, ceilings, rates: Vec::new(), field, pool })
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
        let floors: Vec<f64> =
            steps.iter().map(|s| plan.step_cost(s).floor_s(&plan.request.machine)).collect();
        let mut total = Measured { floor_s: floors.iter().sum(), ..Measured::default() };
        let (mut bar, mut floor_done) = (Prefill::new(ids.len()), 0.0);
        for (step, floor) in steps.iter().zip(&floors) {
            let from = step.past - start;
            total.add(self.step(&ids[from..from + step.rows], step.logit_rows)?);
            floor_done += floor;
            let left = total.seconds * (total.floor_s / floor_done - 1.0);
            let remaining = Duration::try_from_secs_f64(left).unwrap_or(Duration::ZERO);
            let elapsed = Duration::from_secs_f64(total.seconds);
            bar.update(&Progress { done: from + step.rows, total: ids.len(), elapsed, remaining });
            if interrupt::requested() {
                return Err(interrupt::interrupted(&format!("after {} tokens", from + step.rows)).into());
            }
        }
        Ok(total)
    }

    /// One step.
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
        measured.attention(&plan, &step, self.session.backend().timeline());
        measured.copies(&before, &self.session.backend().stats());
        let cost = plan.step_cost(&step);
        measured.floor_s = cost.floor_s(&plan.request.machine);
        self.rates.push(Rates {
            attention_flops: rate(measured.attention_flop, measured.attention_s),
            kv_bytes_s: rate(measured.kv_bytes, measured.attention_s),
            step_bytes_s: rate(cost.device_bytes + cost.host_bytes, seconds),
        });
        let field = &self.field;
        self.ceilings.push(self.pool.install(|| Ceilings::measure(field)));
        Ok(Measured { tokens: ids.len(), seconds, logits_hash: hash, ..measured })
    }

    /// Forgets the steps so far: ceilings and their ratios are of what follows.
    pub(super) fn begin(&mut self) {
        self.rates.clear();
        self.ceilings.drain(..self.ceilings.len() - 1);
    }

    /// A rate of every step beside a ceiling.
    fn in_turns(&self, rate: fn(&Rates) -> f64, ceiling: fn(&Ceilings) -> f64) -> InTurns {
        let ceilings: Vec<f64> = self.ceilings.iter().map(ceiling).collect();
        InTurns::of(&ceilings, &self.rates.iter().map(rate).collect::<Vec<f64>>())
    }
}

fn rate(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
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
    pub(super) tokens: usize,
    pub(super) seconds: f64,
    pub(super) floor_s: f64,
    /// Time during which some lane attended.
    pub(super) attention_s: f64,
    pub(super) attention_flop: f64,
    /// K and V that attention read.
    pub(super) kv_bytes: f64,
    pub(super) copied_bytes: u64,
    pub(super) copy_s: f64,
    pub(super) copy_hidden_s: f64,
    pub(super) logits_hash: String,
}

impl Measured {
    pub(super) fn add(&mut self, step: Measured) {
        self.tokens += step.tokens;
        self.seconds += step.seconds;
        self.attention_s += step.attention_s;
        self.attention_flop += step.attention_flop;
        self.kv_bytes += step.kv_bytes;
        self.copied_bytes += step.copied_bytes;
        self.copy_s += step.copy_s;
        self.copy_hidden_s += step.copy_hidden_s;
        self.logits_hash = step.logits_hash;
    }

    fn attention(&mut self, plan: &Plan, step: &Step, timeline: &[Timed]) {
        let schedule = plan.schedule(*step);
        let mut busy = Vec::new();
        for timed in timeline {
            let op = &schedule.commands[timed.command].op;
            let cost = plan.command_cost(step, op);
            match op {
                Op::Attend { .. } => self.kv_bytes += cost.device_bytes,
                Op::AttendHost { .. } => self.kv_bytes += cost.host_bytes,
                _ => continue,
            }
            self.attention_flop += cost.attention_flop;
            busy.push((timed.start, timed.end));
        }
        self.attention_s += covered(busy).as_secs_f64();
    }

    fn copies(&mut self, before: &Stats, after: &Stats) {
        let copied =
            |stats: &Stats| [Lane::In, Lane::Out].map(|l| stats.bytes[l.index()]).iter().sum::<u64>();
        self.copied_bytes = copied(after) - copied(before);
        self.copy_s = (after.copy - before.copy).as_secs_f64();
        self.copy_hidden_s = (after.copy_hidden - before.copy_hidden).as_secs_f64();
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

/// What `bench prefill` and `bench decode` print.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) context: usize,
    pub(super) tokens: usize,
    pub(super) seconds: f64,
    pub(super) tokens_per_s: f64,
    pub(super) floor_s: f64,
    pub(super) ratio_to_floor: f64,
    /// Whose rates the floor uses.
    pub(super) machine: String,
    pub(super) attention_tflops: f64,
    /// f32 multiply-add peak of all threads: the median of what was measured before, between and after the steps.
    pub(super) fma_peak_tflops: f64,
    /// Median over the steps of attention's rate over the mean of the peaks before and after; its least and largest.
    pub(super) attention_of_peak: f64,
    pub(super) attention_of_peak_spread: (f64, f64),
    /// K and V read by attention while it ran.
    pub(super) host_gb_s: f64,
    /// Memory read by all threads, measured as the peak above.
    pub(super) read_peak_gb_s: f64,
    pub(super) read_of_peak: f64,
    pub(super) read_of_peak_spread: (f64, f64),
    /// K, V and weights over the time of the whole step, as a share of the read peak.
    pub(super) step_read_of_peak: f64,
    /// Share of the time in attention.
    pub(super) attention_fraction: f64,
    /// Copies while they ran; 0 when nothing was copied.
    pub(super) link_gb_s: f64,
    pub(super) copy_hidden_fraction: f64,
    pub(super) device_peak_bytes: u64,
    pub(super) plan_device_bytes: u64,
    pub(super) host_bytes: u64,
    pub(super) plan_host_bytes: u64,
    pub(super) logits_hash: String,
}

impl Report {
    pub(super) fn new(bench: &Bench, measured: &Measured) -> Self {
        let (plan, stats, m) = (bench.session.plan(), bench.session.backend().stats(), measured);
        let attention = bench.in_turns(|r| r.attention_flops, |c| c.fma_flops);
        let kv = bench.in_turns(|r| r.kv_bytes_s, |c| c.read_bytes_s);
        let step = bench.in_turns(|r| r.step_bytes_s, |c| c.read_bytes_s);
        let (flops, read) = (rate(m.attention_flop, m.attention_s), rate(m.kv_bytes, m.attention_s));
        Self {
            model: plan.spec.name.clone(),
            context: plan.knobs().context,
            tokens: m.tokens,
            seconds: m.seconds,
            tokens_per_s: rate(m.tokens as f64, m.seconds),
            floor_s: m.floor_s,
            ratio_to_floor: rate(m.seconds, m.floor_s),
            machine: plan.request.machine.source.clone(),
            attention_tflops: flops / 1e12,
            fma_peak_tflops: attention.ceiling / 1e12,
            attention_of_peak: attention.ratio,
            attention_of_peak_spread: attention.spread,
            host_gb_s: read / 1e9,
            read_peak_gb_s: kv.ceiling / 1e9,
            read_of_peak: kv.ratio,
            read_of_peak_spread: kv.spread,
            step_read_of_peak: step.ratio,
            attention_fraction: rate(m.attention_s, m.seconds),
            link_gb_s: rate(m.copied_bytes as f64 / 1e9, m.copy_s),
            copy_hidden_fraction: if m.copy_s > 0.0 { m.copy_hidden_s / m.copy_s } else { 1.0 },
            device_peak_bytes: stats.device_bytes,
            plan_device_bytes: plan.device_bytes(),
            host_bytes: stats.host_bytes,
            plan_host_bytes: plan.host_bytes(),
            logits_hash: m.logits_hash.clone(),
        }
    }

    /// The lines after the first.
    pub(super) fn text(&self) -> String {
        let percent = |share: f64| 100.0 * share;
        let copies = match self.link_gb_s {
            0.0 => "nothing was copied".to_owned(),
            rate => format!("{rate:.1} GB/s, {:.0} % hidden", percent(self.copy_hidden_fraction)),
        };
        format!(
            "  floor       {:.3} s, ratio {:.2} ({})\n  \
             attention   {:.1} GFLOP/s, {:.0} % of the FMA peak of {:.1}; {:.0} % of the time\n  \
             KV read     {:.2} GB/s, {:.0} % of the read bandwidth of {:.1}; with weights, over the step, {:.0} %\n  \
             copies      {copies}\n  \
             device      {} of {} planned\n  \
             host        {} of {} planned\n  \
             logits      {}\n",
            self.floor_s,
            self.ratio_to_floor,
            self.machine,
            1e3 * self.attention_tflops,
            percent(self.attention_of_peak),
            1e3 * self.fma_peak_tflops,
            percent(self.attention_fraction),
            self.host_gb_s,
            percent(self.read_of_peak),
            self.read_peak_gb_s,
            percent(self.step_read_of_peak),
            Bytes(self.device_peak_bytes),
            Bytes(self.plan_device_bytes),
            Bytes(self.host_bytes),
            Bytes(self.plan_host_bytes),
            self.logits_hash,
        )
    }
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
