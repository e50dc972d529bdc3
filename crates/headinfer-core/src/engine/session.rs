//! One sequence of tokens and its KV cache.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::backend::{Backend, BackendError};
use crate::engine::sample::PickError;
use crate::plan::{Plan, Step};

/// Why a session could not go on. The tokens already taken in stay valid.
#[derive(Debug, Error)]
pub enum EngineError {
    /// Nothing to compute.
    #[error("the prompt is empty: give at least one token")]
    Empty,
    /// The cache is full.
    #[error(
        "{need} tokens do not fit into a context of {context}: give --context {need} or a shorter prompt"
    )]
    ContextFull {
        /// Tokens the request needs in all.
        need: usize,
        /// Tokens the plan holds.
        context: usize,
    },
    /// A token the model does not have.
    #[error("token id {id} at position {at} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Its index in the given ids.
        at: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The caller said stop; what was finished is kept.
    #[error("cancelled after {done} of {total} tokens")]
    Cancelled {
        /// Tokens taken in.
        done: usize,
        /// Tokens given.
        total: usize,
    },
    /// A logit is NaN or infinite.
    #[error("the logits are not finite: the weights are damaged or overflow")]
    NotFinite,
    /// What may come next leaves nothing to choose.
    #[error("no token may come next: {0}")]
    Mask(String),
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<PickError> for EngineError {
    fn from(error: PickError) -> Self {
        match error {
            PickError::NotFinite(_) => Self::NotFinite,
            PickError::Mask(why) => Self::Mask(why),
        }
    }
}

/// How far a prefill is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Tokens finished of those given.
    pub done: usize,
    /// Tokens given.
    pub total: usize,
    /// Since the call.
    pub elapsed: Duration,
    /// Expected time to the end, from the plan's floors scaled by the speed seen so far.
    pub remaining: Duration,
}

/// A sequence of tokens whose K and V are stored, and the means to continue it.
pub struct Session {
    plan: Arc<Plan>,
    backend: Box<dyn Backend>,
    tokens: Vec<u32>,
    clean: usize,
    /// Tokens that the backend has; a rewind makes them fewer when something is asked of it.
    held: usize,
}

impl Session {
    /// An empty sequence on a backend opened for `plan`.
    pub fn new(plan: Arc<Plan>, backend: Box<dyn Backend>) -> Self {
        Self { plan, backend, tokens: Vec::new(), clean: 0, held: 0 }
    }

    /// The plan it runs under.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The backend, for its statistics.
    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// The backend, to record timelines.
    pub fn backend_mut(&mut self) -> &mut dyn Backend {
        self.backend.as_mut()
    }

    /// Tokens whose K and V are stored.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many tokens at the front were taken in by whole chunks from the first on: a multiple of the chunk. Their K
    /// and V have the bits that a fresh prefill of any text beginning with them would give; rows of shorter steps
    /// may differ from those by rounding.
    pub fn clean(&self) -> usize {
        self.clean
    }

    /// Forgets all tokens after the first `len`; their rows are overwritten by what comes next.
    pub fn rewind(&mut self, len: usize) {
        self.tokens.truncate(len);
        let chunk = self.plan.knobs().chunk;
        self.clean = self.clean.min(len / chunk * chunk);
    }

    /// Copies K and V of the tokens `rows` to `to`, bf16 `[layer][kv_head][K | V][rows, head_dim]`: a form that any
    /// placement can take over.
    ///
    /// # Errors
    /// [`EngineError::Backend`].
    ///
    /// # Panics
    /// When there are no such tokens, or `to` has another size.
    pub fn read_rows(&mut self, rows: Range<usize>, to: &mut [u8]) -> Result<(), EngineError> {
        assert!(rows.end <= self.tokens.len(), "rows {rows:?} of {} tokens", self.tokens.len());
        self.settle()?;
        Ok(self.backend.read_rows(rows, self.held, to)?)
    }

    /// Takes in `ids` by their K and V, `kv` as [`Session::read_rows`] gave them, instead of computing these. All
    /// tokens so far must be clean and so are these after.
    ///
    /// # Errors
    /// As [`Session::step`].
    ///
    /// # Panics
    /// When the tokens are not clean, the ids no whole number of chunks, or `kv` has another size.
    pub fn adopt(&mut self, ids: &[u32], kv: &[u8]) -> Result<(), EngineError> {
        self.check(ids)?;
        let (past, chunk) = (self.tokens.len(), self.plan.knobs().chunk);
        assert!(self.clean == past && ids.len().is_multiple_of(chunk), "only whole chunks are taken over");
        self.settle()?;
        self.backend.write_rows(past..past + ids.len(), kv)?;
        self.tokens.extend_from_slice(ids);
        (self.clean, self.held) = (self.tokens.len(), self.tokens.len());
        Ok(())
    }

    /// Replaces all that is stored by a synthetic past of `past` tokens, id 0 each: for measurements at depth.
    ///
    /// # Errors
    /// [`EngineError`] when the past does not fit the context, or the backend cannot make one.
    pub fn assume_past(&mut self, past: usize, seed: u64) -> Result<(), EngineError> {
        let context = self.plan.knobs().context;
        if past > context {
            return Err(EngineError::ContextFull { need: past, context });
        }
        self.backend.fill_past(past, seed)?;
        self.tokens = vec![0; past];
        (self.clean, self.held) = (0, past);
        Ok(())
    }

