//! Where the time of steps went: commands by lane and op, and what each op reached.

use std::collections::BTreeMap;

use headinfer_core::backend::Timed;
use headinfer_core::plan::report::seconds;
use headinfer_core::plan::{Lane, Op, Plan, Role, Schedule};
use serde::Serialize;

/// Sums over the commands of some steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Profile {
    lanes: [BTreeMap<&'static str, Total>; Lane::ALL.len()],
}

/// Commands of one op on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Total {
    commands: usize,
    seconds: f64,
    flop: f64,
    bytes: f64,
}

impl Total {
    fn add(&mut self, other: Self) {
        self.commands += other.commands;
        self.seconds += other.seconds;
        self.flop += other.flop;
        self.bytes += other.bytes;
    }
}

impl Profile {
    /// Of one step: its commands with their times.
    pub(super) fn of(plan: &Plan, schedule: &Schedule, timeline: &[Timed]) -> Self {
        let mut profile = Self::default();
        for timed in timeline {
            let op = &schedule.commands[timed.command].op;
            let cost = plan.command_cost(&schedule.step, op);
            let flop = cost.gemm_flop + cost.attention_flop;
            let bytes = match timed.lane {
                // What is neither a product nor attention passes over rows that lie on the device.
                Lane::Compute if flop == 0.0 => row_bytes(plan, schedule, op),
                Lane::Compute => 0.0,
                lane => cost.lane_bytes(lane),
            };
            let seconds = timed.end.saturating_sub(timed.start).as_secs_f64();
            let total = Total { commands: 1, seconds, flop, bytes };
            profile.lanes[timed.lane.index()].entry(timed.name).or_default().add(total);
        }
        profile
    }

    /// With those of another step.
    pub(super) fn add(&mut self, other: &Self) {
        for (lane, ops) in self.lanes.iter_mut().zip(&other.lanes) {
            for (name, total) in ops {
                lane.entry(name).or_default().add(*total);
            }
        }
    }

    /// As it is printed, of `wall_s` seconds in all.
    pub(super) fn shown(&self, wall_s: f64) -> Shown {
        let share = |s: f64| if wall_s > 0.0 { s / wall_s } else { 0.0 };
        let lanes: Vec<LaneShown> = Lane::ALL.map(|lane| self.lane(lane, &share)).into();
        Shown { accounted_fraction: share(lanes[Lane::Compute.index()].busy_s), lanes }
    }

    fn lane(&self, lane: Lane, share: &impl Fn(f64) -> f64) -> LaneShown {
        let rate = |amount: f64, s: f64| (amount > 0.0 && s > 0.0).then(|| amount / s);
        let ops = self.lanes[lane.index()].iter().map(|(name, total)| {
            let Total { commands, seconds, flop, bytes } = *total;
            let tflops = rate(flop / 1e12, seconds);
            let shown = OpShown {
                commands,
                seconds,
                of_time: share(seconds),
                tflops,
                gb_s: rate(bytes / 1e9, seconds),
            };
            (*name, shown)
        });
        let ops: BTreeMap<_, _> = ops.collect();
        LaneShown { lane: lane.name(), busy_s: ops.values().map(|op| op.seconds).sum(), ops }
    }
}

/// Rows of activations that an op reads and writes.
fn row_bytes(plan: &Plan, schedule: &Schedule, op: &Op) -> f64 {
    let operands = plan.operands(&schedule.step, op);
    let rows = operands.as_slice().iter().filter(|o| matches!(o.role, Role::Hidden | Role::Normed));
    rows.map(|o| o.span.bytes as f64).sum()
}

/// What is printed of a profile.
#[derive(Serialize)]
pub(super) struct Shown {
    /// Share of the time during which the compute lane ran a command.
    accounted_fraction: f64,
    pub(super) lanes: Vec<LaneShown>,
}

/// One lane.
#[derive(Serialize)]
pub(super) struct LaneShown {
    lane: &'static str,
    busy_s: f64,
    /// By op.
    ops: BTreeMap<&'static str, OpShown>,
}

/// Commands of one op.
#[derive(Serialize)]
struct OpShown {
    commands: usize,
    seconds: f64,
    /// Share of the time of all steps.
    of_time: f64,
    /// Of products and attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    tflops: Option<f64>,
    /// Of copies, of attention by the CPU, and of what passes over rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_s: Option<f64>,
}

impl Shown {
    /// A line of the whole, then those of the lanes.
    pub(super) fn text(&self) -> String {
        let share = 100.0 * self.accounted_fraction;
        format!("  {:<12}{share:.1} % of the time in commands of the compute lane\n", "profile")
            + &self.lanes_text()
    }

