//! `tokenizer.json`, read as transformers reads it, and checked against the model.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use tokenizers::AddedToken;

use crate::model::ModelError;
use crate::model::error::printable;
use crate::model::json::read_text;
use crate::model::spec::ModelSpec;
use crate::text::bpe::check_model;
use crate::text::config::TextConfig;
use crate::text::decoder::Decoder;
use crate::text::detokenizer::Detokenizer;
use crate::text::processor::surroundings;
use crate::text::split::Splitter;
use crate::text::template::{Templates, read_template};

/// Longest `tokenizer.json`.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
/// Longest text that is encoded at once.
pub const TEXT_BYTES_MAX: usize = 1 << 30;

/// Why a text has no tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The text is longer than [`TEXT_BYTES_MAX`].
    #[error("the text has {bytes} bytes, more than {TEXT_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The tokenizer cannot express it.
    #[error("the tokenizer cannot encode this text: {0}")]
    Encode(String),
}

/// Text to token ids of one model, and back. Every id it makes is below the model's `vocab`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What the post-processor puts before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    splitter: Option<Splitter>,
    decoder: Decoder,
    pub(crate) templates: Templates,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` where they exist.
    ///
    /// # Errors
    /// As [`Tokenizer::from_json`]; a file that cannot be read or is too long.
    pub fn load(dir: &Path, spec: &ModelSpec) -> Result<Self, ModelError> {
        let json = read_tokenizer(&dir.join("tokenizer.json"))?;
        let config = dir.join("tokenizer_config.json");
        let config = if config.exists() { Some(read_text(&config)?) } else { None };
        let mut tokenizer = Self::from_json(&json, config.as_deref().map(str::as_bytes), dir, spec)?;
        let template = dir.join("chat_template.jinja");
        if template.exists() {
            tokenizer.templates.replace(read_template(&template)?, &template);
        }
        Ok(tokenizer)
    }

    /// Parses the bytes of a `tokenizer.json` and, where given, of a `tokenizer_config.json`. `origin` is the
    /// folder that errors name. Truncation, padding and BPE dropout are switched off: a text's tokens are all
    /// of its tokens, every time the same.
    ///
    /// # Errors
    /// [`ModelError`] naming the file and the field: not JSON, not a tokenizer, a decoder or post-processor that is
    /// not supported, a chat template that is too long, a token id that the model does not have.
    pub fn from_json(
        json: &[u8],
        config: Option<&[u8]>,
        origin: &Path,
        spec: &ModelSpec,
    ) -> Result<Self, ModelError> {
        let path = &origin.join("tokenizer.json");
        let config = TextConfig::parse(config, &origin.join("tokenizer_config.json"))?;
        let mut inner = parse(json, path)?;
        add_special_tokens(&mut inner, &config, path)?;
        check_ids(&inner, path, spec)?;
        let id = |token: Option<&str>| token.and_then(|t| inner.token_to_id(t));
        let (bos, eos) = (id(config.token("bos_token")), id(config.token("eos_token")));
        let (mut prefix, mut suffix) = surroundings(&inner, path, spec)?;
        // The Llama classes of transformers rebuild the post-processor from these flags.
        match (config.add_bos, bos) {
            (Some(true), Some(bos)) => prefix = vec![bos],
            (Some(false), _) => prefix.clear(),
            _ => {}
        }
        match (config.add_eos, eos) {
            (Some(true), Some(eos)) => suffix = vec![eos],
            (Some(false), _) => suffix.clear(),
            _ => {}
        }
        let decoder = Decoder::new(inner.get_decoder(), path)?;
        let splitter = Splitter::new(&inner);
        let (bos, templates) = (bos.or(spec.bos), Templates::new(config));
        Ok(Tokenizer { inner, prefix, suffix, bos, eos, splitter, decoder, templates })
    }

    /// Ids of `text` with what the post-processor adds (usually the BOS token), as transformers encodes by
    /// default, except that a text that begins with the BOS token gets no second one. Special tokens
    /// spelled out in the text are recognised.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = self.encode_raw(text)?;
        let mut prefix = self.prefix.as_slice();
        if let Some((last, rest)) = prefix.split_last()
            && Some(*last) == self.bos
            && ids.first() == Some(last)
        {
            prefix = rest;
        }
        ids.splice(0..0, prefix.iter().copied());
        ids.extend_from_slice(&self.suffix);
        Ok(ids)
    }

    /// Ids of `text` and nothing more: for the output of a chat template, and for the continuation of a prompt.
    /// Special tokens spelled out in the text are recognised. A byte-level tokenizer of a known pattern takes a long
    /// text in pieces, on all cores; any other takes it whole, which needs about 160 bytes of memory for each.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn encode_raw(&self, text: &str) -> Result<Vec<u32>, TextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TextError::TooLong { bytes: text.len() });
        }
        let encode = |part: &str| {
            let encoding = self.inner.encode_fast(part, false);
            encoding.map(|e| e.get_ids().to_vec()).map_err(|e| TextError::Encode(printable(&e.to_string())))
        };
        match &self.splitter {
            None => encode(text),
            Some(splitter) => {
                let parts: Vec<Vec<u32>> =
                    splitter.parts(text).into_par_iter().map(encode).collect::<Result<_, _>>()?;
                Ok(parts.concat())
            }
        }
    }

    /// Text of `ids`, without special tokens and ids the tokenizer does not have. As transformers without
    /// `clean_up_tokenization_spaces`, which would change the text.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = self.detokenizer();
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// Starts to decode token by token.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer::new(self, self.decoder.start())
    }

    /// Tokens that end a text by `tokenizer_config.json`: to be joined with those of
    /// [`ModelSpec::eos`].
    pub fn end_tokens(&self) -> Vec<u32> {
        self.eos.into_iter().collect()
    }

    /// Bytes that the token `id` adds to a text it does not begin, perhaps parts of characters. `None` for special
    /// tokens and ids the tokenizer does not have, which add nothing.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.spelling(id).map(|token| self.decoder.bytes(token))
    }

    /// Name of the special token `id`, as `<|end|>`; `None` for all other ids.
    pub fn special_token(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        self.inner.get_added_vocabulary().is_special_token(&token).then_some(token)
    }

    /// Spelling of a token that appears in text: `None` for special tokens and unknown ids.
    pub(crate) fn spelling(&self, id: u32) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        (!self.inner.get_added_vocabulary().is_special_token(&token)).then_some(token)
    }
}

fn read_tokenizer(path: &Path) -> Result<Vec<u8>, ModelError> {
    if !path.exists() {
        let problem = "is missing; text needs it (`logits --ids` takes token ids and does not)";
        return Err(ModelError::file(path, problem));
    }
    // Asked before opening: opening a named pipe would wait for a writer.
    if !path.is_file() {
        return Err(ModelError::file(path, "is not a file"));
    }
    let file = File::open(path).map_err(|e| ModelError::read(path, e))?;
    let mut bytes = Vec::new();
    file.take(TOKENIZER_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| ModelError::read(path, e))?;
    if bytes.len() as u64 > TOKENIZER_BYTES_MAX {
        return Err(ModelError::file(path, format!("has more than {TOKENIZER_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn parse(json: &[u8], path: &Path) -> Result<tokenizers::Tokenizer, ModelError> {
    let mut value: Value = serde_json::from_slice(json)
        .map_err(|e| ModelError::file(path, format!("is not JSON: {}", printable(&e.to_string()))))?;
    let Some(map) = value.as_object_mut() else {
        return Err(ModelError::file(path, "is not a JSON object"));
    };
    for key in ["truncation", "padding"] {
        map.insert(key.into(), Value::Null);
    }
    match map.get_mut("model").map(Value::as_object_mut) {
        None => return Err(ModelError::field(path, "model", "is missing")),
        Some(None) => return Err(ModelError::field(path, "model", "must be an object")),
        Some(Some(model)) => {
            check_model(model, path)?;
            if let Some(dropout) = model.get_mut("dropout") {
                *dropout = Value::Null;
            }
        }
    }
    serde_json::from_value(value).map_err(|e| {
        ModelError::file(path, format!("is not a tokenizer that can be read: {}", printable(&e.to_string())))
    })
}

/// Tokens that `tokenizer_config.json` calls special are special, as in transformers, also where
/// `tokenizer.json` has them as ordinary words.
fn add_special_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &TextConfig,
    path: &Path,
) -> Result<(), ModelError> {
    let added = inner.get_added_vocabulary().get_vocab();
    let missing = |t: &&str| !added.contains_key(*t) && inner.token_to_id(t).is_some();
    let tokens: Vec<_> = config.special_tokens().filter(missing).map(|t| AddedToken::from(t, true)).collect();
    if !tokens.is_empty() {
        inner.add_special_tokens(tokens).map_err(|e| {
            ModelError::field(path, "added_tokens", format!("cannot be used: {}", printable(&e.to_string())))
        })?;
    }
    Ok(())
}

fn check_ids(inner: &tokenizers::Tokenizer, path: &Path, spec: &ModelSpec) -> Result<(), ModelError> {
    let outside = inner.get_vocab(true).into_iter().filter(|(_, id)| *id as usize >= spec.vocab);
    match outside.min_by_key(|(_, id)| *id) {
        None => Ok(()),
        Some((token, id)) => Err(outside_vocab(path, &token, id, spec)),
    }
}

fn outside_vocab(path: &Path, token: &str, id: u32, spec: &ModelSpec) -> ModelError {
    let token = printable(token);
    let problem = format!("has token '{token}' with id {id}; the model's `vocab_size` is {}", spec.vocab);
    ModelError::field(path, "model.vocab", format!("{problem}: the two are not of one model"))
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
