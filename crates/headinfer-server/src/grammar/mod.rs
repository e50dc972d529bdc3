//! Which tokens may come next, by a grammar over the bytes of an answer: JSON that obeys a schema, calls of tools.
//!
//! This room alone knows llguidance. Grammars are in its dialect of Lark.

mod schema;

use std::sync::{Arc, OnceLock};

use headinfer_core::engine::sample::TokenMask;
use headinfer_core::text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

pub(crate) use schema::json_rule;

/// Makes masks for one model. What all masks share is made with the first.
pub(crate) struct Grammars {
    tokenizer: Arc<Tokenizer>,
    end_tokens: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, end_tokens: Vec<u32>) -> Self {
        Self { tokenizer, end_tokens, factory: OnceLock::new() }
    }

    /// A mask for logits of `vocab` entries that lets through what `grammar` derives from `start`, then the end.
    ///
    /// # Errors
    /// A sentence that says what of the grammar is not supported, or that it is too large.
    pub(crate) fn mask(&self, vocab: usize, grammar: &str) -> Result<Box<dyn TokenMask>, String> {
        let factory = self.factory.get_or_init(|| self.factory(vocab)).as_ref().map_err(String::clone)?;
        let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
        let mut matcher = Matcher::new(parser);
        if let Some(why) = matcher.get_error() {
            return Err(sentence(&why));
        }
        // A first look: what is too much, or cannot be said in this model's tokens, is better known now.
        let first = matcher.compute_mask().map_err(|e| sentence(&e.to_string()))?;
        match first.is_zero() {
            true => Err("the model has no tokens to begin it with".into()),
            false => Ok(Box::new(Mask(matcher))),
        }
    }

    fn factory(&self, vocab: usize) -> Result<ParserFactory, String> {
        let text = |id| self.tokenizer.token_bytes(id).unwrap_or_default();
        // Special tokens are told from text by a byte that no text has; ids without a token have no bytes.
        let special = |id| self.tokenizer.special_token(id).map(|name| [b"\xff", name.as_bytes()].concat());
        let mut words: Vec<Vec<u8>> =
            (0..vocab as u32).map(|id| special(id).unwrap_or_else(|| text(id))).collect();
        let mut ends: Vec<u32> =
            self.end_tokens.iter().copied().filter(|end| (*end as usize) < vocab).collect();
        if ends.is_empty() {
            // An end beyond all logits, which never comes.
            ends.push(vocab as u32);
            words.push(b"\xff<end>".to_vec());
        }
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, ends[0]), &words).with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| sentence(&e.to_string()))?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

struct Mask(Matcher);

impl TokenMask for Mask {
    fn apply(&mut self, scores: &mut [f32]) -> Result<(), String> {
        let allowed = self.0.compute_mask_or_eos().map_err(|e| sentence(&e.to_string()))?;
        let words = allowed.as_slice().iter().chain(std::iter::repeat(&0));
        for (word, scores) in words.zip(scores.chunks_mut(u32::BITS as usize)) {
            let forbidden = scores.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
            forbidden.for_each(|(_, score)| *score = f32::NEG_INFINITY);
        }
        Ok(())
    }

    fn chosen(&mut self, id: u32) -> Result<bool, String> {
        self.0.consume_token(id).map_err(|e| sentence(&e.to_string()))?;
        Ok(self.0.is_stopped())
    }
}

/// The first line of what llguidance says; the others are for who debugs it.
fn sentence(why: &str) -> String {
    let line = why.lines().next().unwrap_or_default();
    line.replace("Unimplemented keys:", "keywords that are not supported:")
}
