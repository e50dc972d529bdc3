//! Calls within the text of an answer, as it comes.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::format::{CLOSE, CallFormat, OPEN};
use super::spelled::Spelled;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Text(String),
    /// A call of the tool of this name begins.
    Call(String),
    /// More of its arguments: JSON as the model wrote it.
    Arguments(String),
}

/// A whole call of a tool.
struct Call {
    name: String,
    arguments: String,
}

/// Takes an answer apart. Text that may belong to a call is held back until that is known; what turns out to be none
/// is text, so nothing is lost. Where a grammar spells the calls, they are told while they are made.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    format: CallFormat,
    /// Only these can be called.
    names: Arc<[String]>,
    /// A grammar lets nothing begin like a call that is none.
    spelled: bool,
    held: String,
    state: State,
    /// A call was found.
    called: bool,
    /// White space after a call is none of the answer.
    trim: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space came yet.
    Start,
    Text,
    /// After the tag; so many bytes of what is held were searched for its end.
    Tagged {
        searched: usize,
    },
    /// The answer begins like a call, and is read at its end.
    Whole,
    /// Within a call that a grammar spells.
    Spelled(Spelled),
}

impl Calls {
    /// `spelled`: a grammar of [`CallFormat`] lets nothing begin like a call that is none.
    pub(crate) fn new(format: CallFormat, names: Vec<String>, spelled: bool) -> Self {
        Self {
            format,
            names: names.into(),
            spelled,
            held: String::new(),
            state: State::Start,
            called: false,
            trim: false,
        }
    }

