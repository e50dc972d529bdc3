//! The thread that writes, and what it shares with those that give it work: buffers, counts, and whether the disk
//! takes anything at all.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::StoreStats;
use super::disk::{self, Buffer};
use super::folder::Folder;
use super::format::{self, Shape};
use super::key::Link;
use super::reader::Reader;

/// Intervals held in memory at once: one being written or read while another is filled.
pub const BUFFERS: usize = 2;
/// After a failure this many chances to write are let pass at most; one, two, four, … before.
const PASSED_MAX: u32 = 64;

/// An interval to be written.
pub(super) struct Job {
    pub(super) link: Link,
    pub(super) shape: Shape,
    pub(super) ids: Vec<u32>,
    pub(super) buffer: Buffer,
    pub(super) outcome: Outcome,
}

/// What became of a job, as its giver sees it.
#[derive(Clone, Default)]
pub(super) struct Outcome(Arc<AtomicU8>);

impl Outcome {
    /// Of what needs no job: it is there.
    pub(super) fn stored() -> Self {
        let outcome = Self::default();
        outcome.set(true);
        outcome
    }

    /// `None` while it waits; whether it was stored after.
    pub(super) fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            done => Some(done == 1),
        }
    }

    fn set(&self, stored: bool) {
        self.0.store(if stored { 1 } else { 2 }, Ordering::Release);
    }
}

/// What all users of a store share.
pub(super) struct Shared {
    pub(super) folder: Folder,
    reader: Reader,
    state: Mutex<State>,
    /// A buffer came back, or a job ended.
    changed: Condvar,
    pub(super) written_files: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) warnings: AtomicU64,
    /// See [`Store::on_change`](super::Store::on_change).
    pub(super) hook: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct State {
    free: Vec<Buffer>,
    /// Buffers that exist, and their bytes.
    made: usize,
    made_bytes: usize,
    /// Jobs that were given and have not ended.
    waiting: usize,
    /// Files found damaged or unreadable: not read again, and written anew.
    bad: HashSet<String>,
    failing: bool,
    /// Chances to let pass before the next try, and after that one if it fails.
    pass: u32,
    pass_next: u32,
}

impl Shared {
    pub(super) fn new(folder: Folder, reader: Reader) -> Self {
        Self {
            folder,
            reader,
            state: Mutex::default(),
            changed: Condvar::new(),
            written_files: 0.into(),
            written_bytes: 0.into(),
            read_bytes: 0.into(),
            refused: 0.into(),
            warnings: 0.into(),
            hook: OnceLock::new(),
        }
    }

    /// Whether a buffer could be had at once.
    pub(super) fn has_buffer(&self) -> bool {
        let state = self.state();
        state.made < BUFFERS || !state.free.is_empty()
    }

    /// A buffer of `bytes`, if one is free.
    pub(super) fn try_buffer(&self, bytes: usize) -> Option<Buffer> {
        take_buffer(&mut self.state(), bytes)
    }

