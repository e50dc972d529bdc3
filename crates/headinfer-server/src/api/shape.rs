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

    pub(super) fn whole_choice(self, text: &str, logprobs: Value, reason: &str) -> Value {
        match self {
            Self::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                json!({"index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason})
            }
            Self::Text => self.chunk_choice(text, logprobs, Some(reason)),
        }
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
        let text = |id: u32| tokenizer.decode(&[id]);
        match self {
            Self::Chat => {
                let one = |id, logprob: f64| {
                    let token = text(id);
                    json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()})
                };
                let entry = |scored: &Scored| {
                    let mut entry = one(scored.id, scored.logprob);
                    entry["top_logprobs"] = scored.top.iter().map(|(id, p)| one(*id, *p)).collect();
                    entry
                };
                json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
            }
            Self::Text => {
                let texts: Vec<String> = tokens.iter().map(|scored| text(scored.id)).collect();
                let offsets: Vec<usize> = texts
                    .iter()
                    .map(|text| std::mem::replace(offset, *offset + text.chars().count()))
                    .collect();
                let top = |scored: &Scored| {
                    scored.top.iter().map(|(id, p)| (text(*id), json!(p))).collect::<Map<String, Value>>()
                };
                json!({
                    "tokens": texts,
                    "token_logprobs": tokens.iter().map(|scored| scored.logprob).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }
}
