//! Where the copies of a step are, asked of the driver by whoever looks on: each copy of K and V signals one of the
//! plan's events anyway, so a step does no more for it than write down which. What the compute lane is at cannot be
//! told so, as most of its commands signal nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};

use headinfer_core::plan::{Command, Lane, Plan, STEPS_IN_FLIGHT, Schedule};
use headinfer_core::watch::{Spot, Watch};

use crate::device::Handle;
use crate::stream::{Event, Mark, Pool};

/// The lanes that copy.
const COPYING: [Lane; 2] = [Lane::In, Lane::Out];

/// A step that is on the streams.
pub(crate) struct Flight<M> {
    /// Which of all steps.
    step: usize,
    /// When it is done.
    done: M,
    /// By lane of [`COPYING`]: what it copies, in order, each with what tells when it has.
    copies: [Vec<(M, Spot)>; 2],
}

impl Flight<Mark> {
    /// Of a step whose events are `events` and, when all is done, `done`.
    pub(crate) fn of(schedule: &Schedule, plan: &Plan, step: usize, events: &Pool, done: &Event) -> Self {
        let copies = COPYING.map(|lane| {
            let of_lane = schedule.commands.iter().filter(|command| command.lane == lane);
            let copy = |command: &Command| {
                let event = events.get(command.signals?.0 as usize);
                Some((event.mark(), Spot::of(&command.op, plan)?))
            };
            of_lane.filter_map(copy).collect()
        });
        Self { step, done: done.mark(), copies }
    }
}

/// The steps in flight of one backend, as long as it is open.
pub(crate) struct Flights(Mutex<Option<Open>>);

struct Open {
    context: Handle,
    flights: [Option<Flight<Mark>>; STEPS_IN_FLIGHT],
}

impl Flights {
    pub(crate) fn new(context: Handle) -> Self {
        Self(Mutex::new(Some(Open { context, flights: Default::default() })))
    }

    /// The events of the step that had this turn are about to be another's.
    pub(crate) fn forget(&self, turn: usize) {
        self.open().iter_mut().for_each(|open| open.flights[turn] = None);
    }

    /// All of a step is on the streams.
    pub(crate) fn add(&self, turn: usize, flight: Flight<Mark>) {
        if let Some(open) = self.open().as_mut() {
            open.flights[turn] = Some(flight);
        }
    }

    /// Its events and the context will go.
    pub(crate) fn close(&self) {
        *self.open() = None;
    }

    fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Flights {
    fn now(&self, lane: Lane) -> Option<Spot> {
        let open = self.open();
        let Open { context, flights } = open.as_ref()?;
        context.enter().ok()?;
        first_to_come(flights.iter().flatten(), lane, Mark::happened)
    }
}

/// What `lane` copies next, or now, within the oldest step that is not done.
fn first_to_come<'f, M: Copy + 'f>(
    flights: impl Iterator<Item = &'f Flight<M>>,
    lane: Lane,
    happened: impl Fn(M) -> bool,
) -> Option<Spot> {
    let at = COPYING.iter().position(|copying| *copying == lane)?;
    let running = flights.filter(|flight| !happened(flight.done)).min_by_key(|flight| flight.step)?;
    let copies = &running.copies[at];
    copies.get(copies.partition_point(|(copied, _)| happened(*copied))).map(|(_, spot)| *spot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use headinfer_core::plan::Heads;

    fn spot(layer: usize) -> Spot {
        Spot { layer, heads: Heads { start: 0, end: 1 } }
    }

    /// Marks are numbers that happen in their order: `first` on the way in, a layer each, then the last on the way out.
    fn flight(step: usize, first: u32) -> Flight<u32> {
        let copies = [(0..4).map(|i| (first + i, spot(i as usize))).collect(), vec![(first + 4, spot(9))]];
        Flight { step, done: first + 5, copies }
    }

    #[test]
    fn a_lane_is_at_the_first_copy_that_has_not_come_of_the_oldest_step_under_way() {
        // The newer step has the first turn.
        let flights = [flight(7, 10), flight(6, 0)];
        let at = |lane, now: u32| first_to_come(flights.iter(), lane, |mark| mark < now).map(|s| s.layer);
        for now in 0..4 {
            assert_eq!((at(Lane::In, now), at(Lane::Out, now)), (Some(now as usize), Some(9)));
        }
        // All is fetched, and what is evicted is still on its way; then neither, but the step is not done.
        assert_eq!((at(Lane::In, 4), at(Lane::Out, 4)), (None, Some(9)));
        assert_eq!((at(Lane::In, 5), at(Lane::Out, 5)), (None, None));
        assert_eq!((at(Lane::In, 6), at(Lane::In, 12)), (Some(0), Some(2)));
        assert_eq!((at(Lane::In, 16), at(Lane::Compute, 0), at(Lane::Host, 0)), (None, None, None));
    }
}
