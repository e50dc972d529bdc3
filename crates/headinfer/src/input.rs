//! Inputs of commands: prompts and token ids, each with a limit and a name in errors.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Result;
use headinfer_core::model::safetensors::parse_header;
use headinfer_core::text::TEXT_BYTES_MAX;
use headinfer_core::units::{Bytes, GIB};

use crate::error::Failure;

/// Longest file of token ids that is read.
const IDS_BYTES_MAX: u64 = 4 * GIB;
/// Longest prompt, past which no text is encoded.
const PROMPT_BYTES_MAX: u64 = TEXT_BYTES_MAX as u64;

/// The prompt: the file, then the text; standard input when neither is given.
///
/// # Errors
/// [`Failure`] when an input cannot be read, is too long, is not UTF-8, or all is empty.
pub(crate) fn prompt(file: Option<&Path>, text: Option<&str>) -> Result<String> {
    let mut prompt = match (file, text) {
        (Some(path), _) => utf8(read_file(path, PROMPT_BYTES_MAX)?, &path.display().to_string())?,
        (None, Some(_)) => String::new(),
        (None, None) => {
            utf8(read(std::io::stdin().lock(), "standard input", PROMPT_BYTES_MAX)?, "standard input")?
        }
    };
    prompt.push_str(text.unwrap_or_default());
    if !prompt.is_empty() {
        return Ok(prompt);
    }
    Err(match (file, text) {
        (Some(path), _) => Failure::input(format!("the prompt is empty: {} has no text", path.display())),
        (None, Some(_)) => Failure::usage("the prompt is empty: -p has no text"),
        (None, None) => Failure::input("the prompt is empty: standard input has no text")
            .hint("give -f FILE, -p TEXT or a pipe"),
    }
    .into())
}

fn utf8(bytes: Vec<u8>, name: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::input(format!("{name} is not UTF-8 text: the byte at {at} does not belong")).into()
    })
}

/// Token ids of a safetensors file with `ids` i32 `[n]`, or of a JSON list; each within `vocab`.
///
/// # Errors
/// [`Failure`] naming the file and the position.
pub(crate) fn ids(path: &Path, vocab: usize) -> Result<Vec<u32>> {
    let name = path.display();
    let bytes = read_file(path, IDS_BYTES_MAX)?;
    let parsed = match is_json_list(&bytes) {
        true => {
            serde_json::from_slice::<Vec<i64>>(&bytes).map_err(|e| format!("is not a JSON list of ids: {e}"))
        }
        false => tensor_ids(&bytes),
    };
    let parsed = parsed.map_err(|problem| {
        Failure::input(format!("{name} {problem}"))
            .hint("give safetensors with `ids` i32 [n], or a JSON list")
    })?;
    if parsed.is_empty() {
        return Err(Failure::input(format!("{name}: `ids` is empty: give at least one token")).into());
    }
    let within = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < vocab);
    if let Some(at) = parsed.iter().position(|id| !within(id)) {
        let id = parsed[at];
        let message = format!("{name}: `ids` has {id} at position {at}, outside the vocabulary of {vocab}");
        return Err(Failure::input(message).into());
    }
    Ok(parsed.into_iter().map(|id| id as u32).collect())
}

/// A safetensors file starts with a length of 8 bytes, of which the last is 0 in any honest file.
fn is_json_list(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(8)];
    !head.contains(&0) && bytes.trim_ascii_start().first() == Some(&b'[')
}

fn tensor_ids(bytes: &[u8]) -> Result<Vec<i64>, String> {
    let header = parse_header(bytes)?;
    let entry = header.get("ids").ok_or("has no tensor `ids`")?;
    let [_] = entry.shape[..] else {
        return Err(format!("has `ids` of shape {:?}, not [n]", entry.shape));
    };
    let data = usize::try_from(entry.begin).ok().zip(usize::try_from(entry.end).ok());
    let data = data.and_then(|(begin, end)| bytes.get(begin..end)).ok_or("is truncated")?;
    match entry.dtype.as_str() {
        "I32" => Ok(data.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()),
        "I64" => Ok(data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()),
        other => Err(format!("has `ids` of type {other}, not I32")),
    }
}

fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|e| Failure::input(format!("cannot read {name}")).because(e))?;
    read(file, &name, bytes_max)
}

fn read(source: impl Read, name: &str, bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let got = source.take(bytes_max + 1).read_to_end(&mut bytes);
    got.map_err(|e| Failure::input(format!("cannot read {name}")).because(e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Failure::input(format!("{name} is longer than {}", Bytes(bytes_max))).into());
    }
    Ok(bytes)
}
