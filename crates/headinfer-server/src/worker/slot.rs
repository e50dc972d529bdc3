//! A session and the job that has it: one turn is a chunk of prefill, an interval brought back from the disk or one
//! pass of decode: a token, and more where what follows was guessed.

use std::time::{Duration, Instant};

use headinfer_core::engine::guess::{Counts, Speculation};
use headinfer_core::engine::sample::Sampler;
use headinfer_core::engine::{Decoder, EngineError, Session};
use headinfer_core::store::{Kept, Store, Trail};
use headinfer_core::text::Tokenizer;

use super::Opened;
use super::job::{Event, FinishReason, Job, Usage};
use super::output::{Output, score};
use super::queue::SlotReport;
use crate::metrics::{Counters, Ending};

/// A session, and what keeps it. Only the clean part of its tokens is shared between requests, and stored.
pub(super) struct Slot<'t> {
    session: Session,
    trail: Option<Trail>,
    /// As the trail said last.
    kept: Kept,
    /// Nothing can be done until the disk is done with something.
    waits: bool,
    speculation: Speculation,
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
    stage: Stage,
    made: usize,
    /// From the prompt's last logits on.
    decoder: Option<Decoder>,
    /// What the decoder had counted when it was last looked at.
    counted: Counts,
}

/// What a job does in its turns, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Another job's tokens are still in the session, and the disk has not got them all.
    Spill,
    /// Brings back what the disk has of the prompt.
    Restore,
    Prefill,
    Decode {
        /// Generated last, and not in the cache yet.
        last: u32,
    },
}

impl<'t> Slot<'t> {
    pub(super) fn new(Opened { session, trail }: Opened, speculation: Speculation) -> Self {
        let kept = Kept::default();
        Self { session, trail, kept, waits: false, speculation, task: None, last_used: None }
    }

    pub(super) fn store(&self) -> Option<&Store> {
        self.trail.as_ref().map(Trail::store)
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn context(&self) -> usize {
        self.session.plan().knobs().context
    }

    pub(super) fn vocab(&self) -> usize {
        self.session.plan().spec.vocab
    }

    /// Most tokens that can be reused.
    pub(super) fn clean(&self) -> usize {
        self.session.clean()
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
        self.job().map_or(0, |job| job.ids.len().saturating_sub(self.held()))
    }

    /// Tokens that are in the cache for the job at work.
    fn held(&self) -> usize {
        match self.task.as_ref().map(|task| task.stage) {
            Some(Stage::Spill) => 0,
            _ => self.session.tokens().len(),
        }
    }

    /// There is a job and a turn of it would do something.
    pub(super) fn can_work(&self) -> bool {
        self.task.is_some() && !self.waits
    }

    /// The disk is asked for tokens.
    pub(super) fn restores(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.stage == Stage::Restore)
    }

    /// Prefilled tokens that the disk has not got yet.
    pub(super) fn behind(&self) -> usize {
        self.kept.behind
    }

    /// Tokens of `ids` that are on the disk, going by names.
    pub(super) fn available(&self, ids: &[u32]) -> usize {
        self.trail.as_ref().map_or(0, |trail| trail.available(ids))
    }

    /// Tokens of `ids` that need no prefill here: whole chunks, and never all, for the last one's logits are needed.
    pub(super) fn reusable(&self, ids: &[u32]) -> usize {
        let most = self.clean().min(ids.len() - 1);
        let shared = self.session.tokens()[..most].iter().zip(ids).take_while(|(a, b)| a == b).count();
        shared / self.chunk() * self.chunk()
    }

    /// What a job would cost here that finds `held` of its tokens, and `stored` on the disk: tokens lost and read, and
    /// how long ago the slot was used. Least first.
    pub(super) fn loss(&self, held: usize, stored: usize) -> (usize, Option<Instant>) {
        (self.clean() - held + stored.saturating_sub(held), self.last_used)
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
        let spill = cached < self.clean() && self.kept.behind > 0 && !self.kept.refused;
        let stage = match self.trail {
            Some(_) if spill => Stage::Spill,
            Some(_) => Stage::Restore,
            None => Stage::Prefill,
        };
        if !spill {
            self.session.rewind(cached);
        }
        counters.began(job.ids.len(), cached);
        let sampler = Sampler::new(job.sampling.clone(), self.vocab()).masked(job.mask.take());
        let output = Output::new(tokenizer.detokenizer(), job.stops.clone());
        let task = Task {
            job,
            cached,
            begun: Instant::now(),
            spent,
            sampler,
            output,
            stage,
            made: 0,
            decoder: None,
            counted: Counts::default(),
        };
        task.progress(cached);
        self.task = Some(task);
        self.waits = false;
    }

    /// Ends the job at work as an `ending`; what it finished stays in the cache. The job is given back to be told why
    /// when the slot is known to be free: its client may ask again at once.
    pub(super) fn end(&mut self, ending: Ending, counters: &Counters) -> Option<Job> {
        let task = self.task.take()?;
        self.rest();
        counters.ended(ending, task.job.asked);
        Some(task.job)
    }

