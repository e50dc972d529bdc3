//! A session and the job that has it: one turn is a chunk of prefill or one token.

use std::time::{Duration, Instant};

use headinfer_core::engine::sample::Sampler;
use headinfer_core::engine::{EngineError, Session};
use headinfer_core::text::Tokenizer;

use super::job::{Event, FinishReason, Job, Usage};
use super::output::{Output, score};
use super::queue::SlotReport;
use crate::metrics::{Counters, Ending};

/// A session, and what of its cache may be used again.
pub(super) struct Slot<'t> {
    session: Session,
    /// Tokens at the front that were taken in by whole chunks, as a fresh prefill would. Rows of a last, shorter
    /// chunk and of decode differ from those by rounding, so only this part is shared between requests.
    clean: usize,
    /// f32 `[vocab]`.
    logits: Vec<f32>,
    task: Option<Task<'t>>,
    last_used: Option<Instant>,
}

/// A job at work.
struct Task<'t> {
    job: Job,
    cached: usize,
    begun: Instant,
    /// Engine time, and what the job began with for fairness' sake.
    spent: Duration,
    sampler: Sampler,
    output: Output<'t>,
    /// Generated last, and not in the cache yet.
    last: Option<u32>,
    made: usize,
}

impl<'t> Slot<'t> {
    pub(super) fn new(session: Session) -> Self {
        let logits = vec![0.0; session.plan().spec.vocab];
        Self { session, clean: 0, logits, task: None, last_used: None }
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn context(&self) -> usize {
        self.session.plan().knobs().context
    }

    pub(super) fn vocab(&self) -> usize {
        self.logits.len()
    }

    /// Most tokens that can be reused.
    pub(super) fn clean(&self) -> usize {
        self.clean
    }

    pub(super) fn chunk(&self) -> usize {
        self.session.plan().knobs().chunk
    }

    pub(super) fn job(&self) -> Option<&Job> {
        self.task.as_ref().map(|task| &task.job)
    }

    /// Engine time of the job at work.
    pub(super) fn spent(&self) -> Option<Duration> {
        self.task.as_ref().map(|task| task.spent)
    }

    /// Tokens of the prompt at work that are not in the cache.
    pub(super) fn prefill_left(&self) -> usize {
        self.job().map_or(0, |job| job.ids.len().saturating_sub(self.session.tokens().len()))
    }

    /// Tokens of `ids` that need no prefill here: whole chunks, and never all, for the last one's logits are needed.
    pub(super) fn reusable(&self, ids: &[u32]) -> usize {
        let most = self.clean.min(ids.len() - 1);
        let shared = self.session.tokens()[..most].iter().zip(ids).take_while(|(a, b)| a == b).count();
        shared / self.chunk() * self.chunk()
    }

    /// What a job that reuses `reused` tokens would destroy here, and how long ago it was used: least first.
    pub(super) fn loss(&self, reused: usize) -> (usize, Option<Instant>) {
        (self.clean - reused, self.last_used)
    }

    /// Gives the slot to `job`, which has been granted `spent` already.
    pub(super) fn begin(
        &mut self,
        mut job: Job,
        spent: Duration,
        tokenizer: &'t Tokenizer,
        counters: &Counters,
    ) {
        let cached = self.reusable(&job.ids);
        self.session.rewind(cached);
        self.clean = cached;
        counters.began(job.ids.len(), cached);
        let sampler = Sampler::new(job.sampling.clone(), self.vocab()).masked(job.mask.take());
        let output = Output::new(tokenizer.detokenizer(), job.stops.clone());
        let task = Task { job, cached, begun: Instant::now(), spent, sampler, output, last: None, made: 0 };
        task.progress(cached);
        self.task = Some(task);
    }

    /// Ends the job at work as an `ending`; what it finished stays in the cache. The job is given back to be told why
    /// when the slot is known to be free: its client may ask again at once.
    pub(super) fn end(&mut self, ending: Ending, counters: &Counters) -> Option<Job> {
        let task = self.task.take()?;
        self.last_used = Some(Instant::now());
        counters.ended(ending, task.job.asked);
        Some(task.job)
    }

    /// A chunk or a token of the job at work. When it was the last, the job and its last event, to be told as after
    /// [`Slot::end`].
    ///
    /// # Errors
    /// [`EngineError`]; the job is still there.
    pub(super) fn turn(&mut self, counters: &Counters) -> Result<Option<(Job, Event)>, EngineError> {
        let begun = Instant::now();
        let Some(task) = &self.task else { return Ok(None) };
        let sampled = match task.last {
            None => self.prefill()?,
            Some(token) => {
                self.logits.copy_from_slice(self.session.step(&[token], 1)?);
                true
            }
        };
        let Some(task) = &mut self.task else { return Ok(None) };
        let reason = match sampled {
            true => task.advance(&self.logits, self.session.tokens(), counters)?,
            false => None,
        };
        task.spent += begun.elapsed();
        let Some((reason, task)) = reason.zip(self.task.take_if(|_| reason.is_some())) else {
            return Ok(None);
        };
        self.last_used = Some(Instant::now());
        counters.ended(Ending::Finished(reason), task.job.asked);
        let usage = Usage { prompt: task.job.ids.len(), cached: task.cached, completion: task.made };
        Ok(Some((task.job, Event::Done { reason, usage })))
    }

    /// One chunk; whether it was the prompt's last, whose logits are then there.
    fn prefill(&mut self) -> Result<bool, EngineError> {
        let Some(task) = &self.task else { return Ok(false) };
        let (past, chunk) = (self.session.tokens().len(), self.chunk());
        let ids = &task.job.ids[past..task.job.ids.len().min(past + chunk)];
        let done = past + ids.len();
        let last = done == task.job.ids.len();
        let logits = self.session.step(ids, usize::from(last))?;
        if last {
            self.logits.copy_from_slice(logits);
        }
        if ids.len() == chunk {
            self.clean = done;
        }
        task.progress(done);
        Ok(last)
    }

    /// What the metrics show.
    pub(super) fn report(&self) -> SlotReport {
        let (tokens, all) = (self.session.tokens().len(), self.job().map_or(0, |job| job.ids.len()));
        SlotReport {
            stats: self.session.backend().stats(),
            tokens,
            busy: self.task.is_some(),
            prefill: if tokens < all { (tokens, all) } else { (0, 0) },
        }
    }
}

impl Task<'_> {
    /// Chooses the next token and shows what can be shown; why it was the last, if it was.
    fn advance(
        &mut self,
        logits: &[f32],
        history: &[u32],
        counters: &Counters,
    ) -> Result<Option<FinishReason>, EngineError> {
        let token = self.sampler.pick(logits, history)?;
        counters.made(self.job.asked, self.made == 0);
        self.made += 1;
        self.last = Some(token);
        if self.job.stop_tokens.contains(&token) {
            self.show_rest();
            return Ok(Some(FinishReason::Stop));
        }
        let scored = self.job.logprobs.map(|top| score(logits, token, top));
        let (stopped, event) = self.output.push(token, scored);
        self.show(event);
        match () {
            () if stopped => Ok(Some(FinishReason::Stop)),
            () if self.sampler.complete() => {
                self.show_rest();
                Ok(Some(FinishReason::Stop))
            }
            () if self.made == self.job.max_tokens => {
                let stopped = self.show_rest();
                Ok(Some(if stopped { FinishReason::Stop } else { FinishReason::Length }))
            }
            () => Ok(None),
        }
    }

    fn show_rest(&mut self) -> bool {
        let (stopped, event) = self.output.finish();
        self.show(event);
        stopped
    }

    fn show(&self, event: Option<Event>) {
        if let Some(event) = event {
            self.job.tell(event);
        }
    }

    fn progress(&self, processed: usize) {
        let time_ms = self.begun.elapsed().as_millis() as u64;
        let (total, cache) = (self.job.ids.len(), self.cached);
        self.job.tell(Event::Progress { total, cache, processed, time_ms });
    }
}
