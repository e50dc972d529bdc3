//! Tokens to text on stdout as they come, up to a stop string.

use std::ops::ControlFlow;

use anyhow::Result;
use headinfer_core::engine::stop::StopMatcher;
use headinfer_core::text::{Detokenizer, Tokenizer};

use crate::error::Failure;
use crate::{interrupt, output};

/// Takes tokens, prints what is settled, and remembers.
pub(super) struct Printer<'a> {
    detokenizer: Detokenizer<'a>,
    stops: StopMatcher,
    /// Print as it comes, or only remember.
    live: bool,
    text: String,
    tokens: Vec<u32>,
    failed: Option<anyhow::Error>,
}

impl<'a> Printer<'a> {
    /// A printer that ends at any of `stops`.
    ///
    /// # Errors
    /// When the stop strings are too many, or one is empty or too long.
    pub(super) fn new(tokenizer: &'a Tokenizer, stops: Vec<String>, live: bool) -> Result<Self> {
        let stops = StopMatcher::new(stops).map_err(|e| Failure::usage(format!("--stop: {e}")))?;
        let detokenizer = tokenizer.detokenizer();
        Ok(Self { detokenizer, stops, live, text: String::new(), tokens: Vec::new(), failed: None })
    }

    /// Tokens taken.
    pub(super) fn count(&self) -> usize {
        self.tokens.len()
    }

    /// Takes a token; `Break` when nothing more is wanted.
    pub(super) fn push(&mut self, id: u32) -> ControlFlow<()> {
        self.tokens.push(id);
        let piece = self.detokenizer.push(id);
        let emit = self.stops.push(&piece);
        if let Err(e) = self.emit(&emit.text) {
            self.failed = Some(e);
            return ControlFlow::Break(());
        }
        if emit.hit.is_some() { ControlFlow::Break(()) } else { interrupt::flow() }
    }

    /// Prints what was held back; the whole text and its tokens.
    ///
    /// # Errors
    /// When stdout could not be written.
    pub(super) fn finish(mut self) -> Result<(String, Vec<u32>)> {
        if let Some(e) = self.failed.take() {
            return Err(e);
        }
        let detokenizer = self.detokenizer;
        let (mut rest, held) = (self.stops.push(&detokenizer.finish()).text, self.stops.finish().text);
        rest += &held;
        if self.live && !rest.is_empty() {
            output::print(&rest)?;
        }
        Ok((self.text + &rest, self.tokens))
    }

    fn emit(&mut self, text: &str) -> Result<()> {
        self.text.push_str(text);
        if self.live && !text.is_empty() { output::print(text) } else { Ok(()) }
    }
}
