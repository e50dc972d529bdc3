//! How a model writes a call.

use serde_json::json;

use crate::grammar::json_rule;

use super::Tool;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// The text around a call, which models were trained on and their chat templates show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`, between which there may be text: Hermes, Qwen.
    Tagged,
    /// The answer is `{"name": …, "parameters": …}` and nothing else: Llama 3.
    Parameters,
    /// As `Parameters`, with `arguments`: any other model.
    Arguments,
}

/// What an answer may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'a> {
    /// Calls and nothing else.
    Calls,
    /// Calls, or what this body of a Lark rule derives.
    CallsOr(&'a str),
    /// Any text, and calls.
    Free,
}

impl CallFormat {
    /// The format that a chat template shows; `None`: it shows no tools at all.
    pub(crate) fn of(template: &str) -> Option<Self> {
        match () {
            () if !template.contains("tools") => None,
            () if template.contains(OPEN) => Some(Self::Tagged),
            () if template.contains("\"parameters\": ") => Some(Self::Parameters),
            () => Some(Self::Arguments),
        }
    }

    /// What the arguments are called.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Tagged | Self::Arguments => "arguments",
        }
    }

    /// A Lark grammar from `start` for answers as `wanted`, with calls of `tools`: several when they may be in
    /// `parallel`, else at most one. In free text the arguments of a tool that is not strict are any object; where
    /// the grammar is needed anyway, they obey their schema too.
    ///
    /// # Errors
    /// What of a tool's schema is not supported.
    pub(crate) fn grammar(
        self,
        wanted: Wanted<'_>,
        tools: &[Tool],
        parallel: bool,
    ) -> Result<String, String> {
        let (open, between) = match self {
            Self::Tagged => (quoted(OPEN), quoted("\n")),
            Self::Parameters | Self::Arguments => (String::new(), quoted("; ")),
        };
        let more = if parallel { format!("({between} {open} call)*") } else { String::new() };
        let calls = format!("calls: {open} call {more}\n");
        let start = match (wanted, self) {
            (Wanted::Calls, _) => format!("start: calls\n{calls}"),
            (Wanted::CallsOr(answer), _) => format!("start: calls | answer\nanswer: {answer}\n{calls}"),
            // The tag ends a text as soon as it is there, and a text that goes on to the end has none.
            (Wanted::Free, Self::Tagged) => {
                let start = if parallel { "(tagged call)* TEXT" } else { "TEXT | tagged call" };
                let tag = format!("(.|\\n)*{OPEN}");
                format!("start: {start}\ntagged[lazy]: /{tag}/\nTEXT: /(.|\\n)*/ & ~/{tag}(.|\\n)*/\n")
            }
            // What begins like a call is one.
            (Wanted::Free, _) => {
                format!("start: calls | TEXT\n{calls}TEXT: /[ \\t\\r\\n]*([^ \\t\\r\\n{{\\[](.|\\n)*)?/\n")
            }
        };
        let loose = matches!(wanted, Wanted::Free);
        Ok(start + &self.rules(tools, loose)?)
    }

    /// Rules of which `call` derives one call after its opening tag. `loose`: schemas of strict tools only.
    fn rules(self, tools: &[Tool], loose: bool) -> Result<String, String> {
        let (before, after) = match self {
            Self::Tagged => ("\n", "}\n</tool_call>"),
            Self::Parameters | Self::Arguments => ("", "}"),
        };
        let key = self.key();
        let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let mut rules = format!("call: {}\n", names.join(" | "));
        for (i, tool) in tools.iter().enumerate() {
            let schema = if loose && !tool.strict { json!({"type": "object"}) } else { tool.schema() };
            let schema = json_rule(&schema).map_err(|why| format!("of '{}': {why}", tool.name))?;
            let head = quoted(&format!("{before}{{\"name\": \"{}\", \"{key}\": ", tool.name));
            rules += &format!("call_{i}: {head} arguments_{i} {}\narguments_{i}: {schema}\n", quoted(after));
        }
        Ok(rules)
    }
}

/// A literal of Lark, which are those of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_show_how_their_models_call() {
        for (template, format) in [
            (r#"{{ tools }}{{- '<tool_call>\n{"name": "' }}"#, Some(CallFormat::Tagged)),
            (
                r#"{{ tools }}{{- '{"name": "' + call.name + '", "parameters": ' }}"#,
                Some(CallFormat::Parameters),
            ),
            ("{{ tools }}{{ messages }}", Some(CallFormat::Arguments)),
            ("{{ messages }}{{ message.tool_calls }}", None),
        ] {
            assert_eq!(CallFormat::of(template), format);
        }
    }
}
