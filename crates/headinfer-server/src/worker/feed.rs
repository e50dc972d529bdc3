//! Where the events of a job go: to all who listen and, when the work has a name, into a log that is played again to
//! whoever comes later.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::job::{Event, Failure, Scored};

/// Listeners of one job; more are refused.
const LISTENERS_MAX: usize = 16;

/// See the module. Channels are unbounded, for a slow client must not stop the engine: a job sends at most one event
/// per chunk and per token, so the context bounds them.
pub(crate) struct Feed {
    /// Goes on when nobody listens.
    named: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    listeners: Vec<UnboundedSender<Event>>,
    log: Option<Log>,
    log_bytes_max: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Done,
    Failed,
}

/// What was told so far, with texts joined and of all progress the last.
#[derive(Default)]
struct Log {
    progress: Option<Event>,
    text: String,
    tokens: Vec<Scored>,
    /// Of `tokens`.
    token_bytes: usize,
    end: Option<Event>,
}

/// Why nobody else can listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deaf {
    /// Too much was said for the log.
    Forgotten,
    /// Enough do already.
    Crowded,
}

impl Feed {
    /// For one listener; the job ends when it leaves.
    pub(crate) fn unnamed() -> (Arc<Self>, UnboundedReceiver<Event>) {
        let (sender, receiver) = unbounded_channel();
        (Self::new(false, vec![sender], None, 0), receiver)
    }

    /// For listeners that come and go, with a log of at most so many bytes.
    pub(crate) fn named(log_bytes_max: usize) -> Arc<Self> {
        Self::new(true, Vec::new(), Some(Log::default()), log_bytes_max)
    }

    fn new(
        named: bool,
        listeners: Vec<UnboundedSender<Event>>,
        log: Option<Log>,
        log_bytes_max: usize,
    ) -> Arc<Self> {
        let inner = Mutex::new(Inner { listeners, log, log_bytes_max, stage: Stage::Running });
        Arc::new(Self { named, inner })
    }

    /// All that was told, then all that is told from now on.
    ///
    /// # Errors
    /// [`Deaf`].
    pub(crate) fn listen(&self) -> Result<UnboundedReceiver<Event>, Deaf> {
        let mut inner = self.lock();
        inner.listeners.retain(|listener| !listener.is_closed());
        if inner.listeners.len() >= LISTENERS_MAX {
            return Err(Deaf::Crowded);
        }
        let (sender, receiver) = unbounded_channel();
        // The receiver is here, so sending does not fail.
        inner.log.as_ref().ok_or(Deaf::Forgotten)?.events().for_each(|event| drop(sender.send(event)));
        if inner.stage == Stage::Running {
            inner.listeners.push(sender);
        }
        Ok(receiver)
    }

    /// Tells all who listen; whether any does does not matter. Nothing comes after an end.
    pub(crate) fn tell(&self, event: Event) {
        let mut inner = self.lock();
        if inner.stage != Stage::Running {
            return;
        }
        match event {
            Event::Done { .. } => inner.stage = Stage::Done,
            Event::Failed(_) => inner.stage = Stage::Failed,
            Event::Progress { .. } | Event::Text { .. } => {}
        }
        if let Some(log) = &mut inner.log {
            log.add(&event);
            if log.bytes() > inner.log_bytes_max {
                inner.log = None;
            }
        }
        if let Some((last, others)) = inner.listeners.split_last() {
            others.iter().for_each(|listener| drop(listener.send(event.clone())));
            let _ = last.send(event);
        }
        if inner.stage != Stage::Running {
            // Channels end with their last event.
            inner.listeners.clear();
        }
    }

    /// Nothing more is to be done: it was cancelled, or nobody waits and nobody asked for it to go on.
    pub(crate) fn abandoned(&self) -> bool {
        let inner = self.lock();
        inner.stage != Stage::Running || !self.named && inner.listeners.iter().all(UnboundedSender::is_closed)
    }

    /// It is at work, or its answer is complete.
    pub(crate) fn of_use(&self) -> bool {
        let inner = self.lock();
        inner.stage != Stage::Failed && inner.log.is_some()
    }

