//! The engine thread: who gets a slot, and whose turn it is.
//!
//! A turn is a chunk of prefill, an interval brought back from the disk or one pass of decode, and goes to the job that has had the
//! least engine time since it came. So a short request shares the engine with a long prefill from the next chunk on.

use std::sync::Arc;
use std::time::Duration;

use headinfer_core::engine::EngineError;
use headinfer_core::text::Tokenizer;

use super::Opened;
use super::job::{Event, Failure, Job};
use super::queue::{Arrivals, Shared, State, Waiting};
use super::slot::Slot;
use super::view::View;
use crate::metrics::{Counters, Ending};

/// A prompt with more chunks than this to take in is long: one slot is kept free of such.
const LONG_CHUNKS: usize = 4;

/// Opens all sessions, then works until told to stop or until the device fails.
pub(super) fn run(
    shared: &Arc<Shared>,
    tokenizer: &Tokenizer,
    open: impl FnMut(usize) -> Result<Opened, String>,
) {
    let _guard = PanicGuard(shared);
    let opened: Result<Vec<Opened>, String> = (0..shared.options().slots).map(open).collect();
    let mut slots: Vec<Slot<'_>> = match opened {
        Ok(opened) => {
            opened.into_iter().map(|opened| Slot::new(opened, shared.options().speculation)).collect()
        }
        Err(why) => return shared.enter(State::Failed(why)),
    };
    for store in slots.iter().filter_map(Slot::store) {
        let above = shared.clone();
        store.on_change(move || above.disk_is_done());
    }
    shared.show(View::of(slots.iter().map(Slot::session)));
    report(shared, &slots);
    let context = slots.iter().map(Slot::context).min().unwrap_or(0);
    shared.enter(State::Ready { context, vocab: slots[0].vocab() });
    let (state, failure) = match work(shared, tokenizer, &mut slots) {
        Ok(()) => (State::Stopped, Failure::Stopping),
        Err(why) => {
            tracing::error!("the engine failed, nothing is served any more: {why}");
            (State::Failed(why.clone()), Failure::Engine(why))
        }
    };
    // Whoever hears of it and looks finds the new state.
    shared.enter(state);
    for job in slots.iter_mut().filter_map(|slot| slot.end(Ending::Failed, &shared.counters)) {
        job.tell(Event::Failed(failure.clone()));
    }
    if failure == Failure::Stopping {
        slots.iter_mut().for_each(Slot::flush);
    }
}

/// # Errors
/// What the device said when it failed.
fn work<'t>(shared: &Shared, tokenizer: &'t Tokenizer, slots: &mut [Slot<'t>]) -> Result<(), String> {
    // Whether a slot may have become free since those who wait were looked at.
    let mut moved = true;
    loop {
        for slot in slots.iter_mut().filter(|slot| slot.job().is_some_and(Job::abandoned)) {
            slot.end(Ending::Cancelled, &shared.counters);
            moved = true;
        }
        report(shared, slots);
        let idle = !moved && !slots.iter().any(Slot::can_work);
        let Some(mut arrivals) = shared.arrivals(idle) else { return Ok(()) };
        moved = false;
        take_over(&mut arrivals, slots, tokenizer, &shared.counters);
        admit(&mut arrivals, slots, tokenizer, &shared.counters);
        let written = arrivals.written;
        drop(arrivals);
        if written {
            after_a_write(slots).map_err(|error| error.to_string())?;
        }
        let Some(slot) = slots.iter_mut().filter(|s| s.can_work()).min_by_key(|s| s.spent()) else {
            continue;
        };
        let ended = match slot.turn(&shared.counters) {
            Ok(ended) => ended,
            Err(EngineError::Backend(error)) => return Err(error.to_string()),
            Err(error) => {
                let job = slot.end(Ending::Failed, &shared.counters);
                job.map(|job| (job, Event::Failed(Failure::Engine(error.to_string()))))
            }
        };
        if let Some((job, event)) = ended {
            moved = true;
            report(shared, slots);
            job.tell(event);
        }
    }
}

