//! Decode: one token after another, whatever number of them a pass gives.
//!
//! A pass takes in the last token and some guesses at what follows. Its logits are handed out row by row as long as
//! what is chosen is what was guessed. As no backend lets a row's bits depend on the number of rows
//! ([`Backend::rows_alike`](crate::backend::Backend::rows_alike)), and no pass goes on where other heads are the CPU's
//! ([`Plan::share_end`](crate::plan::Plan::share_end)), whoever chooses sees what it would see without guesses: same
//! logits, same history, in the same order. Must not know how tokens are chosen.

use std::time::Instant;

use super::guess::{Counts, Guesser, Lookup, Pace, Speculation};
use super::{EngineError, Session};

/// The logits that the next token is chosen from, and how they were come by.
pub struct Decoder {
    /// Of the last pass, f32 `[rows, vocab]`.
    logits: Vec<f32>,
    vocab: usize,
    /// Row that the next token is chosen from.
    row: usize,
    /// Tokens before the choice from row 0.
    known: usize,
    /// Guesses that the last pass took along: row i + 1 follows the i-th.
    taken: Vec<u32>,
    guesses: Option<Guesses>,
    counts: Counts,
}

struct Guesses {
    guesser: Box<dyn Guesser>,
    /// `None` takes all.
    pace: Option<Pace>,
    /// Rows of a pass, at most.
    rows: usize,
    /// Guesses at what follows row 0, taken along or not.
    all: Vec<u32>,
    /// Tokens that speak for the first.
    matched: usize,
}

impl Decoder {
    /// After a prefill of all that `session` holds, whose last row gave `logits`, f32 `[vocab]`. Guesses come from
    /// the session's text.
    pub fn new(session: &Session, logits: &[f32], speculation: Speculation) -> Self {
        let rows = rows_max(session);
        match speculation {
            Speculation::Off => Self::plain(session, logits),
            _ if rows < 2 => Self::plain(session, logits),
            Speculation::Fixed(0) => Self::plain(session, logits),
            Speculation::Fixed(guesses) => {
                let lookup = Box::new(Lookup::new(session.tokens()));
                Self::guessing(session, logits, lookup, Some(guesses))
            }
            Speculation::Auto => {
                let lookup = Box::new(Lookup::new(session.tokens()));
                Self::guessing(session, logits, lookup, None)
            }
        }
    }

    /// As [`Decoder::new`], one token a pass.
    pub fn plain(session: &Session, logits: &[f32]) -> Self {
        Self {
            logits: logits.to_vec(),
            vocab: logits.len(),
            row: 0,
            known: session.tokens().len(),
            taken: Vec::new(),
            guesses: None,
            counts: Counts::default(),
        }
    }

    /// As [`Decoder::new`], with guesses of `guesser`, which knows the session's text: `fixed` of them a pass, or as
    /// many as pay.
    pub fn guessing(
        session: &Session,
        logits: &[f32],
        guesser: Box<dyn Guesser>,
        fixed: Option<usize>,
    ) -> Self {
        let most = rows_max(session);
        let rows = fixed.map_or(most, |guesses| most.min(guesses.saturating_add(1)));
        let pace = fixed.is_none().then(|| Pace::new(session.plan(), session.tokens().len(), rows));
        let guesses = Guesses { guesser, pace, rows, all: Vec::new(), matched: 0 };
        Self { guesses: Some(guesses), ..Self::plain(session, logits) }
    }

    /// What the next token is chosen from, f32 `[vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits[self.row * self.vocab..][..self.vocab]
    }

    /// All tokens before that choice.
    pub fn history<'a>(&self, session: &'a Session) -> &'a [u32] {
        &session.tokens()[..self.known + self.row]
    }

    /// What was guessed so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Host memory that guesses are made from: it grows with the text, up to [`Plan::guess_bytes`](crate::plan::Plan::guess_bytes).
    pub fn guess_bytes(&self) -> usize {
        self.guesses.as_ref().map_or(0, |guesses| guesses.guesser.bytes())
    }

    /// Whether `token`, which was chosen, was guessed: then [`Decoder::logits`] are those after it.
    pub fn accept(&mut self, token: u32) -> bool {
        if let Some(guesses) = &mut self.guesses {
            guesses.guesser.push(token);
            if let (Some(pace), Some(guess)) = (&mut guesses.pace, guesses.all.get(self.row)) {
                pace.guessed(guesses.matched + self.row, *guess == token);
            }
        }
        let right = self.taken.get(self.row) == Some(&token);
        self.row += usize::from(right);
        self.counts.accepted += u64::from(right);
        right
    }

    /// Takes in `token`, which was chosen and not accepted, and guesses; `most`, at least 1, is how many more tokens
    /// are wanted. [`Decoder::logits`] are then those after it.
    ///
    /// # Errors
    /// As [`Session::step`].
    pub fn pass(&mut self, session: &mut Session, token: u32, most: usize) -> Result<(), EngineError> {
        self.settle(session);
        let past = session.tokens().len();
        let plan = session.plan();
        let room = (plan.share_end(past) - past).min(most).min(plan.guess_rows_max(past));
        let mut ids = vec![token];
        if let Some(guesses) = &mut self.guesses {
            guesses.propose(room, &mut ids);
        }
        let begun = Instant::now();
        let logits = session.step(&ids, ids.len())?;
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        if let Some(pace) = self.guesses.as_mut().and_then(|guesses| guesses.pace.as_mut()) {
            pace.took(session.plan(), past, ids.len(), begun.elapsed().as_secs_f64());
        }
        let guessed = ids.len() - 1;
        self.counts.passes += 1;
        self.counts.drafts += u64::from(guessed > 0);
        self.counts.guessed += guessed as u64;
        (self.row, self.known) = (0, past + 1);
        self.taken = ids.split_off(1);
        Ok(())
    }

    /// Has the session forget guesses that nothing came of: it holds what it would without them.
    pub fn settle(&mut self, session: &mut Session) {
        session.rewind(self.known + self.row);
        self.taken.truncate(self.row);
    }
}

impl Guesses {
    /// Adds guesses to a pass's ids.
    fn propose(&mut self, room: usize, ids: &mut Vec<u32>) {
        self.all.clear();
        // One that is not tried still shows what guesses are worth.
        self.matched = self.guesser.guess((self.rows - 1).max(1), &mut self.all);
        let most = self.all.len().min(self.rows - 1).min(room.saturating_sub(1));
        let take = match &self.pace {
            Some(pace) => pace.worth(self.matched, most),
            None => most,
        };
        ids.extend_from_slice(&self.all[..take]);
    }
}

/// Rows that a pass may have without changing a bit.
fn rows_max(session: &Session) -> usize {
    let knobs = session.plan().knobs();
    session.backend().rows_alike().min(knobs.logit_rows).min(knobs.chunk)
}
