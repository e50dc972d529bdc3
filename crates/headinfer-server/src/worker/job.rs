//! What is asked of the engine, and what it answers.

use std::time::Instant;

use headinfer_core::engine::sample::{Sampling, TokenMask};
use headinfer_core::engine::stop::StopMatcher;
use thiserror::Error;

use super::feed::Teller;

/// One request. All of it has been checked: ids are below the vocabulary, and prompt and output fit the context.
pub(crate) struct Job {
    /// The prompt; not empty.
    pub(crate) ids: Vec<u32>,
    /// At least 1.
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stops: StopMatcher,
    /// Tokens that end the generation and are not part of it.
    pub(crate) stop_tokens: Vec<u32>,
    /// Report each token's probability and those of so many likeliest ones.
    pub(crate) logprobs: Option<usize>,
    /// Which tokens may come next, when not all may.
    pub(crate) mask: Option<Box<dyn TokenMask>>,
    /// Another job of the same name takes over.
    pub(crate) session: Option<String>,
    pub(crate) teller: Teller,
    pub(crate) asked: Instant,
}

impl Job {
    /// Nothing more is to be done for it.
    pub(crate) fn abandoned(&self) -> bool {
        self.teller.feed().abandoned()
    }

    /// Tells whoever listens.
    pub(crate) fn tell(&self, event: Event) {
        self.teller.feed().tell(event);
    }
}

/// What becomes of a job: progress, then text, then an end.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Prefill, at its start and after each chunk.
    Progress {
        /// Tokens of the prompt.
        total: usize,
        /// Those found in a slot's cache or on the disk, so far.
        cache: usize,
        /// Those in the cache by now, `cache` included.
        processed: usize,
        /// Since the job got its slot.
        time_ms: u64,
    },
    /// Text that is settled, and the tokens it settles.
    Text { text: String, tokens: Vec<Scored> },
    /// The end.
    Done { reason: FinishReason, usage: Usage },
    /// An end too.
    Failed(Failure),
}

/// A token and how likely it was, by the model alone: before temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) id: u32,
    /// ln of its probability.
    pub(crate) logprob: f64,
    /// The likeliest tokens, likeliest first.
    pub(crate) top: Vec<(u32, f64)>,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinishReason {
    /// A stop string, or a token that ends a text.
    Stop,
    /// `max_tokens`.
    Length,
}

impl FinishReason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Tokens of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    /// Tokens of the prompt whose K and V were in a slot or on the disk already.
    pub(crate) cached: usize,
    pub(crate) completion: usize,
}

/// Why a job has no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum Failure {
    #[error("another request with the same X-Session-Id took over")]
    Superseded,
    #[error("the work was cancelled")]
    Cancelled,
    /// The engine dropped it without a word: it can only have panicked.
    #[error("the engine failed while it worked on this request")]
    Lost,
    #[error("the server is shutting down")]
    Stopping,
    #[error("the engine failed: {0}")]
    Engine(String),
}
