//! Reading a JSON object field by field, so that an error names the field, what was given and what is meant.
//! `null` counts as left out, as OpenAI's clients expect; fields nobody asks for are ignored.

use std::ops::RangeInclusive;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::ApiError;

/// A JSON object and where it is in the request.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Fields<'a> {
    /// The object of a whole body.
    pub(super) fn of(body: &'a Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Self { map, prefix: String::new() }),
            other => {
                let message = format!("the body must be a JSON object, not {}", kind(other));
                Err(ApiError::new(StatusCode::BAD_REQUEST, message))
            }
        }
    }

    /// An object inside.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.take(name, "an object", |v| v.as_object())
            .map(|found| found.map(|map| Self { map, prefix: format!("{}{name}.", self.prefix) }))
    }

    /// All fields with a value, in the order they came.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.as_str(), value))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        self.flag_or(name, false)
    }

    /// `absent` is what is meant when it is left out.
    pub(super) fn flag_or(&self, name: &str, absent: bool) -> Result<bool, ApiError> {
        Ok(self.take(name, "true or false", Value::as_bool)?.unwrap_or(absent))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.take(name, "a string", Value::as_str)
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.take(name, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, ApiError> {
        // Seeds above 2^63 keep their bits.
        let bits = |v: &Value| v.as_i64().or_else(|| v.as_u64().map(|n| n as i64));
        self.take(name, "an integer", bits)
    }

    pub(super) fn count(&self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let expected = format!("an integer within {}..={}", range.start(), range.end());
        let read = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        self.take(name, &expected, read)
    }

    pub(super) fn number(&self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let expected = format!("a number within {}..={}", range.start(), range.end());
        let read = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| range.contains(x));
        self.take(name, &expected, read)
    }

    /// A field that must be left out or have the one value that changes nothing.
    pub(super) fn refuse_unless(&self, name: &str, neutral: &Value) -> Result<(), ApiError> {
        match self.get(name) {
            Some(given) if !same(given, neutral) => {
                Err(ApiError::field(self.path(name), format!("{name} is not supported: leave it out")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn take<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match read(value) {
            Some(found) => Ok(Some(found)),
            None => {
                let path = self.path(name);
                let message = format!("{path} must be {expected}, not {}", shown(value));
                Err(ApiError::field(path, message))
            }
        }
    }
}

/// Numbers by value: clients send 0 as well as 0.0.
fn same(given: &Value, neutral: &Value) -> bool {
    match (given.as_f64(), neutral.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => given == neutral,
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Small values as they are; a prompt does not belong into an error message.
fn shown(value: &Value) -> String {
    match value {
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        other => kind(other).to_owned(),
    }
}

/// What a client sent, on one line and not all of it when it is long.
pub(super) fn brief(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let mut shown: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push('\u{2026}');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_names_the_field_and_the_range() {
        let body = json!({"temperature": 3, "n": "x", "stream_options": {"include_usage": 1}, "top_k": null});
        let fields = Fields::of(&body).unwrap();
        let error = fields.number("temperature", 0.0..=2.0).unwrap_err().body();
        assert_eq!(error["error"]["message"], "temperature must be a number within 0..=2, not 3");
        assert_eq!(error["error"]["param"], "temperature");
        let error = fields.count("n", 1..=1).unwrap_err().body();
        assert_eq!(error["error"]["message"], "n must be an integer within 1..=1, not a string");
        let inner = fields.object("stream_options").unwrap().unwrap();
        assert_eq!(
            inner.flag("include_usage").unwrap_err().body()["error"]["param"],
            "stream_options.include_usage"
        );
        assert_eq!(fields.count("top_k", 1..=2).unwrap(), None);
    }

    #[test]
    fn neutral_values_pass_and_others_do_not() {
        let body = json!({"frequency_penalty": 0.0, "presence_penalty": 0.5, "echo": false});
        let fields = Fields::of(&body).unwrap();
        assert!(fields.refuse_unless("frequency_penalty", &json!(0)).is_ok());
        assert!(fields.refuse_unless("echo", &json!(false)).is_ok());
        assert!(fields.refuse_unless("presence_penalty", &json!(0)).is_err());
    }
}
