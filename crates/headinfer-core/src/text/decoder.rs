//! The decoder of a tokenizer as a chain of steps that take one token at a time.
//!
//! Each step gives what the one of the `tokenizers` crate gives for the whole list, and gives it as soon as
//! no later token can change it.

use std::path::Path;

use tokenizers::Decoder as _;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::Replace;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use crate::model::ModelError;

const SUPPORTED: &str = "ByteLevel, Metaspace, Replace, ByteFallback, Strip and Fuse, alone or in a Sequence";

/// The steps as the file gives them.
pub(crate) struct Decoder {
    steps: Vec<Step>,
}

/// The steps of one text being decoded.
pub(crate) struct Chain {
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    /// A token is its bytes, spelled in the byte-level alphabet. `tail` begins a character.
    ByteLevel { tail: Vec<u8> },
    /// The replacement is a space, and nothing in the first token.
    Metaspace { replacement: char, drop_first: bool, first: bool },
    /// Within each token.
    Replace(Box<Replace>),
    /// `<0x41>` is a byte. A run of them is one text when all of it is valid, so it is held to its end.
    ByteFallback { run: Vec<u8> },
    /// `content` goes at the start and the end of each token, up to so many times.
    Strip { content: char, start: usize, stop: usize },
    /// As `Strip`, of the whole text: after a step that makes one token of all. `held` are the last characters so
    /// far, all `content`.
    StripWhole { content: char, start: usize, stop: usize, held: usize },
    /// No decoder: spaces between tokens.
    Join { first: bool },
}

impl Decoder {
    /// # Errors
    /// [`ModelError`] naming a step that is not supported.
    pub(crate) fn new(decoder: Option<&DecoderWrapper>, path: &Path) -> Result<Self, ModelError> {
        let Some(decoder) = decoder else {
            return Ok(Decoder { steps: vec![Step::Join { first: true }] });
        };
        let (mut steps, mut fused) = (Vec::new(), false);
        let mut rest = vec![decoder];
        while let Some(one) = rest.pop() {
            let step = match one {
                DecoderWrapper::Sequence(list) => {
                    rest.extend(list.get_decoders().iter().rev());
                    continue;
                }
                DecoderWrapper::Fuse(_) => {
                    fused = true;
                    continue;
                }
                DecoderWrapper::Strip(s) if fused => {
                    Step::StripWhole { content: s.content, start: s.start, stop: s.stop, held: 0 }
                }
                DecoderWrapper::Strip(s) => Step::Strip { content: s.content, start: s.start, stop: s.stop },
                other if fused => return Err(unsupported(path, other, true)),
                DecoderWrapper::ByteLevel(_) => {
                    fused = true;
                    Step::ByteLevel { tail: Vec::new() }
                }
                DecoderWrapper::Metaspace(m) => Step::Metaspace {
                    replacement: m.get_replacement(),
                    drop_first: m.get_prepend_scheme() != PrependScheme::Never,
                    first: true,
                },
                DecoderWrapper::Replace(r) => Step::Replace(Box::new(r.clone())),
                DecoderWrapper::ByteFallback(_) => Step::ByteFallback { run: Vec::new() },
                other => return Err(unsupported(path, other, false)),
            };
            steps.push(step);
        }
        Ok(Decoder { steps })
    }

    pub(crate) fn start(&self) -> Chain {
        Chain { steps: self.steps.clone() }
    }

    /// What `token` adds to a text that it neither begins nor ends: whole characters or parts of one.
    pub(crate) fn bytes(&self, mut token: String) -> Vec<u8> {
        for step in &self.steps {
            match step {
                Step::ByteLevel { .. } => {
                    let spelled = token.chars().map(byte_of).collect::<Option<Vec<u8>>>();
                    return spelled.unwrap_or_else(|| token.into_bytes());
                }
                Step::ByteFallback { .. } => {
                    if let Some(byte) = fallback_byte(&token) {
                        return vec![byte];
                    }
                }
                Step::Metaspace { replacement, .. } => token = token.replace(*replacement, " "),
                Step::Replace(replace) => {
                    token = replace.decode_chain(vec![token.clone()]).map_or(token, |parts| parts.concat());
                }
                Step::Strip { content, start, stop } => token = strip(&token, *content, *start, *stop),
                Step::StripWhole { .. } => {}
                Step::Join { .. } => token.insert(0, ' '),
            }
        }
        token.into_bytes()
    }
}

