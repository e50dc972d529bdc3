//! What follows one session: brings back what is stored of its text, and stores what is new.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::folder::Lease;
use super::format::{self, Problem, Shape};
use super::key::{Chain, Key, Link};
use super::writer::{self, BUFFERS, Job, Outcome};
use super::{Store, StoreError, interval};
use crate::engine::{EngineError, Session};
use crate::model::ModelDigest;
use crate::units::Bytes;

/// Where a session stands with the store, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// At the front, and safe on the disk.
    pub stored: usize,
    /// After those, in whole intervals, and not on the disk yet: what a loss of power would cost.
    pub behind: usize,
    /// The disk refuses, and was not asked again: nothing comes of waiting. Else those behind are at work or wait for
    /// the disk, and more can be given when it is done with something.
    pub refused: bool,
}

/// Follows one session at a time; all sessions it follows are of one model, plan and kind of backend.
pub struct Trail {
    store: Store,
    shape: Shape,
    interval: usize,
    chain: Chain,
    /// Intervals of the chain that are stored, at the front.
    stored: usize,
    /// Given to the writer after those, in order.
    given: VecDeque<Outcome>,
    lease: Option<Lease>,
}

impl Trail {
    pub(super) fn new(store: &Store, model: &ModelDigest, session: &Session) -> Result<Self, StoreError> {
        let plan = session.plan();
        let chunk = plan.knobs().chunk;
        let interval = interval(chunk, store.handle.interval_min);
        let shape = Shape::of(&plan.spec, interval).ok_or(StoreError::Shape { tokens: interval })?;
        let (need, have) = (shape.file_bytes() as u64, store.handle.bytes_max);
        if need > have {
            return Err(StoreError::TooSmall { need: Bytes(need), have: Bytes(have), tokens: interval });
        }
        let numerics = session.backend().numerics().ok_or(StoreError::Backend)?;
        let root = Key::root(model, &numerics, plan, interval);
        let chain = Chain::new(root, interval);
        Ok(Self {
            store: store.clone(),
            shape,
            interval,
            chain,
            stored: 0,
            given: VecDeque::new(),
            lease: None,
        })
    }

    /// Where it stores.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Tokens of one file: whole chunks. Fewer than this are lost when a process dies and the disk has kept up.
    pub fn interval(&self) -> usize {
        self.interval
    }

    /// Bytes of memory that storing and restoring take at most, all trails of one size and store together.
    pub fn memory_bytes(&self) -> u64 {
        (BUFFERS * self.shape.file_bytes()) as u64
    }

    /// How many of the first `ids` there are files for, going by names: what [`Trail::restore`] can give at most. The
    /// last id is never among them, for its logits are needed.
    pub fn available(&self, ids: &[u32]) -> usize {
        let wanted = &ids[..ids.len().saturating_sub(1)];
        // Hashed no further than there are files: most texts have none.
        let links = self.chain.links_of(wanted);
        links.take_while(|link| self.store.handle.shared.has(link)).count() * self.interval
    }

    /// Whether [`Trail::restore_next`] would have to wait until the disk is done with a buffer.
    pub fn must_wait(&self) -> bool {
        !self.store.handle.shared.has_buffer()
    }

    /// Brings the next interval of `ids` into the session; whether there was one. Where the session's clean tokens
    /// already begin as `ids` do it goes on from there. A file is read and checked whole before the session is
    /// touched, and one that is not sound is passed over with a warning.
    ///
    /// # Errors
    /// [`EngineError`] when an id is refused or the device failed.
    pub fn restore_next(&mut self, session: &mut Session, ids: &[u32]) -> Result<bool, EngineError> {
        let wanted = &ids[..ids.len().saturating_sub(1)];
        self.follow(wanted);
        let clean = &session.tokens()[..session.clean()];
        let index = clean.iter().zip(wanted).take_while(|(a, b)| a == b).count() / self.interval;
        if index >= self.chain.len() {
            return Ok(false);
        }
        let (link, shared) = (self.chain.link(index), self.store.handle.shared.clone());
        if !shared.has(&link) {
            return Ok(false);
        }
        let mut buffer = shared.buffer(self.shape.file_bytes());
        let found = writer::load(&shared, &link, &mut buffer);
        let result = match found.then(|| self.check(&buffer, index, &link)) {
            Some(Ok(kv)) => {
                session.rewind(index * self.interval);
                session.adopt(self.chain.ids(index), kv).map(|()| true)
            }
            Some(Err(problem)) => {
                shared.pass_over(&link, &problem);
                Ok(false)
            }
            None => Ok(false),
        };
        shared.give_back(buffer);
        if let Ok(true) = result {
            shared.folder.touch(&link);
            self.given.clear();
            self.settle(index + 1);
        }
        result
    }

