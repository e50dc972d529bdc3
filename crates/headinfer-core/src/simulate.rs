//! How long a schedule takes by the cost model alone: each lane runs its commands in order, waits for its events, and
//! takes bytes or FLOP over a rate. What is lost to the order of commands shows here without a device; what is lost
//! to launches is added for whoever wants seconds, not floors.

use std::time::Duration;

use crate::backend::Timed;
use crate::plan::{DeviceKind, HOST_ROUND_S, Lane, Machine, Plan, Schedule, Step};

/// What a GPU takes for a command of the compute lane besides its bytes and FLOP, seconds: on an H200 the 200 of a
/// decoded token of Llama-3-8B took 1.6 ms longer than its weights (`decode-8b-1k-cuda.json`).
const COMMAND_S: f64 = 8e-6;
/// Fetches of a step that is simulated whole.
const FETCHES_MAX: usize = 1 << 18;

/// Start and end of every command on the plan's machine, in the schedule's order.
///
/// # Panics
/// When a wait is not signalled by an earlier command.
pub fn timeline(plan: &Plan, schedule: &Schedule) -> Vec<Timed> {
    let timed = spans(plan, schedule, |_| 0.0).into_iter().enumerate().map(|(index, (start, end))| Timed {
        command: index,
        lane: schedule.commands[index].lane,
        name: schedule.commands[index].op.name(),
        start: Duration::from_secs_f64(start),
        end: Duration::from_secs_f64(end),
    });
    timed.collect()
}

/// Seconds that a decoded token after `past` is expected to take on the plan's machine, as [`step_s`]; beyond a few hundred
/// thousand fetches as much longer as the way there has grown, and the floor where not even that can be looked at.
///
/// # Panics
/// As [`Plan::schedule`].
pub fn decode_s(plan: &Plan, past: usize) -> f64 {
    let at = |past| step_s(plan, Step { past, rows: 1, logit_rows: 1 });
    let k = plan.knobs();
    let groups = plan.spec.layers * plan.spec.kv_heads.div_ceil(k.heads_per_group);
    let far = FETCHES_MAX / groups * k.tile;
    match far / 2 {
        _ if past <= far => at(past),
        0 => plan.decode_floor_s(past),
        near => {
            let (near_s, far_s) = (at(near), at(far));
            far_s + (far_s - near_s) * (past - far) as f64 / (far - near) as f64
        }
    }
}

/// Seconds that a step is expected to take on the plan's machine: its timeline, and what a GPU takes for each command
/// besides. The floor of [`Cost::floor_s`](crate::plan::Cost::floor_s) is less.
///
/// # Panics
/// As [`Plan::schedule`].
pub fn step_s(plan: &Plan, step: Step) -> f64 {
    let besides = |lane| match (plan.knobs().device, lane) {
        (DeviceKind::Cuda, Lane::Compute) => COMMAND_S,
        (DeviceKind::Cuda, Lane::Host) => HOST_ROUND_S,
        // Rates of copies are those of copies one after another.
        (DeviceKind::Cuda, Lane::In | Lane::Out) | (DeviceKind::Cpu, _) => 0.0,
    };
    spans(plan, &plan.schedule(step), besides).into_iter().fold(0.0, |last, (_, end)| last.max(end))
}

/// Start and end of every command, seconds; each takes what its lane takes besides.
fn spans(plan: &Plan, schedule: &Schedule, besides: impl Fn(Lane) -> f64) -> Vec<(f64, f64)> {
    let machine = sharing(plan, &schedule.step);
    let mut free = [0.0f64; Lane::ALL.len()];
    let mut signalled = vec![None; schedule.events];
    let mut spans = Vec::with_capacity(schedule.commands.len());
    for command in &schedule.commands {
        let lane = &mut free[command.lane.index()];
        let waits = command.waits.iter().map(|event| {
            signalled[event.0 as usize].expect("an earlier command signals what this one waits for")
        });
        let start = waits.fold(*lane, f64::max);
        let cost = plan.command_cost(&schedule.step, &command.op);
        let end = start + cost.floor_s(&machine) + besides(command.lane);
        *lane = end;
        if let Some(event) = command.signals {
            signalled[event.0 as usize] = Some(end);
        }
        spans.push((start, end));
    }
    spans
}

/// The plan's machine; in a step in which the CPU attends, the link is what it is beside that.
fn sharing(plan: &Plan, step: &Step) -> Machine {
    let machine = plan.request.machine.clone();
    let link_bytes_s = match machine.together {
        Some(together) if plan.host_attended_heads(step) > 0 => together.link_bytes_s,
        _ => machine.link_bytes_s,
    };
    Machine { link_bytes_s, ..machine }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known::known_shape;
    use crate::plan::{Overrides, PlacementMode, Request, Together, WeightsMode};

    /// Beside an H100, at rates that `doctor` and the runs named below had.
    fn plan(context: usize, placement: PlacementMode, overrides: Overrides) -> Plan {
        let together = Together { link_bytes_s: 46.9e9, host_bytes_s: 87.5e9, host_flops: 1e12 };
        let machine = Machine {
            device_bytes_s: 2.76e12,
            link_bytes_s: 52.3e9,
            together: Some(together),
            ..Machine::default_cuda()
        };
        let request = Request {
            device: DeviceKind::Cuda,
            context,
            device_budget: 24 << 30,
            host_budget: 1 << 50,
            stored: None,
            guesses: false,
            placement,
            weights: WeightsMode::Auto,
            overrides,
            machine,
        };
        Plan::new(&known_shape("llama-3-8b").unwrap(), &request).unwrap()
    }

    #[test]
    fn what_was_measured_beside_an_h100_was_to_be_expected() {
        let (auto, offload) = (PlacementMode::Auto, PlacementMode::Offload);
        let expected_s = |context, placement, n| {
            let overrides = Overrides { host_heads: Some(n), ..Overrides::default() };
            decode_s(&plan(context, placement, overrides), context - 1)
        };
        for (measured_s, expected_s) in [
            // decode-8b-1k-cuda.json
            (7.6e-3, expected_s(1 << 10, auto, 0)),
            // decode-8b-calls.txt, the machines whose link was steady. A CPU that still attends when the link is done, from
            // 160 heads on, is faster than beside it, which the model does not know.
            (331.9e-3, expected_s(1 << 17, offload, 0)),
            (336.2e-3, expected_s(1 << 17, offload, 0)),
            (217.5e-3, expected_s(1 << 17, offload, 96)),
            (183.5e-3, expected_s(1 << 17, offload, 128)),
            (150.8e-3, expected_s(1 << 17, offload, 152)),
            (139.8e-3, expected_s(1 << 17, offload, 160)),
        ] {
            assert!(
                (expected_s / measured_s - 1.0).abs() < 0.1,
                "{expected_s} s expected, {measured_s} s measured"
            );
        }
    }

    #[test]
    fn what_is_too_long_to_be_simulated_goes_on_as_it_began() {
        let tiled = Overrides { tile: Some(256), heads_per_group: Some(1), ..Overrides::default() };
        let plan = |context| plan(context, PlacementMode::Offload, tiled.clone());
        let past = (1 << 19) - 1;
        let whole = step_s(&plan(1 << 19), Step { past, rows: 1, logit_rows: 1 });
        let expected = decode_s(&plan(1 << 19), past);
        assert!(expected != whole && (expected / whole - 1.0).abs() < 0.01, "{expected} and {whole}");
        assert!(decode_s(&plan(1 << 30), (1 << 30) - 1) > 1000.0 * whole);
    }
}
