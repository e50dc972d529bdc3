//! A backend without arithmetic: it checks every schedule for hazards, adds up its bytes, and tells the time that the
//! cost model gives it.
//!
//! A step of a million tokens costs it milliseconds, so the engine's behaviour at any length can be tested on
//! any machine.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, BackendError, Stats, Timed, copy_overlap};
use crate::plan::{Memory, Plan, Schedule, hazard};
use crate::simulate;

/// Records and checks; all logits are zero, and so are all K and V.
pub struct Trace {
    plan: Arc<Plan>,
    stats: Stats,
    logits: Vec<f32>,
    rows: usize,
    timeline: Vec<Timed>,
    /// Time that all steps would take.
    pub elapsed: Duration,
    /// Steps seen, in order.
    pub steps: Vec<crate::plan::Step>,
}

impl Trace {
    /// A trace of `plan`.
    pub fn open(plan: Arc<Plan>) -> Self {
        let stats = Stats {
            device_bytes: plan.layout().bytes(Memory::Device),
            host_bytes: plan.layout().bytes(Memory::Host),
            ..Stats::default()
        };
        let logits = vec![0.0; plan.knobs().logit_rows * plan.spec.vocab];
        let (timeline, elapsed) = (Vec::new(), Duration::ZERO);
        Self { plan, stats, logits, rows: 0, timeline, elapsed, steps: Vec::new() }
    }
}

impl Backend for Trace {
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError> {
        assert_eq!(ids.len(), schedule.step.rows, "one id per row");
        if let Some(hazard) = hazard::check(&self.plan, schedule).first() {
            return Err(BackendError(format!("hazard: {hazard}")));
        }
        for command in &schedule.commands {
            let cost = self.plan.command_cost(&schedule.step, &command.op);
            self.stats.bytes[command.lane.index()] += cost.lane_bytes(command.lane) as u64;
        }
        self.timeline = simulate::timeline(&self.plan, schedule);
        for t in &self.timeline {
            self.stats.busy[t.lane.index()] += t.end - t.start;
        }
        let (copy, hidden) = copy_overlap(&self.timeline);
        self.stats.copy += copy;
        self.stats.copy_hidden += hidden;
        self.elapsed += self.timeline.iter().map(|t| t.end).max().unwrap_or_default();
        self.rows = schedule.step.logit_rows;
        self.steps.push(schedule.step);
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        Ok(&self.logits[..self.rows * self.plan.spec.vocab])
    }

    fn read_rows(&mut self, _rows: Range<usize>, _held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        to.fill(0);
        Ok(())
    }

    fn write_rows(&mut self, _rows: Range<usize>, _from: &[u8]) -> Result<(), BackendError> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn record_timeline(&mut self, _on: bool) {}

    fn timeline(&self) -> &[Timed] {
        &self.timeline
    }
}
