//! The language a model is asked in: its own words for a retrieval model, English for others.

use anyhow::Result;
use headinfer_core::model::retrieval::Retrieval;
use headinfer_core::niah::{Haystack, Request, code_haystack, text_haystack};
use headinfer_core::text::Tokenizer;

use crate::error::Failure;
use crate::model_source::Model;

/// Steps of a retrieval model's answer when not told otherwise.
const CHAIN: u8 = 3;

/// How to ask one model.
pub(crate) enum Words {
    /// In tokens of its own, through so many needles.
    Codes(Box<Retrieval>, usize),
    /// In English.
    Text(Box<Tokenizer>, Option<u32>),
}

impl Words {
    /// The language of `model`.
    ///
    /// # Errors
    /// When it has none, or `chain` has no meaning for it.
    pub(crate) fn of(model: &Model, chain: Option<u8>) -> Result<Self> {
        if let Some(retrieval) = model.retrieval() {
            return Ok(Self::Codes(Box::new(retrieval), usize::from(chain.unwrap_or(CHAIN))));
        }
        if chain.is_some() {
            return Err(
                Failure::usage("--chain is for retrieval models: others are asked for one fact").into()
            );
        }
        Ok(Self::Text(Box::new(model.tokenizer()?), model.spec.bos))
    }

    /// A haystack in this language.
    ///
    /// # Errors
    /// When the request cannot be met.
    pub(crate) fn haystack(&self, request: &Request) -> Result<Haystack> {
        match self {
            Self::Codes(retrieval, chain) => Ok(code_haystack(retrieval, request, *chain)?),
            Self::Text(tokenizer, bos) => {
                // What cannot be encoded gives no tokens, which is refused by name.
                let encode = |text: &str| tokenizer.encode_raw(text).unwrap_or_default();
                Ok(text_haystack(&encode, *bos, request)?)
            }
        }
    }

    /// Ids as people read them, on one line.
    pub(super) fn text(&self, ids: &[u32]) -> String {
        match self {
            Self::Codes(retrieval, _) => {
                let word = |id: &u32| retrieval.word(*id).unwrap_or_else(|| format!("[{id}]"));
                ids.iter().map(word).collect::<Vec<_>>().join(" ")
            }
            Self::Text(tokenizer, _) => {
                tokenizer.decode(ids).split_whitespace().collect::<Vec<_>>().join(" ")
            }
        }
    }
}
