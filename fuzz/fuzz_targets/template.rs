//! No chat template makes the engine panic.
#![no_main]

use std::path::Path;

use headinfer_core::model::known::known_shape;
use headinfer_core::text::Tokenizer;
use headinfer_core::text::chat::Message;
use libfuzzer_sys::fuzz_target;

const TOKENIZER: &[u8] = br#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel",
    "vocab": {"<unk>": 0}, "unk_token": "<unk>"}}"#;

fuzz_target!(|template: &str| {
    let spec = known_shape("tiny").expect("a known shape");
    let config = serde_json::json!({"bos_token": "<s>", "chat_template": template}).to_string();
    if let Ok(tokenizer) = Tokenizer::from_json(TOKENIZER, Some(config.as_bytes()), Path::new("fuzz"), &spec) {
        let message = Message { role: "user".into(), content: Some("Hi".into()), ..Message::default() };
        let _ = tokenizer.chat_prompt(&[message], None, true);
    }
});