    /// Whether a call was found.
    pub(crate) fn called(&self) -> bool {
        self.called
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Said> {
        self.held += piece;
        let mut said = Vec::new();
        if self.format != CallFormat::Tagged
            && self.state == State::Start
            && let Some(first) = self.held.trim_start().chars().next()
        {
            self.state = match first {
                '{' if self.spelled => State::Spelled(Spelled::Head),
                '{' | '[' => State::Whole,
                _ => State::Text,
            };
        }
        while self.step(&mut said) {}
        said
    }

    /// The rest, when no more text comes.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let calls = match self.state {
            // Some models end without the tag.
            State::Tagged { .. } => self.call(&self.held).map(|call| vec![call]),
            State::Whole => self.several(&self.held),
            // Its arguments are told as far as they came.
            State::Spelled(Spelled::Arguments { .. } | Spelled::Tail) => Some(Vec::new()),
            State::Start | State::Text | State::Spelled(Spelled::Head) => None,
        };
        if let Some(calls) = calls {
            self.held.clear();
            calls.into_iter().for_each(|call| self.tell(call, &mut said));
            return said;
        }
        if self.format == CallFormat::Tagged && matches!(self.state, State::Tagged { .. } | State::Spelled(_))
        {
            self.held.insert_str(0, OPEN);
        }
        self.text(self.held.len(), &mut said);
        said
    }

    /// One step through what is held; whether there may be another.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match (self.state, self.format) {
            (State::Spelled(spelled), _) => self.spelled(spelled, said),
            (_, CallFormat::Tagged) => self.tagged(said),
            (State::Text, _) => {
                self.text(self.held.len(), said);
                false
            }
            (State::Start | State::Whole | State::Tagged { .. }, _) => false,
        }
    }

    fn spelled(&mut self, spelled: Spelled, said: &mut Vec<Said>) -> bool {
        let next = match (spelled, self.format) {
            (Spelled::Tail, CallFormat::Tagged) => {
                let Some(at) = self.held.find(CLOSE) else { return false };
                self.held.drain(..at + CLOSE.len());
                self.trim = true;
                State::Text
            }
            // The next one, if there is one.
            (Spelled::Tail, _) => {
                let Some(at) = self.held.find('{') else { return false };
                self.held.drain(..at);
                State::Spelled(Spelled::Head)
            }
            (spelled, format) => {
                let Some(next) = spelled.step(format.key(), &mut self.held, said) else { return false };
                self.called = true;
                State::Spelled(next)
            }
        };
        let goes_on = !self.held.is_empty();
        self.state = next;
        goes_on
    }

    fn tagged(&mut self, said: &mut Vec<Said>) -> bool {
        let State::Tagged { searched } = self.state else {
            let open = self.held.find(OPEN);
            self.text(open.unwrap_or_else(|| self.held.len() - open_tail(&self.held)), said);
            if open.is_some() {
                self.held.drain(..OPEN.len());
                self.state = match self.spelled {
                    true => State::Spelled(Spelled::Head),
                    false => State::Tagged { searched: 0 },
                };
            }
            return open.is_some();
        };
        let Some(at) = self.held[searched..].find(CLOSE).map(|at| searched + at) else {
            // The tag may have begun already.
            let from = self.held.len().saturating_sub(CLOSE.len() - 1).max(searched);
            self.state = State::Tagged { searched: self.held.floor_char_boundary(from) };
            return false;
        };
        let after = at + CLOSE.len();
        match self.call(&self.held[..at]) {
            Some(call) => {
                self.trim = true;
                self.tell(call, said);
            }
            None if unfinished(&self.held[..at]) => {
                // The tag is within a string of the call.
                self.state = State::Tagged { searched: after };
                return true;
            }
            None => said.push(Said::Text(format!("{OPEN}{}", &self.held[..after]))),
        }
        self.held.drain(..after);
        self.state = State::Text;
        true
    }

    /// Says what is held up to `end`.
    fn text(&mut self, end: usize, said: &mut Vec<Said>) {
        let text: String = self.held.drain(..end).collect();
        let text = if self.trim { text.trim_start() } else { &text };
        if !text.is_empty() {
            self.trim = false;
            said.push(Said::Text(text.to_owned()));
        }
    }

    fn tell(&mut self, call: Call, said: &mut Vec<Said>) {
        self.called = true;
        said.extend([Said::Call(call.name), Said::Arguments(call.arguments)]);
    }

    fn call(&self, text: &str) -> Option<Call> {
        self.known(serde_json::from_str(text).ok()?)
    }

    /// Calls in a row, in a list, or parted by semicolons; `None` when anything else is there.
    fn several(&self, text: &str) -> Option<Vec<Call>> {
        if text.trim_start().starts_with('[') {
            let list: Vec<Spoken<'_>> = serde_json::from_str(text).ok()?;
            return list
                .into_iter()
                .map(|spoken| self.known(spoken))
                .collect::<Option<_>>()
                .filter(|calls: &Vec<_>| !calls.is_empty());
        }
        let (mut rest, mut calls) = (text.trim(), Vec::new());
        while !rest.is_empty() {
            let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Spoken<'_>>();
            calls.push(self.known(stream.next()?.ok()?)?);
            rest = rest[stream.byte_offset()..].trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        }
        Some(calls)
    }

    fn known(&self, spoken: Spoken<'_>) -> Option<Call> {
        let arguments = match spoken.arguments.map(RawValue::get) {
            None => "{}".to_owned(),
            // Some models write the JSON as a string.
            Some(text) if text.starts_with('"') => serde_json::from_str(text).ok()?,
            Some(text) => text.to_owned(),
        };
        let known = self.names.contains(&spoken.name) && arguments.trim_start().starts_with('{');
        known.then_some(Call { name: spoken.name, arguments })
    }
}

#[derive(Deserialize)]
struct Spoken<'a> {
    name: String,
    #[serde(borrow, default, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// Whether `text` is the beginning of a JSON value.
fn unfinished(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_err_and(|e| e.is_eof())
}

/// Bytes at the end of `text` that may begin a tag.
fn open_tail(text: &str) -> usize {
    (1..OPEN.len()).rev().find(|len| text.ends_with(&OPEN[..*len])).unwrap_or(0)
}

#[cfg(test)]
#[path = "calls_tests.rs"]
mod tests;
