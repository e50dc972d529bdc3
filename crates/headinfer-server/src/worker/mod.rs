//! The engine below the async world: one thread, a bounded queue, and slots that take turns.
//!
//! Handlers put a [`Job`] into the queue and read its [`Event`]s. This room must not know HTTP or JSON.

mod feed;
mod job;
mod output;
mod queue;
mod slot;
mod turns;
mod view;

use std::sync::Arc;
use std::thread::JoinHandle;

use headinfer_core::engine::Session;
use headinfer_core::engine::guess::Speculation;
use headinfer_core::store::Trail;
use headinfer_core::text::Tokenizer;
use thiserror::Error;

pub(crate) use feed::{Deaf, Feed, Teller};
pub(crate) use job::{Event, Failure, FinishReason, Job, Scored, Usage};
pub use queue::State;
pub(crate) use queue::{Refused, Shared, SlotReport};

/// How an engine serves many requests.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Requests worked on at the same time, each on a session (a KV cache) of its own.
    pub slots: usize,
    /// Requests that may wait for a slot; further ones are refused with 429.
    pub queue: usize,
    /// Guesses that decode takes along; they change no answer.
    pub speculation: Speculation,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { slots: 2, queue: 64, speculation: Speculation::Auto }
    }
}

/// What a slot is opened with.
pub struct Opened {
    session: Session,
    trail: Option<Trail>,
}

impl Opened {
    /// A session whose prefill is kept by the store of `trail`, and brought back from there.
    pub fn kept(session: Session, trail: Trail) -> Self {
        Self { session, trail: Some(trail) }
    }
}

/// A session that lives in memory alone.
impl From<Session> for Opened {
    fn from(session: Session) -> Self {
        Self { session, trail: None }
    }
}

/// Why an engine cannot be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// Nothing could ever run.
    #[error("an engine needs at least one slot")]
    NoSlot,
    /// The system refused a thread.
    #[error("cannot start the engine thread")]
    Thread(#[source] std::io::Error),
}

/// The engine thread, seen from above. Dropped, it waits until the thread has ended and what was prefilled is on the disk.
pub struct EngineHandle {
    shared: Arc<Shared>,
    tokenizer: Arc<Tokenizer>,
    thread: Option<JoinHandle<()>>,
}

impl EngineHandle {
    /// Starts the thread, which calls `open` with 0, 1, … for each slot's session; all must be of one plan, and keep
    /// their KV in one store or none. Until all are open the server answers 503.
    ///
    /// # Errors
    /// [`StartError`]. What `open` refuses becomes [`State::Failed`].
    pub fn start<F>(options: EngineOptions, tokenizer: Arc<Tokenizer>, open: F) -> Result<Self, StartError>
    where
        F: FnMut(usize) -> Result<Opened, String> + Send + 'static,
    {
        if options.slots == 0 {
            return Err(StartError::NoSlot);
        }
        let shared = Arc::new(Shared::new(options));
        let (below, text) = (shared.clone(), tokenizer.clone());
        let work = move || turns::run(&below, &text, open);
        let thread =
            std::thread::Builder::new().name("engine".into()).spawn(work).map_err(StartError::Thread)?;
        Ok(Self { shared, tokenizer, thread: Some(thread) })
    }

    /// What the engine is doing.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported as a fault already.
            let _ = thread.join();
        }
    }
}
