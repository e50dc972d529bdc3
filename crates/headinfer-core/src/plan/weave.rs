//! Weaves the copies of streamed weights into a step's commands.
//!
//! A block is fetched while the block before it is computed with, in parts, as evenly spread over that time as the
//! cost model tells time: the In lane runs in order, and a whole layer in one piece would keep KV tiles waiting that
//! arithmetic needs sooner. Kept layers need no fetch, which leaves time to that of the block after them.

use std::ops::Range;

use super::layout::WEIGHT_PARTS;
use super::op::{Command, Event, Lane, Op, WeightBlock};
use super::{Plan, Schedule};

/// `schedule` with the fetches that its step needs; as it is when weights do not stream.
pub(super) fn weave(plan: &Plan, schedule: Schedule) -> Schedule {
    let fetches = plan.weight_fetches(&schedule.step);
    if fetches.is_empty() {
        return schedule;
    }
    let stretches = stretches(plan, &schedule);
    let mut loom = Loom { plan, schedule, out: Vec::new() };
    let frees: Vec<_> = (0..fetches.len()).map(|k| loom.freed(&stretches, &fetches, k)).collect();
    let mut next = 0;
    for (k, stretch) in stretches.iter().enumerate() {
        loom.keep(next..stretch.commands.start);
        next = stretch.commands.end;
        let Some(block) = fetches.get(k) else {
            loom.keep(stretch.commands.clone());
            continue;
        };
        let mut fetch = Fetch { block: *block, waits: frees[k].event, next: 0, last: None };
        let from = match frees[k].by {
            Some(user) if user == k => stretch.last_use + 1,
            _ => stretch.commands.start,
        };
        loom.spread(&mut fetch, stretch, from);
        loom.fetch(&mut fetch, WEIGHT_PARTS);
        if let (Some(following), Some(event)) = (stretches.get(k + 1), fetch.last) {
            loom.schedule.commands[following.commands.start].waits.push(event);
        }
    }
    let end = loom.schedule.commands.len();
    loom.keep(next..end);
    Schedule { commands: loom.out, ..loom.schedule }
}

/// The commands from a block's first use to just before the next block's: its own, and those of kept layers.
struct Stretch {
    slot: usize,
    /// The first is the block's own.
    commands: Range<usize>,
    /// The last of the block's own.
    last_use: usize,
    /// Of each command; 0 where another lane than `Compute` runs it.
    seconds: Vec<f64>,
}

/// One for each block of the step, in order.
fn stretches(plan: &Plan, schedule: &Schedule) -> Vec<Stretch> {
    let blocks = plan.weight_blocks(&schedule.step);
    let uses = |block: &WeightBlock| {
        let uses = |c: &Command| c.op.weight_block().as_ref() == Some(block);
        let (first, last) =
            (schedule.commands.iter().position(uses), schedule.commands.iter().rposition(uses));
        first.zip(last).map(|(first, last)| (plan.layout.weight_slot(*block), first, last))
    };
    let uses: Vec<_> = blocks.iter().filter_map(uses).collect();
    let ends = uses.iter().skip(1).map(|(_, first, _)| *first).chain([schedule.commands.len()]);
    let stretch = |(&(slot, first, last_use), end)| {
        let commands: Range<usize> = first..end;
        let seconds = schedule.commands[commands.clone()].iter().map(|c| seconds(plan, schedule, c));
        Stretch { slot, last_use, seconds: seconds.collect(), commands }
    };
    uses.iter().zip(ends).map(stretch).collect()
}

fn seconds(plan: &Plan, schedule: &Schedule, command: &Command) -> f64 {
    match command.lane {
        Lane::Compute => plan.command_cost(&schedule.step, &command.op).floor_s(&plan.request.machine),
        _ => 0.0,
    }
}

/// When a slot is free for a fetch.
struct Freed {
    /// The stretch that used the slot last.
    by: Option<usize>,
    event: Option<Event>,
}

/// A block on its way.
struct Fetch {
    block: WeightBlock,
    /// Of the first part; the others follow it on their lane.
    waits: Option<Event>,
    next: usize,
    last: Option<Event>,
}

struct Loom<'a> {
    plan: &'a Plan,
    schedule: Schedule,
    out: Vec<Command>,
}

impl Loom<'_> {
    /// What fetch `k`, which starts in stretch `k`, has to wait for.
    fn freed(&mut self, stretches: &[Stretch], fetches: &[WeightBlock], k: usize) -> Freed {
        let slot = self.plan.layout.weight_slot(fetches[k]);
        let by = stretches[..=k].iter().rposition(|stretch| stretch.slot == slot);
        let event = by.map(|user| self.signal(stretches[user].last_use));
        Freed { by, event }
    }

    /// The event that command `index` signals.
    fn signal(&mut self, index: usize) -> Event {
        let next = Event(self.schedule.events as u32);
        let event = *self.schedule.commands[index].signals.get_or_insert(next);
        self.schedule.events += usize::from(event == next);
        event
    }

    /// Passes commands on as they are.
    fn keep(&mut self, range: Range<usize>) {
        self.out.extend_from_slice(&self.schedule.commands[range]);
    }

    /// Passes a stretch on with the parts in between, from command `from` on: each before the command that the time
    /// is reached in.
    fn spread(&mut self, fetch: &mut Fetch, stretch: &Stretch, from: usize) {
        let total: f64 = stretch.seconds[from - stretch.commands.start..].iter().sum();
        let mut spent = 0.0;
        for (index, seconds) in stretch.commands.clone().zip(&stretch.seconds) {
            if index >= from && *seconds > 0.0 {
                spent += seconds;
                let reached = (spent / total * WEIGHT_PARTS as f64).ceil() as usize;
                self.fetch(fetch, reached.min(WEIGHT_PARTS));
            }
            self.keep(index..index + 1);
        }
    }

    /// Puts the parts up to `end` on their lane.
    fn fetch(&mut self, fetch: &mut Fetch, end: usize) {
        while fetch.next < end {
            let part = fetch.next;
            fetch.next += 1;
            if self.plan.layout.weight_part(fetch.block, part).is_empty() {
                continue;
            }
            let slot = self.plan.layout.weight_slot(fetch.block);
            let op = Op::FetchWeights { block: fetch.block, part, slot };
            let signals = (fetch.next == WEIGHT_PARTS).then_some(Event(self.schedule.events as u32));
            self.schedule.events += usize::from(signals.is_some());
            fetch.last = signals;
            let waits = fetch.waits.take().into_iter().collect();
            self.out.push(Command { lane: Lane::In, op, waits, signals });
        }
    }
}
