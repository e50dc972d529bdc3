//! What a tokenizer's post-processor adds to a text.

use std::path::Path;

use serde_json::Value;
use tokenizers::{Encoding, Token};

use crate::model::ModelError;
use crate::model::error::printable;
use crate::model::spec::ModelSpec;

/// What the post-processor puts before and after a text: found by processing one token that no vocabulary
/// has.
pub(crate) fn surroundings(
    inner: &tokenizers::Tokenizer,
    path: &Path,
    spec: &ModelSpec,
) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
    const MARK: u32 = u32::MAX;
    let bad = |problem: String| ModelError::field(path, "post_processor", problem);
    let processor = serde_json::to_value(inner.get_post_processor()).unwrap_or_default();
    check_templates(&processor).map_err(bad)?;
    let text = Encoding::from_tokens(vec![Token::new(MARK, String::new(), (0, 0))], 0);
    let whole = inner
        .post_process(text, None, true)
        .map_err(|e| bad(format!("cannot be used: {}", printable(&e.to_string()))))?;
    let ids = whole.get_ids();
    let (before, after) = match ids.iter().position(|&id| id == MARK) {
        Some(at) if !ids[at + 1..].contains(&MARK) => (&ids[..at], &ids[at + 1..]),
        _ => return Err(bad("must keep the text once".into())),
    };
    match before.iter().chain(after).find(|id| **id as usize >= spec.vocab) {
        None => Ok((before.to_vec(), after.to_vec())),
        Some(id) => Err(bad(format!("adds token {id}; the model's `vocab_size` is {}", spec.vocab))),
    }
}

/// Each template keeps one text, and defines the tokens it adds: the `tokenizers` crate takes that for granted.
fn check_templates(processor: &Value) -> Result<(), String> {
    for inner in list(processor, "processors") {
        check_templates(inner)?;
    }
    if processor.get("type").and_then(Value::as_str) != Some("TemplateProcessing") {
        return Ok(());
    }
    let part = |piece: &Value, kind: &str| Some(piece.get(kind)?.get("id")?.as_str()?.to_owned());
    let single = list(processor, "single");
    let texts: Vec<String> = single.iter().filter_map(|piece| part(piece, "Sequence")).collect();
    if texts != ["A"] {
        return Err("must keep the text once".into());
    }
    let known = |id: &String| processor.get("special_tokens").is_some_and(|t| t.get(id).is_some());
    match single.iter().filter_map(|piece| part(piece, "SpecialToken")).find(|id| !known(id)) {
        None => Ok(()),
        Some(id) => Err(format!("adds '{}', which is not in its `special_tokens`", printable(&id))),
    }
}

fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
