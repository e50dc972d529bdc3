//! Typed reading of JSON objects whose every mistake is reported with file and field.
//!
//! Must not know what the fields mean.

use std::path::Path;

use serde_json::{Map, Value};

use crate::model::error::{ModelError, printable};

/// No JSON file of a model is longer than this; tokenizers are read elsewhere.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// Reads a whole small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, ModelError> {
    let meta = std::fs::metadata(path).map_err(|e| ModelError::read(path, e))?;
    if !meta.is_file() {
        return Err(ModelError::file(path, "is not a file"));
    }
    if meta.len() > JSON_BYTES_MAX {
        return Err(ModelError::file(path, format!("has {} bytes, more than {JSON_BYTES_MAX}", meta.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| ModelError::read(path, e))?;
    String::from_utf8(bytes).map_err(|_| ModelError::file(path, "is not UTF-8 text"))
}

/// A JSON object of a file, or one nested in it.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    path: &'a Path,
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

/// Parses `text` as a JSON object.
pub(crate) fn parse_object(text: &str, path: &Path) -> Result<Map<String, Value>, ModelError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ModelError::file(path, "is not a JSON object")),
        Err(e) => Err(ModelError::file(path, format!("is not JSON: {e}"))),
    }
}

impl<'a> Object<'a> {
    /// `prefix` is the dotted path of this object within the file, with its final dot, or empty.
    pub(crate) fn new(path: &'a Path, prefix: &'a str, map: &'a Map<String, Value>) -> Self {
        Object { path, prefix, map }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    /// The value of `key`, where it is present and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is present with the value null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::field(self.path, &format!("{}{key}", self.prefix), problem)
    }

    pub(crate) fn unsupported(
        &self,
        key: &str,
        what: &'static str,
        value: &str,
        supported: &'static str,
    ) -> ModelError {
        let field = format!("{}{key}", self.prefix);
        ModelError::Unsupported { path: self.path.into(), field, what, value: printable(value), supported }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        let read = |v: &'a Value| v.as_str().ok_or_else(|| self.wrong(key, v, "a string"));
        self.get(key).map(read).transpose()
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let read = |v: &'a Value| v.as_bool().ok_or_else(|| self.wrong(key, v, "true or false"));
        self.get(key).map(read).transpose()
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn count(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        let read = |v: &'a Value| {
            let n = v.as_u64().filter(|&n| (1..=max as u64).contains(&n));
            n.map(|n| n as usize)
                .ok_or_else(|| self.wrong(key, v, &format!("a whole number from 1 to {max}")))
        };
        self.get(key).map(read).transpose()
    }

    /// As [`Object::count`], where transformers has no sensible default.
    pub(crate) fn required_count(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        self.count(key, max)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let read = |v: &'a Value| {
            v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(key, v, "a finite number"))
        };
        self.get(key).map(read).transpose()
    }

    /// A finite number above zero.
    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(self.error(key, format!("is {x}, must be above 0"))),
            x => Ok(x),
        }
    }

    pub(crate) fn required_positive(&self, key: &str) -> Result<f64, ModelError> {
        self.positive(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    fn wrong(&self, key: &str, value: &Value, wanted: &str) -> ModelError {
        self.error(key, format!("is {}, must be {wanted}", printable(&value.to_string())))
    }
}
