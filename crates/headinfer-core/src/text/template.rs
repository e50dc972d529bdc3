//! Chat templates: Jinja as transformers sets it up, within bounds of work, memory and stack.
//!
//! The engine charges for what a template does, makes and prints; what is printed or written as JSON is weighed
//! before. It compares, hashes and joins (`==`, `~`) containers without weighing them, so a template made to
//! compare lists that share their parts many times over can still take long.
//!
//! Must not know what a message is.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use crate::model::ModelError;
use crate::model::error::printable;
use crate::model::json::read_text;
use crate::text::chat::{ChatError, Date};
use crate::text::config::TextConfig;
use crate::text::tojson::tojson;

/// Longest template that is kept with a model.
pub(crate) const TEMPLATE_BYTES_MAX: usize = 1 << 20;
/// Longest template that is compiled, which takes a time quadratic in its longest expression: seconds at this
/// length. Those of the families that are read have 20 KB at most.
const COMPILED_BYTES_MAX: usize = 32 << 10;

/// Work allowed to any template, in instructions, or 64 bytes each.
const FUEL_BASE: u64 = 500_000;
/// Work allowed for each message.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// A unit of work for so many bytes of messages: 16 copies of each.
const BYTES_PER_FUEL: u64 = 4;

/// Values may be nested, and are then compared and freed by recursion. A level costs a template some units of
/// work, and takes less stack than this for each (see the tests). Only what is used is ever touched.
const STACK_BYTES_PER_FUEL: u64 = 256;
/// For the parser and the compiler, whose depth the template's length bounds.
const STACK_BYTES_BASE: u64 = 256 << 20;
/// Deepest nesting of a value that is printed.
const PRINTED_DEPTH_MAX: usize = 128;

/// The templates of one model, and the special tokens they print.
pub(crate) struct Templates {
    list: Vec<(String, String)>,
    tokens: Vec<(&'static str, String)>,
    path: PathBuf,
}

/// What one rendering is given.
pub(crate) struct Scene {
    pub(crate) variables: Vec<(String, Value)>,
    pub(crate) today: Option<Date>,
    /// Size of the messages, from which the work allowed follows.
    pub(crate) bytes: usize,
    pub(crate) messages: usize,
}

/// A template and where it is from.
pub(crate) struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl<'a> Source<'a> {
    pub(crate) fn text(&self) -> &'a str {
        self.text
    }
}

/// Reads a file that is a template.
pub(crate) fn read_template(path: &Path) -> Result<String, ModelError> {
    let text = read_text(path)?;
    if text.len() > TEMPLATE_BYTES_MAX {
        let problem = format!("has {} bytes, more than {TEMPLATE_BYTES_MAX}", text.len());
        return Err(ModelError::file(path, problem));
    }
    Ok(text)
}

impl Templates {
    pub(crate) fn new(config: TextConfig) -> Self {
        Templates { list: config.templates, tokens: config.tokens, path: config.path }
    }

    /// One template for all, from a file of its own.
    pub(crate) fn replace(&mut self, text: String, path: &Path) {
        self.list = vec![("default".into(), text)];
        self.path = path.into();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.tokens.iter().map(|(name, token)| (*name, token.as_str()))
    }

    /// The template named `tool_use` for tools where there is one, else `default`.
    pub(crate) fn select(&self, tools: bool) -> Result<Source<'_>, ChatError> {
        let find = |name: &str| self.list.iter().find(|(n, _)| n == name);
        let found = if tools { find("tool_use").or_else(|| find("default")) } else { find("default") };
        if let Some((_, text)) = found {
            return Ok(Source { text, path: &self.path });
        }
        let problem = if self.list.is_empty() {
            "the model has no chat template; give it a plain prompt".into()
        } else {
            let names: Vec<_> = self.list.iter().map(|(name, _)| printable(name)).collect();
            format!("`chat_template` has no template named 'default', only: {}", names.join(", "))
        };
        Err(ChatError::NoTemplate { path: self.path.display().to_string(), problem })
    }
}

