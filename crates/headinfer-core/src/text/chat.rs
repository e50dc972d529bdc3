//! Chat messages, and the prompt that a model's chat template makes of them.

use serde::{Deserialize, Deserializer};

pub use crate::text::date::Date;
use crate::text::template::{self, Scene};
use crate::text::tokenizer::{TEXT_BYTES_MAX, Tokenizer};

/// A JSON value that keeps the order of its keys, which templates print.
pub type Json = minijinja::Value;

/// Most messages of one chat.
pub const MESSAGES_MAX: usize = 1 << 16;

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The model brings no template that fits.
    #[error("{path}: {problem}")]
    NoTemplate {
        /// The file that would have it.
        path: String,
        /// What is missing.
        problem: String,
    },
    /// The template says that it does not take these messages.
    #[error("the chat template refuses the messages: {0}")]
    Refused(String),
    /// The template is wrong, or uses something that is not implemented.
    #[error("{path}: the chat template fails: {problem}")]
    Template {
        /// The file that has it.
        path: String,
        /// What is wrong, with the line.
        problem: String,
    },
    /// The template does more work than messages of this length can need.
    #[error("{path}: the chat template was stopped: too much work for messages of {bytes} bytes")]
    TooCostly {
        /// The file that has it.
        path: String,
        /// Bytes of all messages and tools.
        bytes: usize,
    },
    /// More than [`MESSAGES_MAX`] messages, or than [`TEXT_BYTES_MAX`] bytes.
    #[error("{messages} messages of {bytes} bytes; at most {MESSAGES_MAX} of {TEXT_BYTES_MAX}")]
    TooLong {
        /// How many.
        messages: usize,
        /// Bytes of all messages and tools.
        bytes: usize,
    },
}

/// One message of a chat, as in the OpenAI API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said. Text parts are joined with newlines. `None` is for calls of tools.
    #[serde(default, deserialize_with = "content")]
    pub content: Option<String>,
    /// Of the speaker, or of the tool.
    #[serde(default)]
    pub name: Option<String>,
    /// A list of calls, `{"id", "type", "function": {"name", "arguments"}}`.
    #[serde(default)]
    pub tool_calls: Option<Json>,
    /// Which call this message answers.
    #[serde(default)]
    pub tool_call_id: Option<String>,
}

/// What a prompt is made with, besides messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatOptions<'a> {
    /// A list of tools, `{"type": "function", "function": {…}}`.
    pub tools: Option<&'a Json>,
    /// The prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// For templates that print the date. `None`: they print the date they fall back on, or fail.
    pub today: Option<Date>,
    /// An object of further variables, such as `enable_thinking`.
    pub variables: Option<&'a Json>,
}

impl Tokenizer {
    /// Whether the model brings a chat template.
    pub fn has_chat_template(&self) -> bool {
        !self.templates.is_empty()
    }

    /// Source of the template that chats with tools are rendered by; what it prints tells how the model calls them.
    pub fn tool_template(&self) -> Option<&str> {
        self.templates.select(true).ok().map(|source| source.text())
    }

    /// The prompt of `messages`, to be encoded with [`Tokenizer::encode_raw`]: the template writes the BOS
    /// token where the model wants one.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn chat_prompt(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        self.chat_prompt_with(
            messages,
            &ChatOptions { tools, add_generation_prompt, ..ChatOptions::default() },
        )
    }

    /// As [`Tokenizer::chat_prompt`], with a date or further variables.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn chat_prompt_with(&self, messages: &[Message], options: &ChatOptions) -> Result<String, ChatError> {
        let bytes = messages.iter().map(Message::bytes).sum::<usize>()
            + options.tools.map_or(0, json_bytes)
            + options.variables.map_or(0, json_bytes);
        if messages.len() > MESSAGES_MAX || bytes > TEXT_BYTES_MAX {
            return Err(ChatError::TooLong { messages: messages.len(), bytes });
        }
        let mut variables: Vec<(String, Json)> = Vec::new();
        let mut set = |name: &str, value: Json| variables.push((name.into(), value));
        for (name, token) in self.templates.tokens() {
            set(name, token.into());
        }
        if let Some(extra) = options.variables
            && let Ok(names) = extra.try_iter()
        {
            for name in names {
                let value = extra.get_item(&name).unwrap_or_default();
                set(&name.to_string(), value);
            }
        }
        set("messages", messages.iter().map(Message::to_json).collect());
        set("tools", options.tools.cloned().unwrap_or(Json::from(())));
        set("documents", Json::from(()));
        set("add_generation_prompt", options.add_generation_prompt.into());
        let scene = Scene { variables, today: options.today, bytes, messages: messages.len() };
        template::render(self.templates.select(options.tools.is_some())?, scene)
    }
}

