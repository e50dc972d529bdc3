//! `tools` and `tool_choice`: which functions the model may call, and whether it must.

use serde_json::Value;

use super::fields::{Fields, brief, kind};
use super::format::{SCHEMA, unsupported};
use super::{ApiError, App};
use crate::tools::{CallFormat, Calls, Tool, Wanted};

/// Most tools of a request.
const TOOLS_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 64;

/// The tools that a prompt shows.
pub(super) struct Tools {
    /// How the model writes calls.
    format: CallFormat,
    all: Vec<Tool>,
    /// Those of which one must be called; empty when none must.
    must: Vec<Tool>,
    /// Several calls may be in one answer.
    parallel: bool,
}

impl Tools {
    /// `None` when there are none, or `tool_choice` is `none`.
    ///
    /// # Errors
    /// 400.
    pub(super) fn read(app: &App, fields: &Fields<'_>) -> Result<Option<Self>, ApiError> {
        let list = fields.list("tools")?.unwrap_or_default();
        let parallel = fields.flag_or("parallel_tool_calls", true)?;
        let choice = fields.get("tool_choice");
        if choice.and_then(Value::as_str) == Some("none") {
            return Ok(None);
        }
        if list.len() > TOOLS_MAX {
            return Err(ApiError::field("tools", format!("at most {TOOLS_MAX} tools, not {}", list.len())));
        }
        let all = list.iter().enumerate().map(|(at, tool)| read(at, tool)).collect::<Result<Vec<_>, _>>()?;
        if let Some(twice) = twice(&all) {
            return Err(ApiError::field("tools", format!("two tools have the name '{twice}'")));
        }
        let (must, parallel) = match choice {
            None => (Vec::new(), parallel),
            Some(Value::String(word)) if word == "auto" => (Vec::new(), parallel),
            Some(Value::String(word)) if word == "required" => (all.clone(), parallel),
            Some(named) => (vec![find(&all, named)?.clone()], false),
        };
        if all.is_empty() {
            return match choice {
                None => Ok(None),
                Some(auto) if auto == "auto" => Ok(None),
                Some(_) => Err(ApiError::field("tool_choice", "tool_choice is for requests with tools only")),
            };
        }
        let blind = "the model's chat template does not show tools: leave them out";
        let format = app.calls.ok_or_else(|| ApiError::field("tools", blind))?;
        Ok(Some(Self { format, all, must, parallel }))
    }

    /// The field that an answer's grammar is made of first.
    pub(super) fn param(&self, format: Option<&str>) -> &'static str {
        if self.must.is_empty() && format.is_some() { SCHEMA } else { "tools" }
    }

    /// Reads the calls in an answer with that `format`.
    pub(super) fn calls(&self, format: Option<&str>) -> Calls {
        let names = self.all.iter().map(|tool| tool.name.clone()).collect();
        // An answer in a format may begin like a call.
        let spelled = matches!(self.wanted(format), Some(Wanted::Calls | Wanted::Free));
        Calls::new(self.format, names, spelled)
    }

    /// What a grammar must see to, if anything.
    fn wanted<'f>(&self, format: Option<&'f str>) -> Option<Wanted<'f>> {
        match format {
            _ if !self.must.is_empty() => Some(Wanted::Calls),
            Some(format) => Some(Wanted::CallsOr(format)),
            None => (!self.parallel || self.all.iter().any(|tool| tool.strict)).then_some(Wanted::Free),
        }
    }

    /// A Lark grammar from `start` for an answer that is a call; or, where none must be, for what may be one: the
    /// `format` of the answer, or any text where a tool is strict or calls are counted. `None`: any text will do.
    ///
    /// # Errors
    /// 400, which says what of a tool's schema is not supported.
    pub(super) fn grammar(&self, format: Option<&str>) -> Result<Option<String>, ApiError> {
        let Some(wanted) = self.wanted(format) else { return Ok(None) };
        let tools = if self.must.is_empty() { &self.all } else { &self.must };
        let grammar = self.format.grammar(wanted, tools, self.parallel);
        grammar.map(Some).map_err(|why| unsupported("tools", &why))
    }
}

/// A name that two tools have.
fn twice(all: &[Tool]) -> Option<&str> {
    let mut names: Vec<&str> = all.iter().map(|tool| tool.name.as_str()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// `{"type": "function", "function": {"name", "parameters", "strict"}}`, the tool at `at`.
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
    let strict = match &function["strict"] {
        Value::Null => false,
        Value::Bool(strict) => *strict,
        other => return wrong(&format!(".function.strict must be true or false, not {}", kind(other))),
    };
    Ok(Tool { name: name.to_owned(), parameters, strict })
}

/// The tool of `{"type": "function", "function": {"name"}}`.
fn find<'t>(all: &'t [Tool], choice: &Value) -> Result<&'t Tool, ApiError> {
    let wrong = |message: String| ApiError::field("tool_choice", message);
    let Some(name) = choice["function"]["name"].as_str().filter(|_| choice["type"] == "function") else {
        return Err(wrong("tool_choice must be 'none', 'auto', 'required' or name a function".into()));
    };
    let unknown = || wrong(format!("tool_choice names '{}', which tools do not have", brief(name)));
    all.iter().find(|tool| tool.name == name).ok_or_else(unknown)
}
