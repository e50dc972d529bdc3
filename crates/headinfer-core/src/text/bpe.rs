//! What the `tokenizers` crate takes for granted in a model's vocabulary.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::ModelError;
use crate::model::error::printable;

/// The model is of a kind that is read, and every merge makes a token of the vocabulary.
///
/// # Errors
/// [`ModelError`] naming the field, and the first merge that is wrong.
pub(crate) fn check_model(model: &Map<String, Value>, path: &Path) -> Result<(), ModelError> {
    let unsupported = |field: &str, what, value: &str, supported| {
        Err(ModelError::Unsupported {
            path: path.into(),
            field: format!("model.{field}"),
            what,
            value: printable(value),
            supported,
        })
    };
    match model.get("type").and_then(Value::as_str) {
        Some("WordLevel") => return Ok(()),
        Some("BPE") => {}
        // The oldest files do not say what they are.
        None if model.contains_key("merges") => {}
        kind => return unsupported("type", "kind of tokenizer", kind.unwrap_or("none"), "BPE, WordLevel"),
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        match model.get(key).and_then(Value::as_str) {
            None | Some("") => {}
            Some(mark) => return unsupported(key, "mark", mark, "none"),
        }
    }
    let vocab = model.get("vocab").and_then(Value::as_object);
    let merges = model.get("merges").and_then(Value::as_array);
    let (Some(vocab), Some(merges)) = (vocab, merges) else { return Ok(()) };
    for (left, right) in merges.iter().filter_map(pair) {
        let whole = [left, right].concat();
        if ![left, right, &whole].into_iter().all(|token| vocab.contains_key(token)) {
            let merge = printable(&format!("{left} {right}"));
            let problem = format!("has '{merge}', of which a part or the whole is not in `model.vocab`");
            return Err(ModelError::field(path, "model.merges", problem));
        }
    }
    Ok(())
}

/// `"a b"` or `["a", "b"]`; others are the reader's to refuse.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(list) => match list.as_slice() {
            [left, right] => Some((left.as_str()?, right.as_str()?)),
            _ => None,
        },
        _ => None,
    }
}
