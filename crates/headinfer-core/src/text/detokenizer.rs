//! Decoding token by token.

use crate::text::decoder::Chain;
use crate::text::tokenizer::Tokenizer;

/// Turns tokens into text as they come. No piece ends within a character: what further tokens may change is
/// held back. The pieces together are [`Tokenizer::decode`] of all ids. The cost of a token depends on its
/// length only.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    chain: Chain,
}

impl<'a> Detokenizer<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, chain: Chain) -> Self {
        Detokenizer { tokenizer, chain }
    }

    /// Takes the next token; gives the text that is settled by it, often one token's, sometimes none.
    /// Special tokens and ids the tokenizer does not have give none.
    pub fn push(&mut self, id: u32) -> String {
        match self.tokenizer.spelling(id) {
            None => String::new(),
            Some(token) => self.chain.push(token),
        }
    }

    /// Ends the text: what was held back. Bytes that begin a character and do not end it are U+FFFD.
    pub fn finish(mut self) -> String {
        self.chain.finish()
    }
}
