//! How long a schedule takes by the cost model alone: each lane runs its commands in order, waits for its events, and
//! takes bytes or FLOP over a rate. What is lost to the order of commands shows here without a device; what is lost
//! to launches, and to lanes that slow one another down, does not.

use std::time::Duration;

use crate::backend::Timed;
use crate::plan::{Lane, Plan, Schedule};

/// Start and end of every command on the plan's machine, in the schedule's order.
///
/// # Panics
/// When a wait is not signalled by an earlier command.
pub fn timeline(plan: &Plan, schedule: &Schedule) -> Vec<Timed> {
    let machine = &plan.request.machine;
    let mut free = [0.0f64; Lane::ALL.len()];
    let mut signalled = vec![None; schedule.events];
    let mut timed = Vec::with_capacity(schedule.commands.len());
    for (index, command) in schedule.commands.iter().enumerate() {
        let lane = &mut free[command.lane.index()];
        let waits = command.waits.iter().map(|event| {
            signalled[event.0 as usize].expect("an earlier command signals what this one waits for")
        });
        let start = waits.fold(*lane, f64::max);
        let end = start + plan.command_cost(&schedule.step, &command.op).floor_s(machine);
        *lane = end;
        if let Some(event) = command.signals {
            signalled[event.0 as usize] = Some(end);
        }
        timed.push(Timed {
            command: index,
            lane: command.lane,
            name: command.op.name(),
            start: Duration::from_secs_f64(start),
            end: Duration::from_secs_f64(end),
        });
    }
    timed
}