    /// Each lane that did anything, with its ops, the longest first.
    pub(super) fn lanes_text(&self) -> String {
        let mut text = String::new();
        for lane in self.lanes.iter().filter(|lane| !lane.ops.is_empty()) {
            text += &format!("  {:<8} busy {}\n", lane.lane, seconds(lane.busy_s));
            let mut ops: Vec<_> = lane.ops.iter().collect();
            ops.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
            for (name, OpShown { commands, seconds: s, of_time, tflops, gb_s }) in ops {
                let rate = match (tflops, gb_s) {
                    (Some(tflops), _) if *tflops >= 10.0 => format!(", {tflops:.0} TFLOP/s"),
                    (Some(tflops), _) => format!(", {:.1} GFLOP/s", 1e3 * tflops),
                    (None, Some(rate)) => format!(", {rate:.1} GB/s"),
                    (None, None) => String::new(),
                };
                let (time, share) = (seconds(*s), 100.0 * of_time);
                text += &format!("    {name:<14} {commands:>6} commands, {time}, {share:.1} %{rate}\n");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use headinfer_core::model::known::known_shape;
    use headinfer_core::plan::Step;
    use headinfer_core::simulate;

    use super::*;
    use crate::measure::cuda::kernels_plan;

    /// A chunk over a past at the times of the cost model, and how long it takes.
    fn chunk() -> (Plan, Profile, f64) {
        let plan = kernels_plan(&known_shape("llama-3-8b").unwrap(), None).unwrap();
        let schedule = plan.schedule(Step { past: 64 << 10, rows: plan.knobs().chunk, logit_rows: 1 });
        let timeline = simulate::timeline(&plan, &schedule);
        let end = timeline.iter().map(|t| t.end).max().unwrap_or(Duration::ZERO);
        let profile = Profile::of(&plan, &schedule, &timeline);
        (plan, profile, end.as_secs_f64())
    }

    #[test]
    fn every_command_is_counted_once_and_reaches_what_the_machine_does() {
        let (plan, profile, end) = chunk();
        let machine = &plan.request.machine;
        let shown = profile.shown(end);
        let [compute, link] = [Lane::Compute, Lane::In].map(|lane| &shown.lanes[lane.index()]);
        let layers = plan.spec.layers;
        assert_eq!((compute.ops["project"].commands, compute.ops["norm"].commands), (layers, 2 * layers));
        let tflops = |name: &str| compute.ops[name].tflops.unwrap();
        assert!((tflops("attend") * 1e12 / machine.attention_flops - 1.0).abs() < 1e-6);
        assert!((tflops("mlp") * 1e12 / machine.gemm_flops - 1.0).abs() < 1e-6);
        assert!((link.ops["fetch"].gb_s.unwrap() * 1e9 / machine.link_bytes_s - 1.0).abs() < 1e-6);
        let busy: f64 = compute.ops.values().map(|op| op.seconds).sum();
        assert!((compute.busy_s - busy).abs() < 1e-9 && busy <= end * (1.0 + 1e-6));
        assert!((shown.accounted_fraction - busy / end).abs() < 1e-9);
        let shares: f64 = compute.ops.values().map(|op| op.of_time).sum();
        assert!((shares - shown.accounted_fraction).abs() < 1e-9);
    }

    #[test]
    fn rows_that_a_norm_passes_over_are_its_bytes() {
        let (plan, profile, _) = chunk();
        let norm = profile.lanes[Lane::Compute.index()]["norm"];
        let (rows, hidden) = (plan.knobs().chunk, plan.spec.hidden);
        assert_eq!(norm.bytes, (2 * plan.spec.layers * rows * hidden * (4 + 2)) as f64);
    }

    #[test]
    fn steps_add_up_and_the_longest_op_stands_first() {
        let (_, one, end) = chunk();
        let mut two = one.clone();
        two.add(&one);
        let (one, two) = (one.shown(end), two.shown(2.0 * end));
        assert!((one.accounted_fraction - two.accounted_fraction).abs() < 1e-9);
        let attend = |shown: &Shown| shown.lanes[Lane::Compute.index()].ops["attend"].commands;
        assert_eq!(2 * attend(&one), attend(&two));
        let text = two.text();
        let place = |word: &str| text.find(word).unwrap_or_else(|| panic!("no {word} in {text}"));
        assert!(place("attend") < place("mlp") && place("mlp") < place("norm"), "{text}");
        assert!(text.contains(" TFLOP/s\n") && text.contains(" GB/s\n"), "{text}");
    }
}
