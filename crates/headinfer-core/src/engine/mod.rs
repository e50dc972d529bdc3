//! Sessions: tokens in, logits out, over any backend. One thread, no async, no clock but for progress.

//pub mod generate;
mod session;

pub use session::{EngineError, Progress, Session};
