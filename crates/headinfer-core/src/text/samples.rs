//! Small tokenizers for tests, one of each kind that published models have.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::model::ModelError;
use crate::model::known::known_shape;
use crate::model::spec::ModelSpec;
use crate::text::Tokenizer;

/// A model with room for every sample.
pub(crate) fn spec() -> ModelSpec {
    ModelSpec { vocab: 400, bos: None, ..known_shape("tiny").unwrap() }
}

pub(crate) fn build(tokenizer: &Value, config: Option<&Value>) -> Result<Tokenizer, ModelError> {
    let config = config.map(Value::to_string);
    let config = config.as_ref().map(|c| c.as_bytes());
    Tokenizer::from_json(tokenizer.to_string().as_bytes(), config, Path::new("m"), &spec())
}

pub(crate) fn special(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false})
}

/// Puts `<s>` before a text.
pub(crate) fn bos_processor(id: u32) -> Value {
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    json!({"type": "TemplateProcessing", "single": [bos, text("A")], "pair": [text("A"), text("B")],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}}})
}

fn vocabulary(words: impl IntoIterator<Item = String>) -> Value {
    let pairs: Map<String, Value> = words.into_iter().enumerate().map(|(i, w)| (w, json!(i))).collect();
    Value::Object(pairs)
}

/// As Llama 3 and GPT-2: `<s>` is 0, `</s>` 1, then the bytes and a few merges.
pub(crate) fn byte_level() -> Value {
    let mut alphabet: Vec<char> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort();
    let merges = ["t h", "th e", "Ġ the", "Ã ©", "ð Ł", "i n", "Ċ Ċ", "Ġ Ġ", "' s"];
    let words = ["<s>", "</s>"].map(String::from).into_iter();
    let words = words.chain(alphabet.iter().map(char::to_string));
    let words = words.chain(merges.map(|m| m.replace(' ', "")));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": bos_processor(0),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary(words),
            "merges": merges},
    })
}

/// As Llama 2 and Mistral: spaces are `▁`, what is not in the vocabulary is bytes.
pub(crate) fn byte_fallback() -> Value {
    let merges = ["▁ t", "▁t h", "▁ ▁", "a b", "h e"];
    let letters = ["▁", "a", "b", "e", "h", "t", "é", "\n"];
    let words = ["<unk>", "<s>", "</s>"].into_iter().chain(letters).map(String::from);
    let words = words.chain((0..256).map(|b| format!("<0x{b:02X}>")));
    let words = words.chain(merges.map(|m| m.replace(' ', "")));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": bos_processor(1),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary(words),
            "merges": merges},
    })
}

/// As the newer files of SentencePiece models.
pub(crate) fn metaspace() -> Value {
    let mut sample = byte_fallback();
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    sample["normalizer"] = Value::Null;
    sample["pre_tokenizer"] = metaspace.clone();
    sample["decoder"] = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]});
    sample
}

/// Whole words, no decoder.
pub(crate) fn words() -> Value {
    let words = ["<unk>", "<s>", "</s>", "one", "two", "three", "é"].map(String::from);
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": vocabulary(words)},
    })
}