fn report(shared: &Shared, slots: &[Slot<'_>]) {
    slots.iter().enumerate().for_each(|(i, slot)| shared.report(i, slot.report()));
    if let Some(store) = slots[0].store() {
        shared.report_store(store.stats());
    }
}

/// The disk can take more. Whoever waits to be brought back goes first: a client waits with it.
fn after_a_write(slots: &mut [Slot<'_>]) -> Result<(), EngineError> {
    slots.iter_mut().for_each(Slot::wake);
    if slots.iter().any(Slot::restores) {
        return Ok(());
    }
    slots.iter_mut().filter(|slot| slot.behind() > 0).try_for_each(Slot::keep)
}

/// A job takes the slot of an older one of its session name at once: what was finished is there.
fn take_over<'t>(
    arrivals: &mut Arrivals<'_>,
    slots: &mut [Slot<'t>],
    tokenizer: &'t Tokenizer,
    counters: &Counters,
) {
    for slot in slots {
        let Some(name) = slot.job().and_then(|job| job.session.clone()) else { continue };
        if let Some(next) = arrivals.take(|waiting| waiting.job.session.as_ref() == Some(&name)) {
            let spent = slot.spent().unwrap_or_default();
            if let Some(job) = slot.end(Ending::Cancelled, counters) {
                job.tell(Event::Failed(Failure::Superseded));
            }
            slot.begin(next.job, spent, tokenizer, counters);
        }
    }
}

/// Free slots go to waiting jobs in the order they came, except that long prompts leave one slot to short ones.
fn admit<'t>(
    arrivals: &mut Arrivals<'_>,
    slots: &mut [Slot<'t>],
    tokenizer: &'t Tokenizer,
    counters: &Counters,
) {
    let long = LONG_CHUNKS * slots[0].chunk();
    while slots.iter().any(|slot| slot.job().is_none()) {
        let room_for_long =
            slots.len() == 1 || slots.iter().filter(|s| s.prefill_left() > long).count() + 1 < slots.len();
        // Handlers wait while this looks: a prompt that is long whatever is reused is not compared with the caches.
        let free = |slot: &&Slot<'_>| slot.job().is_none();
        let reach = long + slots.iter().filter(free).map(Slot::clean).max().unwrap_or(0);
        let found = arrivals.take(|Waiting { job, stored }| {
            // Once: hashing what may be millions of tokens takes milliseconds.
            let stored = *stored.get_or_insert_with(|| slots[0].available(&job.ids));
            (room_for_long || job.ids.len() <= reach.max(long + stored))
                && best(slots, &job.ids, stored)
                    .is_some_and(|(_, reused)| room_for_long || job.ids.len() - reused <= long)
        });
        let Some(Waiting { job, stored }) = found else { return };
        let Some((at, _)) = best(slots, &job.ids, stored.unwrap_or(0)) else { return };
        // Starting level with the others: neither behind their past nor ahead of them for good.
        let spent = slots.iter().filter_map(Slot::spent).min().unwrap_or(Duration::ZERO);
        arrivals.occupy(at);
        slots[at].begin(job, spent, tokenizer, counters);
    }
}

/// The free slot that leaves least of a prompt to be computed, and how much it spares: what it holds, or the `stored`
/// tokens that any slot can be given by the disk. Among equals, the one where least is lost and read.
fn best(slots: &[Slot<'_>], ids: &[u32], stored: usize) -> Option<(usize, usize)> {
    let free = slots.iter().enumerate().filter(|(_, slot)| slot.job().is_none());
    let ranked = free.map(|(at, slot)| {
        let held = slot.reusable(ids);
        (at, held.max(stored), slot.loss(held, stored))
    });
    let best = ranked.min_by_key(|&(_, spared, loss)| (usize::MAX - spared, loss));
    best.map(|(at, spared, _)| (at, spared))
}

/// Whoever waits must hear of a panic.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.enter(State::Failed("the engine thread panicked".into()));
        }
    }
}