fn unsupported(path: &Path, decoder: &DecoderWrapper, fused: bool) -> ModelError {
    let debug = format!("{decoder:?}");
    let name = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let value = if fused { format!("{name} after a step that fuses") } else { name.to_owned() };
    ModelError::Unsupported {
        path: path.into(),
        field: "decoder".into(),
        what: "step",
        value,
        supported: SUPPORTED,
    }
}

impl Chain {
    /// Text that the next token settles.
    pub(crate) fn push(&mut self, token: String) -> String {
        self.run(0, vec![token])
    }

    /// The rest of the text.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        for i in 0..self.steps.len() {
            if let Some(rest) = self.steps[i].finish() {
                text.push_str(&self.run(i + 1, vec![rest]));
            }
        }
        text
    }

    /// `tokens` through the steps from `from` on.
    fn run(&mut self, from: usize, mut tokens: Vec<String>) -> String {
        for step in &mut self.steps[from..] {
            tokens = tokens.into_iter().flat_map(|token| step.push(token)).collect();
        }
        tokens.concat()
    }
}

impl Step {
    fn push(&mut self, token: String) -> Vec<String> {
        match self {
            Step::ByteLevel { tail } => {
                match token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
                    Some(bytes) => tail.extend(bytes),
                    None => tail.extend(token.as_bytes()),
                }
                vec![settled(tail)]
            }
            Step::Metaspace { replacement, drop_first, first } => {
                let drop = std::mem::take(first) && *drop_first;
                let space = if drop { "" } else { " " };
                vec![token.replace(*replacement, space)]
            }
            // Only a pattern that failed to run has no answer; the token is then shown as it is.
            Step::Replace(replace) => {
                replace.decode_chain(vec![token.clone()]).unwrap_or_else(|_| vec![token])
            }
            Step::ByteFallback { run } => match fallback_byte(&token) {
                Some(byte) => {
                    run.push(byte);
                    Vec::new()
                }
                None => run_text(run).into_iter().chain([token]).collect(),
            },
            Step::Strip { content, start, stop } => vec![strip(&token, *content, *start, *stop)],
            Step::StripWhole { content, start, stop, held } => {
                vec![token.chars().flat_map(|c| strip_next(c, *content, start, *stop, held)).collect()]
            }
            Step::Join { first } => vec![if std::mem::take(first) { token } else { format!(" {token}") }],
        }
    }

    fn finish(&mut self) -> Option<String> {
        match self {
            Step::ByteLevel { tail } => Some(String::from_utf8_lossy(&std::mem::take(tail)).into_owned()),
            Step::ByteFallback { run } => run_text(run),
            _ => None,
        }
    }
}

/// Takes from `bytes` all that further bytes cannot change; invalid sequences become U+FFFD.
fn settled(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let (mut at, mut open) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        at += chunk.valid().len() + chunk.invalid().len();
        match std::str::from_utf8(chunk.invalid()) {
            Ok(_) => {}
            // At the end of the bytes, what is no character may be the beginning of one.
            Err(e) if at == bytes.len() && e.error_len().is_none() => open = chunk.invalid().len(),
            Err(_) => text.push(char::REPLACEMENT_CHARACTER),
        }
    }
    bytes.drain(..at - open);
    text
}

/// The byte that a character of the byte-level alphabet (GPT-2) spells: printable Latin-1 is itself, the others
/// are U+0100 and up, in order.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code if printable(code) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// A run of bytes: their text, or U+FFFD for each where they are not text.
fn run_text(run: &mut Vec<u8>) -> Option<String> {
    if run.is_empty() {
        return None;
    }
    let bytes = std::mem::take(run);
    let count = bytes.len();
    Some(String::from_utf8(bytes).unwrap_or_else(|_| "\u{fffd}".repeat(count)))
}

fn strip(token: &str, content: char, start: usize, stop: usize) -> String {
    let mut rest = token;
    for _ in 0..start.min(token.len()) {
        rest = rest.strip_prefix(content).unwrap_or(rest);
    }
    for _ in 0..stop.min(token.len()) {
        rest = rest.strip_suffix(content).unwrap_or(rest);
    }
    rest.into()
}

/// What the next character `c` releases.
fn strip_next(
    c: char,
    content: char,
    start: &mut usize,
    stop: usize,
    held: &mut usize,
) -> impl Iterator<Item = char> + use<> {
    let (mut released, mut last) = (0, None);
    if c != content {
        *start = 0;
        (released, last) = (std::mem::take(held), Some(c));
    } else if *start > 0 {
        *start -= 1;
    } else if *held < stop {
        *held += 1;
    } else {
        released = 1;
    }
    std::iter::repeat_n(content, released).chain(last)
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