    /// Brings the session as far into `ids` as its own clean tokens and sound files allow, and forgets what else it
    /// holds; how many tokens that are, in whole chunks and never all of `ids`. `progress` is told the tokens there
    /// after each interval and may stop.
    ///
    /// # Errors
    /// As [`Trail::restore_next`].
    pub fn restore(
        &mut self,
        session: &mut Session,
        ids: &[u32],
        progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<usize, EngineError> {
        while self.restore_next(session, ids)? {
            if progress(session.tokens().len()).is_break() {
                break;
            }
        }
        let (clean, chunk) = (&session.tokens()[..session.clean()], session.plan().knobs().chunk);
        let wanted = &ids[..ids.len().saturating_sub(1)];
        let shared = clean.iter().zip(wanted).take_while(|(a, b)| a == b).count() / chunk * chunk;
        session.rewind(shared);
        Ok(shared)
    }

    /// Gives the writer what is new of the session's clean tokens. To be called between steps. It waits for the device
    /// and for a copy of at most [`BUFFERS`] intervals, never for the disk: what the disk has no time for stays in
    /// the session, and is given at a later call.
    ///
    /// # Errors
    /// [`EngineError`] when the device failed. What the disk does is no error.
    pub fn checkpoint(&mut self, session: &mut Session) -> Result<Kept, EngineError> {
        self.follow(&session.tokens()[..session.clean()]);
        self.poll();
        self.find();
        let shared = self.store.handle.shared.clone();
        let mut refused = false;
        while self.stored + self.given.len() < self.chain.len() {
            let index = self.stored + self.given.len();
            let link = self.chain.link(index);
            if shared.has(&link) {
                self.given.push_back(Outcome::stored());
                self.poll();
                continue;
            }
            if !shared.may_write() {
                refused = self.given.is_empty();
                break;
            }
            let Some(mut buffer) = shared.try_buffer(self.shape.file_bytes()) else { break };
            let rows = index * self.interval..(index + 1) * self.interval;
            if let Err(error) = session.read_rows(rows, self.shape.data_mut(&mut buffer)) {
                shared.give_back(buffer);
                return Err(error);
            }
            let (outcome, ids) = (Outcome::default(), self.chain.ids(index).to_vec());
            self.store.give(Job { link, shape: self.shape, ids, buffer, outcome: outcome.clone() });
            self.given.push_back(outcome);
        }
        Ok(Kept { refused, ..self.kept() })
    }

    /// As [`Trail::checkpoint`], and waits until the disk has all of it, or refuses it.
    ///
    /// # Errors
    /// As [`Trail::checkpoint`].
    pub fn finish(&mut self, session: &mut Session) -> Result<Kept, EngineError> {
        let shared = self.store.handle.shared.clone();
        loop {
            let kept = self.checkpoint(session)?;
            match self.given.front() {
                _ if kept.behind == 0 => return Ok(kept),
                Some(first) => shared.wait_for(first),
                None if shared.failing() => return Ok(kept),
                // Other trails have all buffers.
                None => shared.give_back(shared.buffer(self.shape.file_bytes())),
            }
        }
    }

    /// Nothing of the session is in use any more: what is stored of it may be deleted when its time comes. When it is
    /// used again, the next call of [`Trail::checkpoint`] looks what is left.
    pub fn release(&mut self) {
        self.lease = None;
        if self.given.is_empty() {
            self.stored = 0;
        }
    }

    /// The KV of a file that is sound and holds just what is wanted.
    fn check<'a>(&self, file: &'a [u8], index: usize, link: &Link) -> Result<&'a [u8], Problem> {
        let contents = format::open(file)?;
        let right = contents.shape == self.shape && contents.link == *link;
        if right && contents.ids == self.chain.ids(index) { Ok(contents.kv) } else { Err(Problem::Another) }
    }

    /// Turns to `ids`. What was given of other ones is written all the same, and not asked after.
    fn follow(&mut self, ids: &[u32]) {
        let shared = self.chain.follow(ids);
        self.given.truncate(shared.saturating_sub(self.stored));
        if shared < self.stored {
            // What is left behind makes room when room is needed, for what comes now too.
            self.lease = None;
            self.stored = shared;
            if shared > 0 {
                self.settle(shared);
            }
        }
    }

    /// Passes over what is stored already, and marks it as used.
    fn find(&mut self) {
        let shared = &self.store.handle.shared;
        let (from, end) = (self.stored, self.chain.len());
        if !self.given.is_empty() || from == end {
            return;
        }
        let found = (from..end).map(|index| self.chain.link(index)).take_while(|link| shared.has(link));
        let count = found.inspect(|link| shared.folder.touch(link)).count();
        if count > 0 {
            self.settle(from + count);
        }
    }

    /// Learns what became of what was given.
    fn poll(&mut self) {
        while let Some(stored) = self.given.front().and_then(Outcome::get) {
            if !stored {
                // What was given after it leads nowhere without it. Where it is stored all the same, it is found.
                self.given.clear();
                return;
            }
            self.given.pop_front();
            self.settle(self.stored + 1);
        }
    }

    /// The first `stored` intervals are on the disk and in use.
    fn settle(&mut self, stored: usize) {
        self.stored = stored;
        let folder = &self.store.handle.shared.folder;
        if self.lease.is_none() {
            // Without one, what is stored may go early: that costs time and nothing else.
            self.lease = folder.lease().ok();
        }
        if let Some(lease) = &self.lease {
            lease.set(self.chain.link(stored - 1).key);
        }
    }

    fn kept(&self) -> Kept {
        let behind = (self.chain.len() - self.stored) * self.interval;
        Kept { stored: self.stored * self.interval, behind, refused: false }
    }
}

impl Store {
    fn give(&self, job: Job) {
        self.handle.shared.job_given();
        let given = self.handle.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        assert!(given, "the writer lives as long as its store");
    }
}

impl std::fmt::Debug for Trail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { chain, interval, .. } = self;
        f.debug_struct("Trail").field("chain", chain).field("interval", interval).finish_non_exhaustive()
    }
}

/// Shared by all that use one store.
pub(super) struct Handle {
    pub(super) shared: Arc<writer::Shared>,
    pub(super) jobs: Option<std::sync::mpsc::SyncSender<Job>>,
    pub(super) thread: Option<std::thread::JoinHandle<()>>,
    pub(super) interval_min: usize,
    pub(super) bytes_max: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The writer ends when it has written what it was given.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
