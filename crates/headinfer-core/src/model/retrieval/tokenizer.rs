//! The tokenizer of a retrieval model, in the files that Hugging Face's libraries read: one token a word, words
//! between white space.

use serde_json::{Map, Value, json};

use super::{BOS, Retrieval, SPECIALS};

impl Retrieval {
    /// Content of `tokenizer.json`. `<s>` is put before every text, and unknown words become `<unk>`.
    pub fn tokenizer_json(&self) -> String {
        let [unknown, start] = SPECIALS;
        let vocab: Map<String, Value> =
            (0..self.fillers().end).filter_map(|id| Some((self.word(id)?, json!(id)))).collect();
        let special = |id: usize| {
            json!({"id": id, "content": SPECIALS[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        };
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(0), special(1)],
            "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": start, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [
                    {"SpecialToken": {"id": start, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"Sequence": {"id": "B", "type_id": 0}},
                ],
                "special_tokens": {start: {"id": start, "ids": [BOS], "tokens": [start]}},
            },
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unknown},
        });
        format!("{file:#}\n")
    }

    /// Content of `tokenizer_config.json`.
    pub fn tokenizer_config_json(&self) -> String {
        let [unknown, start] = SPECIALS;
        let file = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "unk_token": unknown,
            "model_max_length": self.spec().max_position,
            "clean_up_tokenization_spaces": false,
        });
        format!("{file:#}\n")
    }
}