    /// One step of `ids.len()` new rows, at most a chunk; logits of the last `logit_rows`, f32
    /// `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// [`EngineError`]; the session is unchanged unless the device failed.
    pub fn step(&mut self, ids: &[u32], logit_rows: usize) -> Result<&[f32], EngineError> {
        self.check(ids)?;
        let k = self.plan.knobs();
        assert!(ids.len() <= k.chunk && logit_rows <= k.logit_rows, "a step exceeds the plan");
        self.run(ids, logit_rows)?;
        Ok(self.backend.logits()?)
    }

    /// Takes in `ids` chunk by chunk and returns the logits of the last, f32 `[vocab]`. `progress` is told after
    /// each chunk and may stop; the finished part is kept.
    ///
    /// # Errors
    /// [`EngineError`]; before any work when the ids are refused.
    pub fn prefill(
        &mut self,
        ids: &[u32],
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<&[f32], EngineError> {
        self.prefill_with(ids, &mut |_, done| progress(done))
    }

    /// As [`Session::prefill`], and `between` is also given the session after each chunk, to look at or to save: it
    /// must not change its tokens.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_with(
        &mut self,
        ids: &[u32],
        between: &mut dyn FnMut(&mut Session, Progress) -> ControlFlow<()>,
    ) -> Result<&[f32], EngineError> {
        self.take_in(ids, 1, between, &mut |_, _| {})?;
        Ok(self.backend.logits()?)
    }

    /// Takes in `ids` and hands the logits of their last `rows` to `sink`: index into `ids` of the first row,
    /// and f32 `[some rows, vocab]`, in order.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn score(
        &mut self,
        ids: &[u32],
        rows: usize,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.take_in(ids, rows, &mut |_, done| progress(done), sink)
    }

    fn take_in(
        &mut self,
        ids: &[u32],
        rows: usize,
        between: &mut dyn FnMut(&mut Session, Progress) -> ControlFlow<()>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check(ids)?;
        let begun = Instant::now();
        let (start, total) = (self.tokens.len(), ids.len());
        let quiet = total - rows.min(total);
        let mut done = 0;
        while done < total {
            let (take, logit_rows) = self.next_step(total - done, quiet.saturating_sub(done));
            self.run(&ids[done..done + take], logit_rows)?;
            done += take;
            if logit_rows > 0 {
                sink(done - logit_rows, self.backend.logits()?);
            }
            let elapsed = begun.elapsed();
            let remaining = self.remaining(start, done, total, elapsed);
            let stop = between(self, Progress { done, total, elapsed, remaining }).is_break();
            if stop && done < total {
                return Err(EngineError::Cancelled { done, total });
            }
        }
        Ok(())
    }

    /// Rows of the next step and how many of them have logits, when `left` rows are left, the first `quiet` of
    /// them without logits.
    fn next_step(&self, left: usize, quiet: usize) -> (usize, usize) {
        let k = self.plan.knobs();
        let take = left.min(k.chunk);
        let loud = take.saturating_sub(quiet);
        match loud > k.logit_rows {
            true => (take - loud + k.logit_rows, k.logit_rows),
            false => (take, loud),
        }
    }

    /// Attention makes late chunks slower than early ones: the floors of the plan know by how much.
    fn remaining(&self, start: usize, done: usize, total: usize, elapsed: Duration) -> Duration {
        let floor = |past: usize, rows: usize| {
            let step = Step { past, rows, logit_rows: 0 };
            self.plan.step_cost(&step).floor_s(&self.plan.request.machine)
        };
        let sample = |from: usize, to: usize| -> f64 {
            // The floor is close to linear in the past: a few points integrate it well.
            const POINTS: usize = 8;
            let rows = self.plan.knobs().chunk.min(to - from).max(1);
            let at = |i: usize| from + (to - from) * (2 * i + 1) / (2 * POINTS);
            let mean = (0..POINTS).map(|i| floor(start + at(i), rows)).sum::<f64>() / POINTS as f64;
            mean * (to - from) as f64 / rows as f64
        };
        if done >= total {
            return Duration::ZERO;
        }
        let ratio = sample(done, total) / sample(0, done).max(f64::MIN_POSITIVE);
        Duration::try_from_secs_f64(elapsed.as_secs_f64() * ratio).unwrap_or(Duration::MAX)
    }

    fn run(&mut self, ids: &[u32], logit_rows: usize) -> Result<(), EngineError> {
        self.settle()?;
        let step = Step { past: self.tokens.len(), rows: ids.len(), logit_rows };
        self.backend.submit(&self.plan.schedule(step), ids)?;
        self.tokens.extend_from_slice(ids);
        self.held = self.tokens.len();
        if step.past == self.clean && step.rows == self.plan.knobs().chunk {
            self.clean += step.rows;
        }
        Ok(())
    }

    /// Has the backend follow a rewind. Where it went back into a unit that was coded, this becomes the open one again:
    /// at most 33 MB of an 8B model, where guesses that nothing came of had crossed a unit's end.
    fn settle(&mut self) -> Result<(), EngineError> {
        let left = self.tokens.len();
        if let Some(rows) = self.plan.reopens(self.held, left) {
            let mut kv = vec![0; rows.len() * self.plan.kv_bytes_per_token() as usize];
            self.backend.read_rows(rows.clone(), self.held, &mut kv)?;
            self.backend.write_rows(rows, &kv)?;
        }
        self.held = left;
        Ok(())
    }

    fn check(&self, ids: &[u32]) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Err(EngineError::Empty);
        }
        let (need, context) = (self.tokens.len() + ids.len(), self.plan.knobs().context);
        if need > context {
            return Err(EngineError::ContextFull { need, context });
        }
        let vocab = self.plan.spec.vocab;
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(at) => Err(EngineError::UnknownToken { id: ids[at], at, vocab }),
            None => Ok(()),
        }
    }
}
