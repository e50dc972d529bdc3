//! Sessions: tokens in, logits out, over any backend. One thread, no async, no clock but for progress.

mod decoder;
pub mod generate;
pub mod guess;
pub mod quality;
pub mod sample;
mod session;
pub mod stop;

pub use decoder::Decoder;
pub use session::{EngineError, Progress, Session};
