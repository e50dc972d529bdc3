//! Sessions: tokens in, logits out, over any backend. One thread, no async, no clock but for progress.

pub mod generate;
pub mod sample;
mod session;
pub mod stop;

pub use session::{EngineError, Progress, Session};
