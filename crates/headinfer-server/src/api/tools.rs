//! `tools` and `tool_choice`: which functions the model may call, and whether it must.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, kind};
use super::format::{SCHEMA, unsupported};
use crate::tools::{CallFormat, Calls, Tool};

/// Most tools of a request.
const TOOLS_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 64;

/// The tools that a prompt shows.
pub(super) struct Tools {
    all: Vec<Tool>,
    /// Those of which one must be called; empty when none must.
    must: Vec<Tool>,
}

impl Tools {
    /// `None` when there are none, or `tool_choice` is `none`.
    ///
    /// # Errors
    /// 400.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Self>, ApiError> {
        let list = fields.list("tools")?.unwrap_or_default();
        let choice = fields.get("tool_choice");
        if choice.and_then(Value::as_str) == Some("none") {
            return Ok(None);
        }
        if list.len() > TOOLS_MAX {
            return Err(ApiError::field("tools", format!("at most {TOOLS_MAX} tools, not {}", list.len())));
        }
        let all = list.iter().enumerate().map(|(at, tool)| read(at, tool)).collect::<Result<Vec<_>, _>>()?;
        let must = match choice {
            None => Vec::new(),
            Some(Value::String(word)) if word == "auto" => Vec::new(),
            Some(Value::String(word)) if word == "required" => all.clone(),
            Some(named) => vec![find(&all, named)?.clone()],
        };
        match (all.is_empty(), choice.is_some_and(|choice| choice != "auto")) {
            (true, true) => {
                Err(ApiError::field("tool_choice", "tool_choice is for requests with tools only"))
            }
            (true, false) => Ok(None),
            (false, _) => Ok(Some(Self { all, must })),
        }
    }

    /// The field that an answer's grammar is made of first.
    pub(super) fn param(&self) -> &'static str {
        if self.must.is_empty() { SCHEMA } else { "tools" }
    }

    /// Reads the calls in an answer.
    pub(super) fn calls(&self, format: CallFormat) -> Calls {
        Calls::new(format, self.all.iter().map(|tool| tool.name.clone()).collect())
    }

    /// A Lark grammar from `start` for an answer that is a call; or, where none must be and the answer has a `format`,
    /// that or a call. `None`: any text will do.
    ///
    /// # Errors
    /// 400, which says what of a tool's schema is not supported.
    pub(super) fn grammar(
        &self,
        calls: CallFormat,
        format: Option<&str>,
    ) -> Result<Option<String>, ApiError> {
        let rules = |tools: &[Tool]| calls.rules(tools).map_err(|why| unsupported("tools", &why));
        match format {
            _ if !self.must.is_empty() => Ok(Some(format!("start: call\n{}", rules(&self.must)?))),
            Some(format) => {
                Ok(Some(format!("start: call | answer\nanswer: {format}\n{}", rules(&self.all)?)))
            }
            None => Ok(None),
        }
    }
}

/// `{"type": "function", "function": {"name", "parameters"}}`, the tool at `at`.
fn read(at: usize, tool: &Value) -> Result<Tool, ApiError> {
    let wrong = |what: &str| Err(ApiError::field("tools", format!("tools[{at}]{what}")));
    if tool["type"] != "function" {
        return wrong(".type must be 'function'");
    }
    let function = &tool["function"];
    let named = |name: &&str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    let Some(name) = function["name"].as_str().filter(named) else {
        return wrong(".function.name must be 1..=64 letters, digits, '_' and '-'");
    };
    let parameters = match &function["parameters"] {
        Value::Null => None,
        Value::Object(map) if map.is_empty() => None,
        schema @ Value::Object(_) => Some(schema.clone()),
        other => return wrong(&format!(".function.parameters must be an object, not {}", kind(other))),
    };
    Ok(Tool { name: name.to_owned(), parameters })
}

/// The tool of `{"type": "function", "function": {"name"}}`.
fn find<'t>(all: &'t [Tool], choice: &Value) -> Result<&'t Tool, ApiError> {
    let wrong = |message: String| ApiError::field("tool_choice", message);
    let Some(name) = choice["function"]["name"].as_str().filter(|_| choice["type"] == "function") else {
        return Err(wrong("tool_choice must be 'none', 'auto', 'required' or name a function".into()));
    };
    let unknown = || wrong(format!("tool_choice names '{}', which tools do not have", name.escape_debug()));
    all.iter().find(|tool| tool.name == name).ok_or_else(unknown)
}
