//! How a model writes a call.

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

impl CallFormat {
    /// The format that a chat template shows.
    pub(crate) fn of(template: &str) -> Self {
        match () {
            () if template.contains(OPEN) => Self::Tagged,
            () if template.contains("\"parameters\": ") => Self::Parameters,
            () => Self::Arguments,
        }
    }

    /// Lark rules of which `call` derives one call of one of `tools`.
    ///
    /// # Errors
    /// What of a tool's schema is not supported.
    pub(crate) fn rules(self, tools: &[Tool]) -> Result<String, String> {
        let (before, key, after) = match self {
            Self::Tagged => ("<tool_call>\n", "arguments", "}\n</tool_call>"),
            Self::Parameters => ("", "parameters", "}"),
            Self::Arguments => ("", "arguments", "}"),
        };
        let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let mut rules = format!("call: {}\n", names.join(" | "));
        for (i, tool) in tools.iter().enumerate() {
            let schema = json_rule(&tool.schema()).map_err(|why| format!("of '{}': {why}", tool.name))?;
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
            (r#"{{- '<tool_call>\n{"name": "' }}"#, CallFormat::Tagged),
            (r#"{{- '{"name": "' + call.name + '", "parameters": ' }}"#, CallFormat::Parameters),
            ("{{ messages }}", CallFormat::Arguments),
        ] {
            assert_eq!(CallFormat::of(template), format);
        }
    }
}
