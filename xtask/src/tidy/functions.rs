//! Finds functions and how many lines each takes, by counting braces (Rust, CUDA) or indentation (Python).
//!
//! No grammar: it relies on rustfmt-like layout of what the compilers already accepted.

use super::source::{Language, Views, is_word, line_of, words};

/// One function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Line of its name, from 1.
    pub(crate) line: usize,
    /// Lines from its name to its end, both counted.
    pub(crate) lines: usize,
}

/// Every function of a file, nested ones too.
pub(crate) fn functions(views: &Views, language: Language) -> Vec<Function> {
    match language {
        Language::Rust => rust(&views.code),
        Language::Cuda => cuda(&views.code),
        Language::Python => python(&views.code),
    }
}

fn rust(code: &str) -> Vec<Function> {
    words(code, "fn")
        .filter_map(|at| {
            let name = word_at(code, at + 2)?;
            let open = body(code.as_bytes(), at)?;
            Some(span(code, name, at, closing(code.as_bytes(), open)))
        })
        .collect()
}

/// Offset of the brace that opens the body; `None` for a declaration without one.
fn body(code: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, &byte) in code.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Offset of the brace that closes the one at `open`, or of the end of the text.
fn closing(code: &[u8], open: usize) -> usize {
    let mut depth = 0;
    for (at, &byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// A brace after a parameter list opens a function, wherever no function is open already.
fn cuda(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at] == b'{').then(|| parameter_list(code, at)).flatten() {
            Some((name, start)) => {
                let end = closing(bytes, at);
                found.push(span(code, name, start, end));
                at = end;
            }
            None => at += 1,
        }
    }
    found
}

/// Name before the parameter list that ends just before `brace`, and the name's offset.
fn parameter_list(code: &str, brace: usize) -> Option<(&str, usize)> {
    let mut head = code[..brace].trim_end();
    while let Some(shorter) = ["const", "noexcept"].iter().find_map(|word| head.strip_suffix(word)) {
        head = shorter.trim_end();
    }
    head.strip_suffix(')')?;
    let mut depth = 0;
    let open = head.bytes().rposition(|byte| {
        match byte {
            b')' => depth += 1,
            b'(' => depth -= 1,
            _ => {}
        }
        depth == 0
    })?;
    let before = head[..open].trim_end();
    let start = before.bytes().rposition(|b| !is_word(b)).map_or(0, |i| i + 1);
    (start < before.len()).then(|| (&before[start..], start))
}

fn python(code: &str) -> Vec<Function> {
    let lines: Vec<&str> = code.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let head = line.trim_start();
        let Some(rest) = head.strip_prefix("async ").unwrap_or(head).strip_prefix("def ") else { continue };
        let inside = |l: &&str| {
            // The closing bracket of a parameter list laid out over lines stands at the margin of `def`.
            l.trim().is_empty() || indent(l) > indent(line) || l.trim_start().starts_with([')', ']'])
        };
        let body: Vec<&&str> = lines[first + 1..].iter().take_while(|l| inside(l)).collect();
        let lines = 1 + body.iter().rposition(|l| !l.trim().is_empty()).map_or(0, |last| last + 1);
        let name = word_at(rest, 0).unwrap_or_default().to_owned();
        found.push(Function { name, line: first + 1, lines });
    }
    found
}

/// The identifier after the spaces at `at`.
fn word_at(code: &str, at: usize) -> Option<&str> {
    let rest = code[at..].trim_start();
    let length = rest.bytes().take_while(|&b| is_word(b)).count();
    (length > 0).then(|| &rest[..length])
}

fn span(code: &str, name: &str, start: usize, end: usize) -> Function {
    let line = line_of(code, start);
    Function { name: name.to_owned(), line, lines: line_of(code, end.min(code.len())) - line + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, language: Language) -> Vec<(String, usize, usize)> {
        let views = Views::of(text, language);
        functions(&views, language).into_iter().map(|f| (f.name, f.line, f.lines)).collect()
    }

    #[test]
    fn rust_functions_end_at_their_own_brace() {
        let text = "\
fn a<T>(x: [u8; 4]) -> u8
where
    T: Fn() -> u8,
{
    let s = \"}\"; // }
    let f: fn(u8) = |_| { '}'; };
}

trait T {
    fn declared(&self);
    fn given(&self) {
        fn nested() {}
    }
}
";
        let want = [("a", 1, 7), ("given", 11, 3), ("nested", 12, 1)];
        assert_eq!(found(text, Language::Rust), want.map(|(n, l, c)| (n.to_owned(), l, c)));
    }

    #[test]
    fn cuda_functions_are_found_inside_namespaces_and_not_inside_functions() {
        let text = "\
struct Args { int n; };
extern \"C\" __global__ void __launch_bounds__(128) merge(const Args a,
                                                         float* out) {
  if (a.n) {
    while (1) { break; }
  }
}
namespace x {
template <int N> __device__ int twice() { return 2 * N; }
}
";
        let want = [("merge", 2, 6), ("twice", 9, 1)];
        assert_eq!(found(text, Language::Cuda), want.map(|(n, l, c)| (n.to_owned(), l, c)));
    }

    #[test]
    fn python_functions_end_where_the_indentation_does() {
        let text = "\
def a(
    x,
):
    '''
not the end
    '''
    def b():
        return x

    return b


y = 1
";
        let want = [("a", 1, 10), ("b", 7, 2)];
        assert_eq!(found(text, Language::Python), want.map(|(n, l, c)| (n.to_owned(), l, c)));
    }
}
