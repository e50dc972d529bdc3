//! Calls of tools: how a model writes them, how they are read from its answer, and the grammar that makes it write one.
//!
//! Must not know HTTP or the engine.

mod calls;
mod format;
mod spelled;

pub(crate) use calls::{Calls, Said};
pub(crate) use format::{CallFormat, Wanted};

use serde_json::{Value, json};

/// A function that a request lets the model call.
#[derive(Clone, Debug)]
pub(crate) struct Tool {
    /// ASCII letters, digits, `_` and `-`.
    pub(crate) name: String,
    /// JSON schema of the arguments; without one there are none.
    pub(crate) parameters: Option<Value>,
    /// The arguments obey the schema, however the model came to call.
    pub(crate) strict: bool,
}

impl Tool {
    pub(crate) fn schema(&self) -> Value {
        let none = || json!({"type": "object", "properties": {}, "additionalProperties": false});
        self.parameters.clone().unwrap_or_else(none)
    }
}
