//! What handlers and the engine thread share: the state, the queue, and reports for the metrics.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use headinfer_core::backend::Stats;
use headinfer_core::store::StoreStats;
use thiserror::Error;
use tokio::sync::watch;

use super::EngineOptions;
use super::job::{Event, Failure, Job};
use super::view::View;
use crate::metrics::Counters;

/// What the engine is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Opening sessions.
    Loading,
    /// Serving.
    Ready {
        /// Tokens a slot's cache holds.
        context: usize,
        /// Token ids are below it.
        vocab: usize,
    },
    /// Ended because it was told to.
    Stopped,
    /// The device or the engine failed; nothing will be served.
    Failed(String),
}

/// Why a job was not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Refused {
    #[error("all slots are busy and {waiting} requests wait already: try again later")]
    Full { waiting: usize },
    #[error("{0}")]
    NotReady(String),
}

/// One slot, for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SlotReport {
    /// Totals since the session was opened.
    pub(crate) stats: Stats,
    /// Tokens in the cache.
    pub(crate) tokens: usize,
    /// Working on a request.
    pub(crate) busy: bool,
    /// Of the prompt being taken in: tokens done, and all. Both 0 when none is.
    pub(crate) prefill: (usize, usize),
    /// Prefilled tokens that the disk has not got yet.
    pub(crate) behind: usize,
}

/// A job that waits for a slot.
pub(super) struct Waiting {
    pub(super) job: Job,
    /// Tokens of its prompt that were on the disk when it was first looked at.
    pub(super) stored: Option<usize>,
}

/// See the module.
pub(crate) struct Shared {
    options: EngineOptions,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Changed under the lock of `inner` only.
    state: watch::Sender<State>,
    /// Of the sessions, once they are open.
    view: OnceLock<View>,
    pub(crate) counters: Counters,
}

struct Inner {
    /// No more jobs are taken.
    closed: bool,
    /// The thread is to end.
    stop: bool,
    waiting: VecDeque<Waiting>,
    slots: Vec<SlotReport>,
    /// A job came.
    arrived: bool,
    /// The disk is done with something.
    written: bool,
    store: Option<StoreStats>,
}

/// What the engine thread finds when it looks up from its work.
pub(super) struct Arrivals<'a> {
    inner: MutexGuard<'a, Inner>,
    /// Since it last looked, the disk was done with something.
    pub(super) written: bool,
}

impl Shared {
    pub(super) fn new(options: EngineOptions) -> Self {
        let slots = vec![SlotReport::default(); options.slots];
        let (waiting, store) = (VecDeque::new(), None);
        let (arrived, written) = (false, false);
        let inner = Inner { closed: false, stop: false, waiting, slots, arrived, written, store };
        Self {
            options,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            state: watch::Sender::new(State::Loading),
            view: OnceLock::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn options(&self) -> EngineOptions {
        self.options
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Tells of changes of the state.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Jobs that wait for a slot.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.iter().filter(|waiting| !waiting.job.abandoned()).count()
    }

    /// The sessions are open.
    pub(super) fn show(&self, view: Option<View>) {
        if let Some(view) = view {
            // They are opened once.
            let _ = self.view.set(view);
        }
    }

    pub(crate) fn view(&self) -> Option<&View> {
        self.view.get()
    }

    pub(crate) fn slots(&self) -> Vec<SlotReport> {
        self.lock().slots.clone()
    }

    /// What the session store did, if there is one.
    pub(crate) fn store(&self) -> Option<StoreStats> {
        self.lock().store
    }

    /// Puts a job into the queue.
    ///
    /// # Errors
    /// [`Refused`] when the engine does not serve or the queue is full.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Refused> {
        let mut inner = self.lock();
        match &*self.state.borrow() {
            State::Ready { .. } if !inner.closed => {}
            State::Loading => return Err(Refused::NotReady("the model is still loading".into())),
            State::Failed(why) => return Err(Refused::NotReady(format!("the engine failed: {why}"))),
            _ => return Err(Refused::NotReady("the server is shutting down".into())),
        }
        inner.waiting.retain(|waiting| !waiting.job.abandoned());
        let same = |other: &Waiting| other.job.session.is_some() && other.job.session == job.session;
        let replaced = inner.waiting.iter().position(same);
        let free = inner.slots.iter().filter(|slot| !slot.busy).count();
        let waiting = inner.waiting.len() - usize::from(replaced.is_some());
        if waiting >= self.options.queue + free {
            return Err(Refused::Full { waiting });
        }
        // Only now: what is replaced must not be lost for one that is refused.
        if let Some(replaced) = replaced.and_then(|at| inner.waiting.remove(at)) {
            replaced.job.tell(Event::Failed(Failure::Superseded));
        }
        inner.waiting.push_back(Waiting { job, stored: None });
        inner.arrived = true;
        self.changed.notify_one();
        Ok(())
    }

    /// Takes no more jobs.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Ends the engine thread, within a chunk.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        (inner.closed, inner.stop) = (true, true);
        self.changed.notify_one();
    }

