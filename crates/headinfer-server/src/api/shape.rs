//! Where chats and completions differ in their JSON.

use headinfer_core::text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::worker::Scored;

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Text,
}

impl Shape {
    pub(super) fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Text => "cmpl",
        }
    }

    pub(super) fn whole_name(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Text => "text_completion",
        }
    }

    pub(super) fn chunk_name(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Text => "text_completion",
        }
    }

    /// `calls` are those of [`Shape::call`], with their arguments.
    pub(super) fn whole_choice(self, text: &str, calls: Vec<Value>, logprobs: Value, reason: &str) -> Value {
        match self {
            Self::Chat => {
                let mut message = json!({"role": "assistant", "content": text, "refusal": null});
                if !calls.is_empty() {
                    message["content"] = if text.is_empty() { Value::Null } else { text.into() };
                    message["tool_calls"] = calls.into();
                }
                json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason})
            }
            Self::Text => self.chunk_choice(text, logprobs, Some(reason)),
        }
    }

    /// Call number `at` of the answer `answer`, of the tool `name`.
    pub(super) fn call(self, answer: &str, at: usize, name: &str) -> Value {
        let function = json!({"name": name, "arguments": ""});
        json!({"id": format!("call_{answer}-{at}"), "type": "function", "function": function})
    }

    /// A chunk of call number `at`: its beginning, made by [`Shape::call`], or more of its arguments.
    pub(super) fn call_choice(self, at: usize, mut call: Value, logprobs: Value) -> Value {
        call["index"] = at.into();
        json!({"index": 0, "delta": {"tool_calls": [call]}, "logprobs": logprobs, "finish_reason": null})
    }

    /// Chats begin with the role.
    pub(super) fn first_choice(self) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self == Self::Chat)
            .then(|| json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    pub(super) fn chunk_choice(self, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        match self {
            Self::Chat => {
                let silent = text.is_empty() && logprobs.is_null();
                let delta = if silent { json!({}) } else { json!({"content": text}) };
                json!({"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason})
            }
            Self::Text => json!({"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}),
        }
    }

    /// `offset` is where the next token's text begins, in characters.
    pub(super) fn logprobs(self, tokenizer: &Tokenizer, tokens: &[Scored], offset: &mut usize) -> Value {
        match self {
            Self::Chat => {
                let one = |id, logprob: f64| {
                    let bytes = bytes(tokenizer, id);
                    json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
                };
                let entry = |scored: &Scored| {
                    let mut entry = one(scored.id, scored.logprob);
                    entry["top_logprobs"] = scored.top.iter().map(|(id, p)| one(*id, *p)).collect();
                    entry
                };
                json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
            }
            Self::Text => {
                let all: Vec<Vec<u8>> = tokens.iter().map(|scored| bytes(tokenizer, scored.id)).collect();
                let mut begin = |scored: &Scored| {
                    let shown = tokenizer.token_bytes(scored.id).unwrap_or_default();
                    // A character belongs to the token that begins it.
                    let characters = shown.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
                    std::mem::replace(offset, *offset + characters)
                };
                let top = |scored: &Scored| {
                    let one = |(id, p): &(u32, f64)| (unique(&bytes(tokenizer, *id)), json!(p));
                    scored.top.iter().map(one).collect::<Map<String, Value>>()
                };
                json!({
                    "tokens": all.iter().map(|bytes| unique(bytes)).collect::<Vec<_>>(),
                    "token_logprobs": tokens.iter().map(|scored| scored.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": tokens.iter().map(&mut begin).collect::<Vec<_>>(),
                    "bytes": all,
                })
            }
        }
    }
}

/// Of the token's text; of special tokens, which have none, those of their name.
fn bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let special = || tokenizer.special_token(id).map(String::into_bytes);
    tokenizer.token_bytes(id).or_else(special).unwrap_or_default()
}

/// Text; parts of characters spelled as OpenAI does, for two of them must not look the same.
fn unique(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