impl Message {
    fn bytes(&self) -> usize {
        let text = |t: &Option<String>| t.as_ref().map_or(0, String::len);
        let calls = self.tool_calls.as_ref().map_or(0, json_bytes);
        self.role.len() + text(&self.content) + text(&self.name) + text(&self.tool_call_id) + calls
    }

    /// The object templates see: absent fields are absent, but for the content, which is none.
    fn to_json(&self) -> Json {
        let text = |t: &Option<String>| t.as_deref().map(Json::from);
        let fields = [
            ("role", Some(self.role.as_str().into())),
            ("content", Some(self.content.as_deref().into())),
            ("name", text(&self.name)),
            ("tool_calls", self.tool_calls.as_ref().map(with_parsed_arguments)),
            ("tool_call_id", text(&self.tool_call_id)),
        ];
        Json::from_pairs(fields.into_iter().filter_map(|(name, value)| Some((name, value?))))
    }
}

/// Templates print arguments as JSON and expect an object, where the OpenAI API has it as a string.
fn with_parsed_arguments(calls: &Json) -> Json {
    let replace = |object: &Json, key: &str, value: Json| -> Json {
        let pairs = object.try_iter().into_iter().flatten();
        let pair = |k: Json| {
            let v =
                if k.as_str() == Some(key) { value.clone() } else { object.get_item(&k).unwrap_or_default() };
            (k, v)
        };
        Json::from_pairs(pairs.map(pair))
    };
    let parsed = |call: Json| -> Option<Json> {
        let function = call.get_attr("function").ok()?;
        let arguments = function.get_attr("arguments").ok()?;
        let object: Json = serde_json::from_str(arguments.as_str()?).ok()?;
        Some(replace(&call, "function", replace(&function, "arguments", object)))
    };
    match calls.try_iter() {
        Ok(list) => list.map(|call| parsed(call.clone()).unwrap_or(call)).collect(),
        Err(_) => calls.clone(),
    }
}

fn json_bytes(value: &Json) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}

/// A string, null, or a list of `{"type": "text", "text": …}`.
fn content<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    use serde::de::Error;
    let value = Option::<Json>::deserialize(from)?.unwrap_or(Json::from(()));
    if value.is_none() {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.into()));
    }
    if value.kind() != minijinja::value::ValueKind::Seq {
        return Err(D::Error::custom("`content` must be a string, null or a list of text parts"));
    }
    let mut texts = Vec::new();
    for part in value.try_iter().map_err(D::Error::custom)? {
        let kind = part.get_attr("type").unwrap_or_default();
        let text = part.get_attr("text").unwrap_or_default();
        match (kind.as_str(), text.as_str()) {
            (Some("text"), Some(text)) => texts.push(text.to_owned()),
            (Some("text"), None) => {
                return Err(D::Error::custom("a text part of `content` needs a string `text`"));
            }
            (kind, _) => {
                let kind = kind.unwrap_or("without a type");
                return Err(D::Error::custom(format!(
                    "`content` has a part '{kind}'; only text is supported"
                )));
            }
        }
    }
    Ok(Some(texts.join("\n")))
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
