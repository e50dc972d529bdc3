//! Splits source text into code and comments, so that a rule about one is not misled by the other.
//!
//! A lexer of strings and comments only; it must not know any rule, nor anything of grammar.

/// A language whose strings and comments are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Rust,
    Cuda,
    Python,
}

impl Language {
    /// By the extension of the file's name.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "rs" => Some(Self::Rust),
            "cu" | "cuh" => Some(Self::Cuda),
            "py" => Some(Self::Python),
            _ => None,
        }
    }
}

/// The same text twice, each as long as the original with the same line ends, so offsets and lines carry over.
pub(crate) struct Views {
    /// Comments and the content of literals are blank.
    pub(crate) code: String,
    /// All but comments is blank.
    pub(crate) comments: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

impl Views {
    /// Splits `text`. An unclosed literal or comment runs to the end.
    pub(crate) fn of(text: &str, language: Language) -> Self {
        let bytes = text.as_bytes();
        let mut views = [Vec::with_capacity(bytes.len()), Vec::with_capacity(bytes.len())];
        let mut at = 0;
        while at < bytes.len() {
            let (kind, end) = piece(bytes, at, language).unwrap_or((Kind::Code, at + 1));
            let end = end.min(bytes.len());
            for (view, wanted) in views.iter_mut().zip([Kind::Code, Kind::Comment]) {
                view.extend(bytes[at..end].iter().map(|&b| match b {
                    b'\n' => b'\n',
                    _ if kind == wanted => b,
                    _ => b' ',
                }));
            }
            at = end;
        }
        let [code, comments] = views.map(|v| String::from_utf8_lossy(&v).into_owned());
        Self { code, comments }
    }
}

/// The comment or literal that starts at `at`, and where it ends.
fn piece(text: &[u8], at: usize, language: Language) -> Option<(Kind, usize)> {
    let rest = &text[at..];
    let after_word = at > 0 && is_word(text[at - 1]);
    if language == Language::Python {
        return match rest[0] {
            b'#' => Some((Kind::Comment, at + line(rest))),
            quote @ (b'"' | b'\'') if rest.starts_with(&[quote; 3]) => {
                Some((Kind::Literal, at + 3 + past(&rest[3..], &[quote; 3], true)))
            }
            quote @ (b'"' | b'\'') => Some((Kind::Literal, at + 1 + past(&rest[1..], &[quote], true))),
            _ => None,
        };
    }
    match rest[0] {
        b'/' if rest.starts_with(b"//") => Some((Kind::Comment, at + line(rest))),
        b'/' if rest.starts_with(b"/*") => {
            Some((Kind::Comment, at + block(rest, language == Language::Rust)))
        }
        b'"' => Some((Kind::Literal, at + 1 + past(&rest[1..], b"\"", true))),
        b'r' | b'b' | b'c' if language == Language::Rust && !after_word => {
            raw_string(rest).map(|length| (Kind::Literal, at + length))
        }
        // A quote within a C number separates digits.
        b'\'' if language == Language::Cuda && !after_word => {
            Some((Kind::Literal, at + 1 + past(&rest[1..], b"'", true)))
        }
        b'\'' if language == Language::Rust => character(rest).map(|length| (Kind::Literal, at + length)),
        _ => None,
    }
}

fn line(text: &[u8]) -> usize {
    text.iter().position(|&b| b == b'\n').unwrap_or(text.len())
}

/// Length of a block comment; Rust's nest.
fn block(text: &[u8], nests: bool) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < text.len() && depth > 0 {
        if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
        } else if nests && text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else {
            at += 1;
        }
    }
    at
}

/// Offset just past the first `end`; a backslash hides the byte after it where `escapes`.
fn past(text: &[u8], end: &[u8], escapes: bool) -> usize {
    let mut at = 0;
    while at < text.len() {
        if escapes && text[at] == b'\\' {
            at += 2;
        } else if text[at..].starts_with(end) {
            return at + end.len();
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Length of a raw string (`r"…"`, `br#"…"#`), if one starts here.
fn raw_string(text: &[u8]) -> Option<usize> {
    let prefix = if text[0] == b'r' { 1 } else { 2 };
    if text.get(prefix - 1) != Some(&b'r') {
        return None;
    }
    let hashes = text[prefix..].iter().take_while(|&&b| b == b'#').count();
    let body = prefix + hashes + 1;
    if text.get(body - 1) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'#'; hashes + 1];
    end[0] = b'"';
    Some(body + past(&text[body..], &end, false))
}

/// Length of a character literal, if this quote starts one and not a lifetime.
fn character(text: &[u8]) -> Option<usize> {
    if text.get(1) == Some(&b'\\') {
        return Some(1 + past(&text[1..], b"'", true));
    }
    let width = match text.get(1)? {
        0..0xc0 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    (text.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// Whether a byte may be part of an identifier.
pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Offsets at which `word` stands alone: not inside a longer identifier.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let before = at == 0 || !is_word(bytes[at - 1]);
        let after = bytes.get(at + word.len()).is_none_or(|&b| !is_word(b));
        before && (after || word.ends_with(|c: char| !c.is_alphanumeric()))
    })
}

/// The line of `offset`, from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str, language: Language) -> String {
        let views = Views::of(text, language);
        assert_eq!(views.code.len(), text.len());
        assert_eq!(views.comments.len(), text.len());
        views.code.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn strings_and_comments_of_rust_are_blank_in_code() {
        let cases = [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"a "b \" { c" d"#, "a d"),
            (r##"a r#"b " { "# d"##, "a d"),
            (r#"a br"\" d"#, "a d"),
            (r#"car"{" d"#, "car d"),
            ("a '{' '\\'' '\\u{7b}' 'é' d", "a d"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("a \"// b\" c", "a c"),
        ];
        for (text, want) in cases {
            assert_eq!(code(text, Language::Rust), want, "{text}");
        }
    }

    #[test]
    fn comments_of_cuda_do_not_nest_and_digits_may_be_quoted() {
        assert_eq!(code("a /* b /* c */ d", Language::Cuda), "a d");
        assert_eq!(code("1'000'000 + '{' + b", Language::Cuda), "1'000'000 + + b");
    }

    #[test]
    fn strings_and_comments_of_python_are_blank_in_code() {
        assert_eq!(code("a # it's\nb", Language::Python), "a b");
        assert_eq!(code("a \"\"\"it's # \" b\"\"\" c", Language::Python), "a c");
        assert_eq!(code("a '#' b", Language::Python), "a b");
    }

    #[test]
    fn comments_keep_their_place() {
        let views = Views::of("a // b\n\"// c\"\n", Language::Rust);
        assert_eq!(views.comments, "  // b\n      \n");
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(words("unsafe unsafe_code not_unsafe unsafe", "unsafe").collect::<Vec<_>>(), [0, 30]);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}