    /// A buffer of `bytes`; waits for the disk where all are at work.
    pub(super) fn buffer(&self, bytes: usize) -> Buffer {
        let mut state = self.state();
        loop {
            match take_buffer(&mut state, bytes) {
                Some(buffer) => return buffer,
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    pub(super) fn give_back(&self, buffer: Buffer) {
        self.state().free.push(buffer);
        self.changed.notify_all();
    }

    pub(super) fn job_given(&self) {
        self.state().waiting += 1;
    }

    /// Waits until all jobs have ended.
    pub(super) fn wait(&self) {
        let waiting = |state: &mut State| state.waiting > 0;
        drop(self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until one job has.
    pub(super) fn wait_for(&self, outcome: &Outcome) {
        let waiting = |_: &mut State| outcome.get().is_none();
        drop(self.changed.wait_while(self.state(), waiting).unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether to try to write: after a failure, only now and then.
    pub(super) fn may_write(&self) -> bool {
        let mut state = self.state();
        if !state.failing {
            return true;
        }
        if state.pass > 0 {
            state.pass -= 1;
            return false;
        }
        state.pass = state.pass_next;
        state.pass_next = (2 * state.pass_next).min(PASSED_MAX);
        true
    }

    /// Whether the last write failed.
    pub(super) fn failing(&self) -> bool {
        self.state().failing
    }

    /// Whether there is a file for `link` that nothing is known against.
    pub(super) fn has(&self, link: &Link) -> bool {
        let name = link.file_name();
        !self.state().bad.contains(&name) && self.folder.path_of(link).exists()
    }

    /// Says once that a file is passed over, and remembers it.
    pub(super) fn pass_over(&self, link: &Link, why: &dyn std::fmt::Display) {
        if self.state().bad.insert(link.file_name()) {
            let path = self.folder.path_of(link);
            self.warn(format_args!("session store: {} is passed over: {why}", path.display()));
        }
    }

    pub(super) fn stats(&self) -> StoreStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let buffer_bytes = self.state().made_bytes as u64;
        StoreStats {
            written_files: read(&self.written_files),
            written_bytes: read(&self.written_bytes),
            read_bytes: read(&self.read_bytes),
            folder_bytes: self.folder.bytes(),
            buffer_bytes,
            refused: read(&self.refused),
            warnings: read(&self.warnings),
        }
    }

    fn warn(&self, message: std::fmt::Arguments<'_>) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("{message}");
    }

    fn ended(&self, job: Job, result: &io::Result<()>) {
        let mut state = self.state();
        state.waiting -= 1;
        state.free.push(job.buffer);
        let was_failing = std::mem::replace(&mut state.failing, result.is_err());
        if result.is_ok() {
            state.bad.remove(&job.link.file_name());
        } else if !was_failing {
            (state.pass, state.pass_next) = (1, 2);
        }
        // Under the lock, or a waiter could miss it.
        job.outcome.set(result.is_ok());
        drop(state);
        self.refused.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
        match result {
            Ok(()) if was_failing => tracing::info!("session store: writing again"),
            Err(error) if !was_failing => {
                self.warn(format_args!("session store: nothing is kept for now: {error}"));
            }
            _ => {}
        }
        self.changed.notify_all();
        if let Some(hook) = self.hook.get() {
            hook();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_buffer(state: &mut State, bytes: usize) -> Option<Buffer> {
    let fitting = state.free.iter().position(|buffer| buffer.len() == bytes);
    if let Some(at) = fitting {
        return Some(state.free.swap_remove(at));
    }
    if state.made == BUFFERS {
        // One of another size makes place.
        state.made_bytes -= state.free.pop()?.len();
        state.made -= 1;
    }
    state.made += 1;
    state.made_bytes += bytes;
    Some(Buffer::new(bytes))
}

/// Writes jobs until no one is left to give any.
pub(super) fn run(shared: &Shared, jobs: &Receiver<Job>) {
    while let Ok(mut job) = jobs.recv() {
        format::seal(&mut job.buffer, &job.shape, &job.link, &job.ids);
        let result = store(shared, &job);
        shared.ended(job, &result);
    }
}

fn store(shared: &Shared, job: &Job) -> io::Result<()> {
    let bytes = job.buffer.len() as u64;
    let partial = shared.folder.reserve(&job.link, bytes)?;
    disk::write(&partial.path, &partial.file, &job.buffer)?;
    partial.publish()?;
    shared.written_files.fetch_add(1, Ordering::Relaxed);
    shared.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    Ok(())
}

/// Fills `buffer` from the file of `link`; whether there is one, of the right length. What else may be wrong with it is
/// for `format::open` to say.
pub(super) fn load(shared: &Shared, link: &Link, buffer: &mut Buffer) -> bool {
    let path: &Path = &shared.folder.path_of(link);
    match disk::read(&shared.reader, path, buffer) {
        Ok(Ok(())) => {
            shared.read_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            true
        }
        Ok(Err(have)) => {
            shared.pass_over(link, &format::Problem::Length { have, want: buffer.len() as u64 });
            false
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            shared.pass_over(link, &error);
            false
        }
    }
}