    /// Sets the state; any but ready fails what waits.
    pub(super) fn enter(&self, state: State) {
        let failure = match &state {
            State::Failed(why) => Some(Failure::Engine(why.clone())),
            State::Stopped => Some(Failure::Stopping),
            State::Loading | State::Ready { .. } => None,
        };
        let mut inner = self.lock();
        self.state.send_replace(state);
        if let Some(failure) = failure {
            inner.waiting.drain(..).for_each(|waiting| waiting.job.tell(Event::Failed(failure.clone())));
            inner.slots.iter_mut().for_each(|slot| (slot.busy, slot.prefill) = (false, (0, 0)));
        }
    }

    pub(super) fn report(&self, slot: usize, report: SlotReport) {
        self.lock().slots[slot] = report;
    }

    pub(super) fn report_store(&self, store: StoreStats) {
        self.lock().store = Some(store);
    }

    /// The disk is done with something: for the store's thread.
    pub(super) fn disk_is_done(&self) {
        self.lock().written = true;
        self.changed.notify_one();
    }

    /// What has come; waits for something new when there is nothing else to do. `None`: it is time to end.
    pub(super) fn arrivals(&self, idle: bool) -> Option<Arrivals<'_>> {
        let mut inner = self.lock();
        while idle && !inner.stop && !inner.written && !inner.arrived {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.stop {
            return None;
        }
        inner.waiting.retain(|waiting| !waiting.job.abandoned());
        inner.arrived = false;
        let written = std::mem::take(&mut inner.written);
        Some(Arrivals { inner, written })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrivals<'_> {
    /// The first waiting job that `fits`.
    pub(super) fn take(&mut self, fits: impl FnMut(&mut Waiting) -> bool) -> Option<Waiting> {
        let at = self.inner.waiting.iter_mut().position(fits)?;
        self.inner.waiting.remove(at)
    }

    /// Marks a slot busy under the same lock that took its job, so that the queue counts right.
    pub(super) fn occupy(&mut self, slot: usize) {
        self.inner.slots[slot].busy = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use headinfer_core::engine::sample::Sampling;
    use headinfer_core::engine::stop::StopMatcher;

    use super::*;
    use crate::worker::{Feed, Teller};

    fn job(session: Option<&str>) -> (Job, Arc<Feed>) {
        let feed = Feed::named(100);
        let job = Job {
            ids: vec![1],
            max_tokens: 1,
            sampling: Sampling::default(),
            stops: StopMatcher::new(Vec::new()).unwrap(),
            stop_tokens: Vec::new(),
            logprobs: None,
            mask: None,
            session: session.map(str::to_owned),
            teller: Teller::new(feed.clone()),
            asked: Instant::now(),
        };
        (job, feed)
    }

    #[test]
    fn a_job_that_is_refused_takes_nobodys_place() {
        let shared = Shared::new(EngineOptions { slots: 1, queue: 1, ..EngineOptions::default() });
        shared.enter(State::Ready { context: 8, vocab: 8 });
        let (first, feed) = job(Some("name"));
        shared.submit(first).unwrap();
        shared.submit(job(None).0).unwrap();
        // The slot they were let in for has gone to somebody else.
        shared.report(0, SlotReport { busy: true, ..SlotReport::default() });
        assert_eq!(shared.submit(job(Some("name")).0), Err(Refused::Full { waiting: 1 }));
        assert!(feed.running());
        shared.report(0, SlotReport::default());
        shared.submit(job(Some("name")).0).unwrap();
        assert!(!feed.running());
    }
}
