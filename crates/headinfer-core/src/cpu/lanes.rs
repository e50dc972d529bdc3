//! Runs the commands of a schedule on lanes: as threads, or interleaved by a seed.
//!
//! Knows lanes and events only; what a command does is the caller's closure.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::backend::Timed;
use crate::plan::{Command, Lane, Schedule};

/// How lanes are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneOrder {
    /// One thread per lane that has commands; the caller's is the compute lane.
    #[default]
    Threads,
    /// On the caller's thread, in a legal order drawn from this seed.
    Interleaved(u64),
}

/// Runs `schedule`; `execute` runs one command and returns nothing: the ops of the CPU cannot fail.
///
/// # Panics
/// When a command panics, or when no lane can go on (a wait that nothing signals).
pub(crate) fn run(schedule: &Schedule, order: LaneOrder, execute: &(dyn Fn(&Command) + Sync)) -> Vec<Timed> {
    match order {
        LaneOrder::Threads => run_threads(schedule, execute),
        LaneOrder::Interleaved(seed) => run_interleaved(schedule, seed, execute),
    }
}

fn run_threads(schedule: &Schedule, execute: &(dyn Fn(&Command) + Sync)) -> Vec<Timed> {
    let events = Events::new(schedule.events);
    let start = Instant::now();
    let lane = |lane: Lane| {
        let alarm = Alarm { events: &events };
        let mut timed = Vec::new();
        for (index, command) in of_lane(schedule, lane) {
            events.wait(command);
            let begun = start.elapsed();
            execute(command);
            timed.push(Timed {
                command: index,
                lane,
                name: command.op.name(),
                start: begun,
                end: start.elapsed(),
            });
            events.signal(command);
        }
        std::mem::forget(alarm);
        timed
    };
    let mut timed = std::thread::scope(|scope| {
        let others: Vec<_> = [Lane::In, Lane::Out, Lane::Host]
            .into_iter()
            .filter(|l| of_lane(schedule, *l).next().is_some())
            .map(|l| scope.spawn(move || lane(l)))
            .collect();
        let mut timed = lane(Lane::Compute);
        for other in others {
            match other.join() {
                Ok(more) => timed.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        timed
    });
    timed.sort_by_key(|t| t.command);
    timed
}

fn of_lane(schedule: &Schedule, lane: Lane) -> impl Iterator<Item = (usize, &Command)> {
    schedule.commands.iter().enumerate().filter(move |(_, c)| c.lane == lane)
}

/// Events of one step.
struct Events {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    signalled: Vec<bool>,
    failed: bool,
}

impl Events {
    fn new(count: usize) -> Self {
        let state = State { signalled: vec![false; count], failed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, command: &Command) {
        if command.waits.is_empty() {
            return;
        }
        let mut state = self.lock();
        while !command.waits.iter().all(|e| state.signalled[e.0 as usize]) {
            assert!(!state.failed, "another lane failed");
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn signal(&self, command: &Command) {
        if let Some(event) = command.signals {
            self.lock().signalled[event.0 as usize] = true;
            self.changed.notify_all();
        }
    }
}

/// Wakes the other lanes when a lane panics, so that none waits for ever.
struct Alarm<'a> {
    events: &'a Events,
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.events.lock().failed = true;
        self.events.changed.notify_all();
    }
}

fn run_interleaved(schedule: &Schedule, seed: u64, execute: &(dyn Fn(&Command) + Sync)) -> Vec<Timed> {
    let start = Instant::now();
    let mut queues: Vec<Vec<(usize, &Command)>> =
        Lane::ALL.iter().map(|l| of_lane(schedule, *l).collect::<Vec<_>>()).collect();
    queues.iter_mut().for_each(|q| q.reverse());
    let mut signalled = vec![false; schedule.events];
    let mut random = seed;
    let mut timed = Vec::new();
    while queues.iter().any(|q| !q.is_empty()) {
        let ready: Vec<usize> = (0..queues.len())
            .filter(|l| {
                let next = queues[*l].last();
                next.is_some_and(|(_, c)| c.waits.iter().all(|e| signalled[e.0 as usize]))
            })
            .collect();
        assert!(!ready.is_empty(), "no lane can go on");
        let lane = ready[(next_random(&mut random) % ready.len() as u64) as usize];
        let Some((index, command)) = queues[lane].pop() else { continue };
        let begun = start.elapsed();
        execute(command);
        let end = start.elapsed();
        timed.push(Timed { command: index, lane: command.lane, name: command.op.name(), start: begun, end });
        if let Some(event) = command.signals {
            signalled[event.0 as usize] = true;
        }
    }
    timed
}

/// splitmix64 (Steele, Lea and Flood, 2014).
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Event, Op, Step};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn schedule(commands: Vec<Command>, events: usize) -> Schedule {
        Schedule { step: Step { past: 0, rows: 1, logit_rows: 0 }, commands, events }
    }

    fn command(lane: Lane, layer: usize, waits: &[u32], signals: Option<u32>) -> Command {
        let waits = waits.iter().map(|e| Event(*e)).collect();
        Command { lane, op: Op::OutProject { layer }, waits, signals: signals.map(Event) }
    }

    #[test]
    fn a_wait_orders_lanes_in_both_modes() {
        let commands = vec![
            command(Lane::In, 0, &[], Some(0)),
            command(Lane::Compute, 1, &[0], Some(1)),
            command(Lane::Out, 2, &[1], None),
        ];
        let schedule = schedule(commands, 2);
        let modes = (0..20).map(LaneOrder::Interleaved).chain([LaneOrder::Threads]);
        for order in modes {
            let next = AtomicUsize::new(0);
            run(&schedule, order, &|c: &Command| {
                let Op::OutProject { layer } = c.op else { unreachable!() };
                assert_eq!(next.fetch_add(1, Ordering::SeqCst), layer);
            });
        }
    }

    #[test]
    #[should_panic(expected = "no lane can go on")]
    fn a_deadlock_is_seen() {
        let schedule = schedule(vec![command(Lane::In, 0, &[0], None)], 1);
        run(&schedule, LaneOrder::Interleaved(1), &|_| {});
    }

    #[test]
    fn a_panic_on_one_lane_ends_the_run() {
        let commands = vec![command(Lane::In, 0, &[], Some(0)), command(Lane::Compute, 1, &[0], None)];
        let schedule = schedule(commands, 1);
        let result = std::panic::catch_unwind(|| {
            run(&schedule, LaneOrder::Threads, &|c: &Command| assert!(c.lane != Lane::In, "broken copy"));
        });
        assert!(result.is_err());
    }
}
