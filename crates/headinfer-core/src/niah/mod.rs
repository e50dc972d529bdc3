//! Needle in a haystack: a long text is taken in once, then questions about facts hidden at given depths are asked
//! of it one by one.
//!
//! [`code_haystack`] is for the built-in retrieval model, [`text_haystack`] for any model with a tokenizer; [`run`]
//! asks either. Must not know backends, tokenizers or the command line.

mod codes;
mod text;

use std::ops::ControlFlow;

use serde::Serialize;
use thiserror::Error;

pub use codes::code_haystack;
pub use text::text_haystack;

use crate::engine::sample::greedy_margin;
use crate::engine::{EngineError, Progress, Session};
use crate::model::random::mix;

/// What to hide, and in how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Tokens of text, question and answer together.
    pub context: usize,
    /// Where needles lie: 0 is the start of the text, 1 its end.
    pub depths: Vec<f64>,
    /// Same seed, same text.
    pub seed: u64,
}

/// `count` depths from 0 to 1 in equal steps; one alone lies in the middle.
pub fn even_depths(count: usize) -> Vec<f64> {
    match count {
        1 => vec![0.5],
        _ => (0..count).map(|i| i as f64 / (count - 1) as f64).collect(),
    }
}

/// A text with needles in it, and one question to each depth that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Haystack {
    /// The text.
    pub ids: Vec<u32>,
    /// In the order of the depths.
    pub questions: Vec<Question>,
    /// What it was made from.
    pub seed: u64,
}

/// What is put after the text, and what should come.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Depth of the needle asked for, as requested.
    pub depth: f64,
    /// The question.
    pub ids: Vec<u32>,
    /// The right continuation, at least one token.
    pub answer: Vec<u32>,
    /// Depth of the needle that each token of the answer is found in.
    pub found_at: Vec<f64>,
}

/// How one token of an answer came out, given the right ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// Depth of the needle it is found in.
    pub depth: f64,
    /// The right token.
    pub expected: u32,
    /// The likeliest token.
    pub got: u32,
    /// The right token's logit less the largest other: positive when right.
    pub margin: f32,
}

/// The outcome of one question.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Depth asked for.
    pub depth: f64,
    /// Seed of the haystack.
    pub seed: u64,
    /// Token by token.
    pub answers: Vec<Answer>,
    /// Whether every token is right: greedy generation gives the answer.
    pub correct: bool,
    /// Smallest margin of its tokens.
    pub margin_min: f32,
    /// Seconds that the whole haystack took to be taken in.
    pub prefill_s: f64,
}

/// Told while a haystack is run; `Break` cancels.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A chunk of the haystack is in.
    Prefill(Progress),
    /// A question was answered.
    Cell(&'a Cell),
}

/// Why a haystack could not be made or run.
#[derive(Debug, Error)]
pub enum NiahError {
    /// The text has no room for its needles.
    #[error(
        "{needles} needles and a question do not fit into {context} tokens: give --context {need} or more"
    )]
    TooShort {
        /// Needles to hide.
        needles: usize,
        /// Tokens asked for.
        context: usize,
        /// Tokens that suffice.
        need: usize,
    },
    /// The text is longer than positions can be told apart, or than is allowed.
    #[error("{context} tokens are too many: give --context {max} or less")]
    TooLong {
        /// Tokens asked for.
        context: usize,
        /// Most tokens.
        max: usize,
    },
    /// A depth outside the text, or none.
    #[error("depths must be within 0..=1 and at least one, not {0:?}")]
    Depths(Vec<f64>),
    /// More needles than there are names for.
    #[error(
        "{needles} needles need more than the {max} names there are: give fewer depths or a shorter chain"
    )]
    Names {
        /// Needles to hide.
        needles: usize,
        /// Names there are.
        max: usize,
    },
    /// A chain without a step.
    #[error("a chain has at least 1 step")]
    Chain,
    /// The tokenizer gives nothing to ask with.
    #[error("the tokenizer gives no tokens for {0:?}")]
    Tokenizer(String),
    /// The caller said stop.
    #[error("cancelled after {cells} of {of} questions")]
    Cancelled {
        /// Questions answered.
        cells: usize,
        /// Questions there are.
        of: usize,
    },
    /// The session failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Takes in the haystack from an empty session on, and asks all its questions, each right after the text. The
