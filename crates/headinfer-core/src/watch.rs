//! Which KV heads the lanes are at work on right now: told while a step runs, read by whoever draws it.
//!
//! Must not know who reads; telling costs a store, and nobody waits.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::plan::{Heads, Lane, Layout, Op};

/// Of one backend: by lane, the heads it came to last within the step under way.
#[derive(Debug, Default)]
pub struct Watch([AtomicU64; Lane::ALL.len()]);

/// KV heads of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The layer.
    pub layer: usize,
    /// Its heads; never empty.
    pub heads: Heads,
}

impl Watch {
    /// Whose K and V `lane` moves or reads; `None` between steps, and before it came to any in this one.
    pub fn now(&self, lane: Lane) -> Option<Spot> {
        let packed = self.0[lane.index()].load(Relaxed);
        let (start, end) = ((packed >> 16 & 0xffff) as usize, (packed & 0xffff) as usize);
        (end > start).then_some(Spot { layer: (packed >> 32) as usize, heads: Heads { start, end } })
    }

    /// `lane` starts `op`.
    pub(crate) fn begin(&self, lane: Lane, op: &Op, layout: &Layout, kv_heads: usize) {
        let (layer, heads) = match *op {
            Op::Fetch { layer, heads, .. }
            | Op::Unpack { layer, heads, .. }
            | Op::Attend { layer, heads, .. }
            | Op::AttendHost { layer, heads } => (layer, heads),
            Op::Pack { layer } | Op::Evict { layer } => {
                (layer, Heads { start: layout.resident(layer).end, end: kv_heads })
            }
            _ => return,
        };
        // A shape beyond these is drawn by nobody.
        let narrow = |head: usize| u64::from(u16::try_from(head).unwrap_or(u16::MAX));
        let packed = (layer as u64) << 32 | narrow(heads.start) << 16 | narrow(heads.end);
        self.0[lane.index()].store(packed, Relaxed);
    }

    /// The step has ended.
    pub(crate) fn rest(&self) {
        self.0.iter().for_each(|lane| lane.store(0, Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known::known_shape;
    use crate::plan::{DeviceKind, Machine, Overrides, PlacementMode, Plan, Request, Step, WeightsMode};

    #[test]
    fn each_lane_is_seen_where_it_came_to_last_and_nowhere_between_steps() {
        let spec = known_shape("llama-3-8b").unwrap();
        let (all, resident) = (spec.layers * spec.kv_heads, 40);
        let overrides =
            Overrides { chunk: Some(1024), resident_heads: Some(resident), ..Overrides::default() };
        let request = Request {
            device: DeviceKind::Cpu,
            context: 16 << 10,
            device_budget: 1 << 40,
            host_budget: 1 << 40,
            stored: None,
            placement: PlacementMode::Offload,
            weights: WeightsMode::Auto,
            overrides,
            machine: Machine::default_cpu(2),
        };
        let plan = Plan::new(&spec, &request).unwrap();
        let (watch, mut evicted) = (Watch::default(), 0);
        assert!(Lane::ALL.iter().all(|lane| watch.now(*lane).is_none()));
        for command in &plan.schedule(Step { past: 9 << 10, rows: 1024, logit_rows: 1 }).commands {
            let before = watch.now(command.lane);
            watch.begin(command.lane, &command.op, plan.layout(), spec.kv_heads);
            let now = watch.now(command.lane);
            match command.op {
                Op::Fetch { layer, heads, .. } | Op::Attend { layer, heads, .. } => {
                    assert_eq!(now, Some(Spot { layer, heads }));
                }
                Op::Evict { layer } => {
                    let spot = now.unwrap();
                    assert_eq!(spot.layer, layer);
                    evicted += spot.heads.len();
                }
                _ => assert_eq!(now, before),
            }
        }
        assert_eq!(evicted, all - resident);
        watch.rest();
        assert!(Lane::ALL.iter().all(|lane| watch.now(*lane).is_none()));
    }
}
