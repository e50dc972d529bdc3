//! The filter `tojson` as transformers has it: Python's `json.dumps` without escaping beyond ASCII or for HTML.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Deepest nesting that is written.
const DEPTH_MAX: usize = 128;
/// Widest indentation.
const INDENT_MAX: usize = 64;
/// Bytes written for one unit of work.
const BYTES_PER_FUEL: usize = 32;

/// `value|tojson(indent=…, separators=…, ensure_ascii=false)`.
///
/// # Errors
/// An argument that is none of these, or nesting deeper than [`DEPTH_MAX`]; no fuel left for the text.
pub(crate) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let style = Style::parse(indent, &options)?;
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
    let max = usize::try_from(left).unwrap_or(usize::MAX).saturating_mul(BYTES_PER_FUEL);
    let mut out = Bounded { text: Vec::new(), max };
    let written = value.serialize(&mut Serializer::with_formatter(&mut out, style));
    let text = out.text;
    // A text cut off at the bound costs all the fuel there is, and that is the error.
    let cost =
        if written.is_err() && text.len() == max { left } else { (text.len() / BYTES_PER_FUEL) as u64 };
    state.consume_fuel(cost)?;
    written.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
    String::from_utf8(text).map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: not text"))
}

struct Bounded {
    text: Vec<u8>,
    max: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = (self.max - self.text.len()).min(bytes.len());
        self.text.extend_from_slice(&bytes[..room]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Style {
    indent: Option<usize>,
    between_items: String,
    after_key: String,
    depth: usize,
    /// The innermost container has an item.
    filled: bool,
}

impl Style {
    fn parse(indent: Option<Value>, options: &Kwargs) -> Result<Self, Error> {
        let wrong = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"));
        let indent = match indent {
            None => options.get::<Option<Value>>("indent")?,
            given => given,
        };
        let indent = match indent {
            Some(v) if !v.is_none() => {
                let n = usize::try_from(v).map_err(|_| wrong("`indent` must be a whole number"))?;
                Some(n).filter(|n| *n <= INDENT_MAX).ok_or_else(|| wrong("`indent` is too wide")).map(Some)?
            }
            _ => None,
        };
        if options.get::<Option<bool>>("ensure_ascii")? == Some(true) {
            return Err(wrong("`ensure_ascii=true` is not supported"));
        }
        let item = if indent.is_some() { "," } else { ", " };
        let (between_items, after_key) = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(wrong("`separators` must be two strings")),
            None => (item.into(), ": ".into()),
        };
        options.assert_all_used()?;
        Ok(Style { indent, between_items, after_key, depth: 0, filled: false })
    }

    fn begin<W: ?Sized + Write>(&mut self, out: &mut W, open: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        if self.depth > DEPTH_MAX {
            return Err(io::Error::other(format!("nested deeper than {DEPTH_MAX}")));
        }
        out.write_all(open)
    }

    fn item<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.between_items.as_bytes())?;
        }
        self.line(out)
    }

    fn end<W: ?Sized + Write>(&mut self, out: &mut W, close: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(close)
    }

    fn line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(indent) => write!(out, "\n{:width$}", "", width = indent * self.depth),
        }
    }
}

impl Formatter for Style {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.after_key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    /// As Python's `repr`: the shortest digits, an exponent below 1e-4 and from 1e16.
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        let short = format!("{value:e}");
        match short.split_once('e').map(|(digits, e)| (digits, e.parse::<i32>())) {
            Some((digits, Ok(e))) if !(-4..16).contains(&e) => {
                let sign = if e < 0 { '-' } else { '+' };
                write!(out, "{digits}e{sign}{:02}", e.abs())
            }
            _ => write!(out, "{value:?}"),
        }
    }
}

#[cfg(test)]
#[path = "tojson_tests.rs"]
mod tests;