/// session is left with the text in it.
///
/// Each answer is found token by token; after a wrong one the right one is put in its place, so that every needle
/// is judged for itself.
///
/// # Errors
/// [`NiahError::Cancelled`] when `progress` breaks, else [`NiahError::Engine`].
pub fn run(
    session: &mut Session,
    haystack: &Haystack,
    progress: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Vec<Cell>, NiahError> {
    let of = haystack.questions.len();
    let longest = haystack.questions.iter().map(|q| q.ids.len() + q.answer.len()).max().unwrap_or(0);
    let (need, context) = (haystack.ids.len() + longest, session.plan().knobs().context);
    if need > context {
        return Err(EngineError::ContextFull { need, context }.into());
    }
    session.rewind(0);
    let mut prefill_s = 0.0;
    let taken = session.prefill(&haystack.ids, &mut |p: Progress| {
        prefill_s = p.elapsed.as_secs_f64();
        progress(Event::Prefill(p))
    });
    match taken {
        Err(EngineError::Cancelled { .. }) => return Err(NiahError::Cancelled { cells: 0, of }),
        other => other.map(|_| ())?,
    }
    let mut cells = Vec::with_capacity(of);
    for question in &haystack.questions {
        session.rewind(haystack.ids.len());
        let answers = ask(session, question)?;
        let cell = Cell {
            depth: question.depth,
            seed: haystack.seed,
            correct: answers.iter().all(|a| a.got == a.expected),
            margin_min: answers.iter().map(|a| a.margin).fold(f32::INFINITY, f32::min),
            answers,
            prefill_s,
        };
        let stop = progress(Event::Cell(&cell)).is_break();
        cells.push(cell);
        if stop && cells.len() < of {
            return Err(NiahError::Cancelled { cells: cells.len(), of });
        }
    }
    session.rewind(haystack.ids.len());
    Ok(cells)
}

/// Puts a question after what the session holds, and judges each token of the answer.
///
/// # Errors
/// [`EngineError`].
pub fn ask(session: &mut Session, question: &Question) -> Result<Vec<Answer>, EngineError> {
    let mut answers = Vec::with_capacity(question.answer.len());
    let quiet = &mut |_| ControlFlow::Continue(());
    let mut logits = session.prefill(&question.ids, quiet)?;
    for (at, (&expected, &depth)) in question.answer.iter().zip(&question.found_at).enumerate() {
        if at > 0 {
            logits = session.step(&question.answer[at - 1..at], 1)?;
        }
        answers.push(judge(logits, at, expected, depth)?);
    }
    Ok(answers)
}

fn judge(logits: &[f32], at: usize, expected: u32, depth: f64) -> Result<Answer, EngineError> {
    let Some(right) = logits.get(expected as usize) else {
        return Err(EngineError::UnknownToken { id: expected, at, vocab: logits.len() });
    };
    if logits.iter().any(|x| !x.is_finite()) {
        return Err(EngineError::NotFinite);
    }
    let (got, lead) = greedy_margin(logits);
    let margin = if got == expected { lead } else { right - logits[got as usize] };
    Ok(Answer { depth, expected, got, margin })
}

fn check(request: &Request) -> Result<(), NiahError> {
    let depths = &request.depths;
    if depths.is_empty() || depths.iter().any(|d| !(0.0..=1.0).contains(d)) {
        return Err(NiahError::Depths(depths.clone()));
    }
    if request.context > CONTEXT_MAX {
        return Err(NiahError::TooLong { context: request.context, max: CONTEXT_MAX });
    }
    Ok(())
}

/// Longer texts are refused: 256 MiB of ids.
const CONTEXT_MAX: usize = 1 << 26;

/// Draws of a seed, one after another.
struct Draws {
    key: u64,
    count: u64,
}

impl Draws {
    fn new(seed: u64) -> Self {
        Self { key: mix(seed ^ 0x6e69_6168), count: 0 }
    }

    /// Uniform below `n`, at least 1, but for a bias of n / 2^32.
    fn below(&mut self, n: usize) -> usize {
        self.count += 1;
        let high = mix(self.key ^ mix(self.count)) >> 32;
        ((high * n as u64) >> 32) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// `count` different numbers below `n`.
    fn distinct(&mut self, count: usize, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in 0..count {
            let other = i + self.below(n - i);
            all.swap(i, other);
        }
        all.truncate(count);
        all
    }
}
