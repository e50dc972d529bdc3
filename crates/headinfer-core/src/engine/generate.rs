//! From logits to a continuation, token by token.

use std::ops::ControlFlow;

use super::sample::Sampler;
use super::{Decoder, EngineError, Session};

/// When a generation ends, besides the sink's word.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Tokens that end the generation and are not part of it.
    pub stop_tokens: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// `max_tokens` were generated.
    Length,
    /// A stop token came.
    StopToken(u32),
    /// The sink or the sampler's mask said stop.
    Stopped,
    /// The context is full.
    ContextFull,
}

/// Generates from what `decoder` has on. `sink` gets each token as it comes.
///
/// # Errors
/// [`EngineError::NotFinite`] or [`EngineError::Mask`] when nothing can be sampled, or the backend's error.
pub fn generate(
    session: &mut Session,
    decoder: &mut Decoder,
    sampler: &mut Sampler,
    limits: &Limits,
    sink: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Finish, EngineError> {
    let finish = tokens(session, decoder, sampler, limits, sink);
    // Guesses that were not reached are in the session still.
    decoder.settle(session);
    finish
}

fn tokens(
    session: &mut Session,
    decoder: &mut Decoder,
    sampler: &mut Sampler,
    limits: &Limits,
    sink: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Finish, EngineError> {
    for left in (0..limits.max_tokens).rev() {
        let token = sampler.pick(decoder.logits(), decoder.history(session))?;
        if limits.stop_tokens.contains(&token) {
            return Ok(Finish::StopToken(token));
        }
        if sink(token).is_break() {
            return Ok(Finish::Stopped);
        }
        if sampler.complete() {
            return Ok(Finish::Stopped);
        }
        if left == 0 {
            break;
        }
        if decoder.history(session).len() == session.plan().knobs().context {
            return Ok(Finish::ContextFull);
        }
        if !decoder.accept(token) {
            decoder.pass(session, token, left)?;
        }
    }
    Ok(Finish::Length)
}
