//! Text to tokens and back: tokenizer files, chat templates, incremental decoding.
//!
//! Must not know the plan, any backend, the command line or the clock: the date a template may ask for is
//! an input.

pub mod chat;
mod config;
mod date;
mod decoder;
mod detokenizer;
#[cfg(test)]
mod samples;
mod split;
mod template;
mod tojson;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use tokenizer::{TEXT_BYTES_MAX, TOKENIZER_BYTES_MAX, TextError, Tokenizer};
