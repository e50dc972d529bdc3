//! What of `tokenizer_config.json` matters here: the special tokens, the template, the Llama flags.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model::ModelError;
use crate::model::json::{Object, parse_object};
use crate::text::template::TEMPLATE_BYTES_MAX;

/// Most named templates of one model.
const TEMPLATES_MAX: usize = 64;

/// Names under which the configuration gives special tokens; templates see them as variables.
const TOKEN_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The checked content of `tokenizer_config.json`; empty where there is none.
#[derive(Debug, Default)]
pub(crate) struct TextConfig {
    /// `(name, spelling)`, as `("bos_token", "<s>")`.
    pub(crate) tokens: Vec<(&'static str, String)>,
    /// Set only for the Llama tokenizer classes, the only ones that follow them.
    pub(crate) add_bos: Option<bool>,
    pub(crate) add_eos: Option<bool>,
    /// `(name, source)`; a single template is named `default`.
    pub(crate) templates: Vec<(String, String)>,
    /// The file all this is from.
    pub(crate) path: PathBuf,
}

impl TextConfig {
    pub(crate) fn parse(json: Option<&[u8]>, path: &Path) -> Result<Self, ModelError> {
        let Some(json) = json else {
            return Ok(TextConfig { path: path.into(), ..TextConfig::default() });
        };
        let text = std::str::from_utf8(json).map_err(|_| ModelError::file(path, "is not UTF-8 text"))?;
        let map = parse_object(text, path)?;
        let config = Object::new(path, "", &map);
        let mut tokens = Vec::new();
        for name in TOKEN_NAMES {
            if let Some(token) = token(config, name)? {
                tokens.push((name, token));
            }
        }
        let llama = matches!(config.get("tokenizer_class").and_then(Value::as_str),
            Some(class) if class.starts_with("LlamaTokenizer"));
        let flag = |key| if llama { config.flag(key) } else { Ok(None) };
        Ok(TextConfig {
            tokens,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            templates: templates(config)?,
            path: path.into(),
        })
    }

    pub(crate) fn token(&self, name: &str) -> Option<&str> {
        self.tokens.iter().find(|(n, _)| *n == name).map(|(_, token)| token.as_str())
    }

    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|(_, token)| token.as_str())
    }
}

/// A string, or an object whose `content` is one (transformers writes both).
fn token(config: Object<'_>, name: &str) -> Result<Option<String>, ModelError> {
    let text = match config.get(name) {
        None => return Ok(None),
        Some(Value::Object(map)) => map.get("content").and_then(Value::as_str),
        Some(other) => other.as_str(),
    };
    match text {
        Some(text) => Ok(Some(text.into()).filter(|t: &String| !t.is_empty())),
        None => Err(config.error(name, "must be a string, or an object with a string `content`")),
    }
}

fn templates(config: Object<'_>) -> Result<Vec<(String, String)>, ModelError> {
    let wrong = || config.error("chat_template", "must be a string or a list of {name, template}");
    let list = match config.get("chat_template") {
        None => Vec::new(),
        Some(Value::String(source)) => vec![("default".to_owned(), source.clone())],
        Some(Value::Array(list)) if list.len() > TEMPLATES_MAX => {
            return Err(config.error("chat_template", format!("has more than {TEMPLATES_MAX} templates")));
        }
        Some(Value::Array(list)) => {
            let text = |v: &Value, key| v.get(key).and_then(Value::as_str).map(str::to_owned);
            let one = |v| Some((text(v, "name")?, text(v, "template")?));
            list.iter().map(one).collect::<Option<_>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    match list.iter().find(|(_, source)| source.len() > TEMPLATE_BYTES_MAX) {
        None => Ok(list),
        Some((_, source)) => {
            let problem = format!("has {} bytes, more than {TEMPLATE_BYTES_MAX}", source.len());
            Err(config.error("chat_template", problem))
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