    pub(crate) fn running(&self) -> bool {
        self.lock().stage == Stage::Running
    }

    /// Of the log.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().log.as_ref().map_or(0, Log::bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn add(&mut self, event: &Event) {
        match event {
            Event::Progress { .. } => self.progress = Some(event.clone()),
            Event::Text { text, tokens } => {
                self.text += text;
                self.token_bytes +=
                    tokens.iter().map(|t| size_of_val(t) + size_of_val(&*t.top)).sum::<usize>();
                self.tokens.extend_from_slice(tokens);
            }
            Event::Done { .. } | Event::Failed(_) => self.end = Some(event.clone()),
        }
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.token_bytes
    }

    fn events(&self) -> impl Iterator<Item = Event> {
        let silent = self.text.is_empty() && self.tokens.is_empty();
        let text = (!silent).then(|| Event::Text { text: self.text.clone(), tokens: self.tokens.clone() });
        self.progress.clone().into_iter().chain(text).chain(self.end.clone())
    }
}

/// The engine's end of a feed. Whoever listens hears of it when a job is dropped without an end.
pub(crate) struct Teller(Arc<Feed>);

impl Teller {
    pub(crate) fn new(feed: Arc<Feed>) -> Self {
        Self(feed)
    }

    pub(crate) fn feed(&self) -> &Feed {
        &self.0
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.0.tell(Event::Failed(Failure::Lost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::{FinishReason, Usage};

    fn text(text: &str) -> Event {
        Event::Text { text: text.into(), tokens: Vec::new() }
    }

    fn progress(processed: usize) -> Event {
        Event::Progress { total: 9, cache: 0, processed, time_ms: 0 }
    }

    fn heard(mut receiver: UnboundedReceiver<Event>) -> Vec<String> {
        let mut heard = Vec::new();
        while let Ok(event) = receiver.try_recv() {
            heard.push(match event {
                Event::Progress { processed, .. } => processed.to_string(),
                Event::Text { text, .. } => text,
                Event::Done { .. } => "done".into(),
                Event::Failed(failure) => failure.to_string(),
            });
        }
        heard
    }

    #[test]
    fn who_comes_late_hears_all_and_the_rest_as_it_comes() {
        let feed = Feed::named(100);
        let early = feed.listen().unwrap();
        [progress(1), progress(9), text("a"), text("b")].into_iter().for_each(|e| feed.tell(e));
        let late = feed.listen().unwrap();
        feed.tell(text("c"));
        feed.tell(Event::Done { reason: FinishReason::Stop, usage: Usage::default() });
        feed.tell(text("after the end"));
        assert_eq!(heard(early), ["1", "9", "a", "b", "c", "done"]);
        assert_eq!(heard(late), ["9", "ab", "c", "done"]);
        assert_eq!(heard(feed.listen().unwrap()), ["9", "abc", "done"]);
        assert!(feed.of_use() && !feed.running());
    }

    #[test]
    fn a_log_and_a_crowd_have_limits() {
        let feed = Feed::named(3);
        let early: Vec<_> = (0..LISTENERS_MAX).map(|_| feed.listen().unwrap()).collect();
        assert_eq!(feed.listen().err(), Some(Deaf::Crowded));
        drop(early);
        let early = feed.listen().unwrap();
        ["ab", "cd"].into_iter().for_each(|t| feed.tell(text(t)));
        assert_eq!(feed.listen().err(), Some(Deaf::Forgotten));
        assert_eq!((feed.bytes(), feed.of_use(), feed.abandoned()), (0, false, false));
        assert_eq!(heard(early), ["ab", "cd"]);
    }

    #[test]
    fn a_job_that_is_dropped_is_heard_of() {
        let feed = Feed::named(100);
        let listener = feed.listen().unwrap();
        drop(Teller::new(feed.clone()));
        assert_eq!(heard(listener), [Failure::Lost.to_string()]);
        assert!(feed.abandoned() && !feed.of_use());
    }
}
