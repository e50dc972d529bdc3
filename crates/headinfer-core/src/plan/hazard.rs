//! Proof that a schedule is ordered: any two commands on different lanes that touch the same bytes, one of
//! them writing, have one happening before the other. Needs no device and no arithmetic.

use std::collections::HashMap;
use std::fmt;

use super::op::Lane;
use super::region::{Memory, Span};
use super::role::Access;
use super::{Plan, Schedule};

/// What is wrong with a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hazard {
    /// Two commands (indices into the schedule) touch the same bytes in no order.
    Unordered {
        /// The one scheduled first.
        first: usize,
        /// The one scheduled later.
        second: usize,
        /// Bytes of the later one.
        span: Span,
    },
    /// A command waits for an event that no earlier command signals: a lane would wait for ever.
    NeverSignalled {
        /// The waiting command.
        command: usize,
    },
}

impl fmt::Display for Hazard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hazard::Unordered { first, second, span } => {
                write!(f, "commands {first} and {second} touch {span:?} in no order")
            }
            Hazard::NeverSignalled { command } => {
                write!(f, "command {command} waits for an event that none before it signals")
            }
        }
    }
}

/// How many commands of each lane have finished before a command starts: its own lane's earlier ones, and what
/// its waits imply.
type Clock = [u32; Lane::ALL.len()];

/// Checks `schedule` and returns every hazard found, first conflicts first.
pub fn check(plan: &Plan, schedule: &Schedule) -> Vec<Hazard> {
    let order = match Order::of(schedule) {
        Ok(order) => order,
        Err(hazard) => return vec![hazard],
    };
    let mut live: HashMap<(Memory, u64), Vec<Live>> = HashMap::new();
    let mut hazards = Vec::new();
    for (index, command) in schedule.commands.iter().enumerate() {
        for operand in plan.operands(&schedule.step, &command.op).as_slice() {
            let now = Live { command: index, span: operand.span, write: operand.access == Access::Write };
            for bucket in buckets(plan, &operand.span) {
                meet(&order, live.entry(bucket).or_default(), now, &mut hazards);
            }
        }
    }
    hazards.dedup();
    hazards
}

/// Which commands happen before which.
#[derive(Debug)]
pub struct Order {
    clocks: Vec<Clock>,
    position: Vec<(usize, u32)>,
}

impl Order {
    /// Vector clocks of all commands.
    ///
    /// # Errors
    /// [`Hazard::NeverSignalled`] when a wait cannot be satisfied by the commands before it.
    pub fn of(schedule: &Schedule) -> Result<Self, Hazard> {
        let mut lanes: [Clock; Lane::ALL.len()] = Default::default();
        let mut signalled: HashMap<u32, Clock> = HashMap::new();
        let mut order = Self { clocks: Vec::new(), position: Vec::new() };
        for (index, command) in schedule.commands.iter().enumerate() {
            let lane = command.lane.index();
            let mut clock = lanes[lane];
            for event in &command.waits {
                let from = signalled.get(&event.0).ok_or(Hazard::NeverSignalled { command: index })?;
                clock.iter_mut().zip(from).for_each(|(a, b)| *a = (*a).max(*b));
            }
            order.clocks.push(clock);
            order.position.push((lane, clock[lane]));
            clock[lane] += 1;
            lanes[lane] = clock;
            if let Some(event) = command.signals {
                signalled.insert(event.0, clock);
            }
        }
        Ok(order)
    }

    /// Whether command `first` has finished before command `second` starts, whatever the lanes do.
    pub fn before(&self, first: usize, second: usize) -> bool {
        let (lane, at) = self.position[first];
        self.clocks[second][lane] > at
    }
}

#[derive(Clone, Copy)]
struct Live {
    command: usize,
    span: Span,
    write: bool,
}

/// Holds one access against those that came earlier, and forgets those it covers: whatever conflicts with them
/// later conflicts with it too, and being ordered after it is ordered after them.
fn meet(order: &Order, earlier: &mut Vec<Live>, now: Live, hazards: &mut Vec<Hazard>) {
    earlier.retain(|old| {
        if !old.span.overlaps(&now.span) {
            return true;
        }
        let ordered = old.command == now.command || order.before(old.command, now.command);
        if !ordered && (old.write || now.write) {
            hazards.push(Hazard::Unordered { first: old.command, second: now.command, span: now.span });
        }
        let covered = now.span.offset <= old.span.offset
            && old.span.offset + old.span.bytes <= now.span.offset + now.span.bytes;
        !(covered && ordered && (now.write || !old.write))
    });
    earlier.push(now);
}

/// Slices of memory that an access is filed under, so that each is held against its neighbours only. Each
/// memory is cut into some thousands of pieces; a long access is filed under every piece it touches.
fn buckets(plan: &Plan, span: &Span) -> impl Iterator<Item = (Memory, u64)> + use<> {
    let piece = (plan.layout().bytes(span.memory) / 4096).max(1 << 12);
    let memory = span.memory;
    (span.offset / piece..=(span.offset + span.bytes - 1) / piece).map(move |p| (memory, p))
}