    /// A chunk or a pass of the job at work. When it was the last, the job and its last event, to be told as after
    /// [`Slot::end`].
    ///
    /// # Errors
    /// [`EngineError`]; the job is still there.
    pub(super) fn turn(&mut self, counters: &Counters) -> Result<Option<(Job, Event)>, EngineError> {
        let begun = Instant::now();
        let Some(task) = &self.task else { return Ok(None) };
        let sampled = match task.stage {
            Stage::Spill => self.spill().map(|()| false)?,
            Stage::Restore => self.restore(counters).map(|()| false)?,
            Stage::Prefill => self.prefill()?,
            Stage::Decode { last } => self.pass(last)?,
        };
        let Some(task) = &mut self.task else { return Ok(None) };
        let reason = if sampled { task.advance_all(&mut self.session, counters)? } else { None };
        task.spent += begun.elapsed();
        let Some((reason, task)) = reason.zip(self.task.take_if(|_| reason.is_some())) else {
            return Ok(None);
        };
        self.rest();
        counters.ended(Ending::Finished(reason), task.job.asked);
        let usage = Usage { prompt: task.job.ids.len(), cached: task.cached, completion: task.made };
        Ok(Some((task.job, Event::Done { reason, usage })))
    }

    /// Gives the disk what the session held before, as far as it takes it now.
    fn spill(&mut self) -> Result<(), EngineError> {
        self.keep()?;
        if let Some(task) = &mut self.task {
            self.waits = self.kept.behind > 0 && !self.kept.refused;
            if !self.waits {
                task.stage = Stage::Restore;
                self.session.rewind(task.cached);
            }
        }
        Ok(())
    }

    /// Brings back one interval of the prompt, or finds that there is none.
    fn restore(&mut self, counters: &Counters) -> Result<(), EngineError> {
        let (Some(task), Some(trail)) = (&mut self.task, &mut self.trail) else { return Ok(()) };
        self.waits = trail.must_wait(&self.session, &task.job.ids);
        if self.waits {
            return Ok(());
        }
        if trail.restore_next(&mut self.session, &task.job.ids)? {
            let held = self.session.tokens().len();
            counters.restored(held - task.cached);
            task.cached = held;
            task.progress(held);
        } else {
            task.stage = Stage::Prefill;
        }
        Ok(())
    }

    /// One chunk; whether it was the prompt's last, whose logits are then there.
    fn prefill(&mut self) -> Result<bool, EngineError> {
        let Some(task) = &self.task else { return Ok(false) };
        let (past, chunk) = (self.session.tokens().len(), self.chunk());
        let ids = &task.job.ids[past..task.job.ids.len().min(past + chunk)];
        let done = past + ids.len();
        let last = done == task.job.ids.len();
        let logits = self.session.step(ids, usize::from(last))?.to_vec();
        task.progress(done);
        self.keep()?;
        if let Some(task) = self.task.as_mut().filter(|_| last) {
            task.decoder = Some(Decoder::new(&self.session, &logits, self.speculation));
        }
        Ok(last)
    }

    /// Takes in the token that was generated last, and guesses; whether there are logits.
    fn pass(&mut self, last: u32) -> Result<bool, EngineError> {
        let Some(task) = &mut self.task else { return Ok(false) };
        let Some(decoder) = &mut task.decoder else { return Ok(false) };
        decoder.pass(&mut self.session, last, task.job.max_tokens - task.made)?;
        Ok(true)
    }

    /// Gives the disk what is new, if it has time. A copy is waited for, the disk never.
    ///
    /// # Errors
    /// [`EngineError`] when the device failed.
    pub(super) fn keep(&mut self) -> Result<(), EngineError> {
        if let Some(trail) = &mut self.trail {
            self.kept = trail.checkpoint(&mut self.session)?;
            if self.task.is_none() {
                self.release();
            }
        }
        Ok(())
    }

    /// The disk may be asked again.
    pub(super) fn wake(&mut self) {
        self.waits = false;
    }

    /// Waits until the disk has all that was prefilled, or refuses it.
    pub(super) fn flush(&mut self) {
        let Some(trail) = &mut self.trail else { return };
        match trail.finish(&mut self.session) {
            Ok(kept) => tracing::info!("{} tokens kept, {} lost", kept.stored, kept.behind),
            Err(error) => tracing::warn!("session store: what was not stored yet is lost: {error}"),
        }
    }

    /// The job has ended.
    fn rest(&mut self) {
        self.last_used = Some(Instant::now());
        self.waits = false;
        self.release();
    }

    /// What is on the disk of a session that nobody works on may go when room is needed.
    fn release(&mut self) {
        if let Some(trail) = self.trail.as_mut().filter(|_| self.kept.behind == 0) {
            trail.release();
        }
    }

    /// What the metrics show.
    pub(super) fn report(&self) -> SlotReport {
        let (held, all) = (self.held(), self.job().map_or(0, |job| job.ids.len()));
        SlotReport {
            stats: self.session.backend().stats(),
            tokens: self.session.tokens().len(),
            busy: self.task.is_some(),
            prefill: if held < all { (held, all) } else { (0, 0) },
            behind: self.kept.behind,
        }
    }
}

impl Task<'_> {
    /// Chooses tokens as far as the last pass reaches. Between turns the session holds no guesses.
    fn advance_all(
        &mut self,
        session: &mut Session,
        counters: &Counters,
    ) -> Result<Option<FinishReason>, EngineError> {
        let Some(mut decoder) = self.decoder.take() else { return Ok(None) };
        let mut chosen = Ok(None);
        while let Ok(None) = chosen {
            chosen = self.advance(decoder.logits(), decoder.history(session), counters);
            let Stage::Decode { last } = self.stage else { break };
            if !matches!(chosen, Ok(None)) || !decoder.accept(last) {
                break;
            }
        }
        decoder.settle(session);
        let counts = decoder.counts();
        counters.guessed(counts.since(self.counted));
        (self.decoder, self.counted) = (Some(decoder), counts);
        chosen
    }

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
        self.stage = Stage::Decode { last: token };
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
