//! Works that have a name (`X-Session-Id`): they go on without a client, and who comes back with the same question
//! hears the same answer from its beginning, at work or finished.
//!
//! Must not know HTTP or the engine's slots.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::api::{Answer, ApiError};
use crate::config::Limits;
use crate::worker::{Deaf, Event, Failure, Feed};

/// All works with a name. The oldest finished ones are forgotten.
pub(crate) struct Sessions {
    /// Entries, and bytes of the logs of finished works.
    entries_max: usize,
    bytes_max: usize,
    log_bytes_max: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<String, Entry>,
    /// Counts the entries made, to know the oldest.
    made: u64,
}

struct Entry {
    question: Question,
    feed: Arc<Feed>,
    /// As it was before the first event.
    answer: Answer,
    number: u64,
}

/// What tells one question from another: all that bears on the answer, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question(pub(crate) [u64; 2]);

impl Sessions {
    pub(crate) fn new(limits: &Limits) -> Self {
        let log_bytes_max = limits.session_bytes;
        let (entries_max, bytes_max) = (limits.sessions, limits.sessions_bytes);
        Self { entries_max, bytes_max, log_bytes_max, table: Mutex::default() }
    }

    /// The answer under way or finished to the same question under the same name; else `submit` begins it with a new
    /// feed, and takes over from the older work of this name.
    ///
    /// # Errors
    /// Those of `submit`: the older work then stays. 429 when too many listen.
    pub(crate) fn ask(
        &self,
        name: &str,
        question: Question,
        answer: Answer,
        submit: impl FnOnce(Arc<Feed>) -> Result<(), ApiError>,
    ) -> Result<(Answer, UnboundedReceiver<Event>), ApiError> {
        let mut table = self.lock();
        let known = table.entries.get(name).filter(|e| e.question == question && e.feed.of_use());
        match known.map(|entry| (entry.feed.listen(), &entry.answer)) {
            Some((Ok(events), answer)) => return Ok((answer.clone(), events)),
            Some((Err(Deaf::Crowded), _)) => return Err(ApiError::deaf(Deaf::Crowded)),
            // A log that was too long: the work begins again, its prefill does not.
            Some((Err(Deaf::Forgotten), _)) | None => {}
        }
        let feed = Feed::named(self.log_bytes_max);
        let events = feed.listen().map_err(ApiError::deaf)?;
        submit(feed.clone())?;
        table.made += 1;
        let entry = Entry { question, feed, answer: answer.clone(), number: table.made };
        table.entries.insert(name.to_owned(), entry);
        self.forget(&mut table);
        Ok((answer, events))
    }

    /// The answer of the work called `name`, from its beginning; `None` when there is none.
    ///
    /// # Errors
    /// 410 when its log was too long, 429 when too many listen.
    pub(crate) fn attach(&self, name: &str) -> Result<Option<(Answer, UnboundedReceiver<Event>)>, ApiError> {
        let table = self.lock();
        let Some(entry) = table.entries.get(name) else { return Ok(None) };
        let events = entry.feed.listen().map_err(ApiError::deaf)?;
        Ok(Some((entry.answer.clone(), events)))
    }

    /// Ends the work called `name` and forgets it; whether there was one.
    pub(crate) fn cancel(&self, name: &str) -> bool {
        let Some(entry) = self.lock().entries.remove(name) else { return false };
        entry.feed.tell(Event::Failed(Failure::Cancelled));
        true
    }

    /// Slots and queue bound the works that run; the others are bounded here.
    fn forget(&self, table: &mut Table) {
        let mut finished: Vec<(u64, String, usize)> = table
            .entries
            .iter()
            .filter(|(_, entry)| !entry.feed.running())
            .map(|(name, entry)| (entry.number, name.clone(), entry.feed.bytes()))
            .collect();
        finished.sort_unstable();
        let mut bytes: usize = finished.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, name, freed) in finished {
            if table.entries.len() <= self.entries_max && bytes <= self.bytes_max {
                break;
            }
            table.entries.remove(&name);
            bytes -= freed;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
