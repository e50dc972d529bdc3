//! From logits to a continuation, token by token.

use std::ops::ControlFlow;

use super::sample::Sampler;
use super::{EngineError, Session};

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

/// Generates from `logits` (of the session's last token) on. `sink` gets each token as it comes.
///
/// # Errors
/// [`EngineError::NotFinite`] or [`EngineError::Mask`] when nothing can be sampled, or the backend's error.
pub fn generate(
    session: &mut Session,
    logits: &[f32],
    sampler: &mut Sampler,
    limits: &Limits,
    sink: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Finish, EngineError> {
    let mut logits = logits.to_vec();
    for made in 0..limits.max_tokens {
        let token = sampler.pick(&logits, session.tokens())?;
        if limits.stop_tokens.contains(&token) {
            return Ok(Finish::StopToken(token));
        }
        if sink(token).is_break() {
            return Ok(Finish::Stopped);
        }
        if sampler.complete() {
            return Ok(Finish::Stopped);
        }
        if made + 1 == limits.max_tokens {
            break;
        }
        if session.tokens().len() == session.plan().knobs().context {
            return Ok(Finish::ContextFull);
        }
        logits.copy_from_slice(session.step(&[token], 1)?);
    }
    Ok(Finish::Length)
}
