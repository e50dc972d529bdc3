//! A backend without arithmetic: it checks every schedule for hazards and adds up its bytes.
//!
//! A step of a million tokens costs it milliseconds, so the engine's behaviour at any length can be tested on
//! any machine.

use std::sync::Arc;

use crate::backend::{Backend, BackendError, Stats, Timed};
use crate::plan::{Memory, Plan, Schedule, hazard};

/// Records and checks; all logits are zero.
pub struct Trace {
    plan: Arc<Plan>,
    stats: Stats,
    logits: Vec<f32>,
    rows: usize,
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
        Self { plan, stats, logits, rows: 0, steps: Vec::new() }
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
        self.rows = schedule.step.logit_rows;
        self.steps.push(schedule.step);
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        Ok(&self.logits[..self.rows * self.plan.spec.vocab])
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn record_timeline(&mut self, _on: bool) {}

    fn timeline(&self) -> &[Timed] {
        &[]
    }
}