/// Renders on a thread of its own, whose stack is known.
pub(crate) fn render(source: Source<'_>, scene: Scene) -> Result<String, ChatError> {
    let path = source.path.display().to_string();
    let failed = |problem: String| ChatError::Template { path: path.clone(), problem };
    if source.text.len() > COMPILED_BYTES_MAX {
        return Err(failed(format!("it has {} bytes, more than {COMPILED_BYTES_MAX}", source.text.len())));
    }
    let bytes = scene.bytes;
    let fuel = FUEL_BASE + FUEL_PER_MESSAGE * scene.messages as u64 + scene.bytes as u64 / BYTES_PER_FUEL;
    let stack = usize::try_from(STACK_BYTES_BASE + STACK_BYTES_PER_FUEL * fuel).unwrap_or(usize::MAX);
    let work = move || render_here(source.text, scene, fuel).map_err(Failure::of);
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(stack);
        let thread =
            thread.spawn_scoped(scope, work).map_err(|e| failed(format!("no thread for it: {e}")))?;
        thread.join().map_err(|_| failed("it broke the template engine".into()))
    })?;
    done.map_err(|failure| match failure {
        Failure::Refused(message) => ChatError::Refused(message),
        Failure::OutOfFuel => ChatError::TooCostly { path, bytes },
        Failure::Other(problem) => ChatError::Template { path, problem },
    })
}

fn render_here(text: &str, scene: Scene, fuel: u64) -> Result<String, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(fuel));
    env.set_formatter(|out, state, value| {
        weigh_within_fuel(state, value)?;
        match python_word(value) {
            Some(word) => Ok(out.write_str(word)?),
            None => minijinja::escape_formatter(out, state, value),
        }
    });
    env.add_filter("string", |state: &State, value: Value| {
        weigh_within_fuel(state, &value)?;
        let word = python_word(&value).map(Value::from);
        let spelled = || if value.as_str().is_some() { value.clone() } else { value.to_string().into() };
        Ok::<_, Error>(word.unwrap_or_else(spelled))
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_filter("tojson", tojson);
    // For debugging only, and quadratic in the depth of its value.
    env.remove_filter("pprint");
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
        Err(error.with_source(Raised(message)))
    });
    // Left undefined where no date is given, for the templates that ask whether it is.
    if let Some(today) = scene.today {
        env.add_function("strftime_now", move |pattern: String| {
            let unknown = |d| Error::new(ErrorKind::InvalidOperation, format!("strftime_now has no '{d}'"));
            today.format(&pattern).map_err(unknown)
        });
    }
    let text = without_generation_marks(text);
    let template = env.template_from_named_str("chat template", &text)?;
    template.render(Value::from_pairs(scene.variables))
}

/// Templates made for training mark what the assistant says with the statement `generation` of transformers, a block
/// with a scope of its own. `with` is the same without the mark.
fn without_generation_marks(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((start, length)) = statement(rest) {
        let inside = &rest[start..start + length];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c));
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&inside.replacen(word, "with", 1)),
            "endgeneration" => out.push_str(&inside.replacen(word, "endwith", 1)),
            _ => out.push_str(inside),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

/// Where the next `{% … %}` has its inside, and how long that is.
fn statement(text: &str) -> Option<(usize, usize)> {
    let start = text.find("{%")? + 2;
    Some((start, text[start..].find("%}")?))
}

/// What Python prints for the values that the engine spells otherwise.
fn python_word(value: &Value) -> Option<&'static str> {
    match value.kind() {
        ValueKind::None => Some("None"),
        ValueKind::Bool => Some(if value.is_true() { "True" } else { "False" }),
        _ => None,
    }
}

fn weigh_within_fuel(state: &State, value: &Value) -> Result<(), Error> {
    weigh(value, &mut state.fuel_levels().map_or(u64::MAX, |(_, left)| left), 0)
}

/// Takes from `left` what printing `value` costs, before it is printed: a value whose parts share theirs is a
/// small thing that prints without end.
fn weigh(value: &Value, left: &mut u64, depth: usize) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if depth == PRINTED_DEPTH_MAX {
        let problem = format!("printed value nested deeper than {PRINTED_DEPTH_MAX}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    for key in value.try_iter()? {
        *left = left.checked_sub(1).ok_or(ErrorKind::OutOfFuel)?;
        let part = if value.kind() == ValueKind::Map { value.get_item(&key)? } else { key };
        weigh(&part, left, depth + 1)?;
    }
    Ok(())
}

/// The message of `raise_exception`, on its way out of the engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

enum Failure {
    Refused(String),
    OutOfFuel,
    Other(String),
}

impl Failure {
    fn of(error: Error) -> Self {
        let mut problem = error.to_string();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(e) = cause {
            if let Some(Raised(message)) = e.downcast_ref() {
                return Failure::Refused(printable(message));
            }
            match e.downcast_ref::<Error>().map(Error::kind) {
                Some(ErrorKind::OutOfFuel) => return Failure::OutOfFuel,
                Some(ErrorKind::UnknownFunction) if problem.contains("strftime_now") => {
                    problem = "it prints the date of today, and none was given".into();
                }
                _ => {}
            }
            cause = e.source();
        }
        Failure::Other(printable(&problem))
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
