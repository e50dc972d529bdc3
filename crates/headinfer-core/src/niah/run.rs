//! Asks a session the questions of a haystack, and judges the answers.

use std::ops::ControlFlow;

use super::{Answer, Cell, Event, Haystack, NiahError, Question};
use crate::engine::sample::greedy_margin;
use crate::engine::{EngineError, Progress, Session};

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
