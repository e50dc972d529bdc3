//! Limits on lengths: of files and functions in lines, of files and goldens in bytes.

use super::functions::{Function, functions};
use super::source::Language;
use super::tree::File;
use super::{Fault, Tree};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_BYTES_MAX: u64 = 1 << 20;
const BINARY_BYTES_MAX: u64 = 5 << 20;

/// A source file is at most 600 lines.
pub(crate) fn file_length(tree: &Tree) -> Vec<Fault> {
    let long = sources(tree).filter(|(_, lines)| *lines > FILE_LINES_MAX);
    long.map(|(file, lines)| {
        Fault::new(&file.path, 0, format!("{lines} lines, at most {FILE_LINES_MAX}; split it by meaning"))
    })
    .collect()
}

/// A function fits a screen: at most 70 lines.
pub(crate) fn function_length(tree: &Tree) -> Vec<Fault> {
    let long = all_functions(tree).filter(|(_, f)| f.lines > FUNCTION_LINES_MAX);
    long.map(|(file, Function { name, line, lines })| {
        Fault::new(&file.path, line, format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}"))
    })
    .collect()
}

/// No file over 1 MiB, and no more than 5 MiB of binaries in all: a clone stays small.
pub(crate) fn file_bytes(tree: &Tree) -> Vec<Fault> {
    let large = tree.files.iter().filter(|f| f.bytes > FILE_BYTES_MAX);
    let mut faults: Vec<Fault> = large
        .map(|f| Fault::new(&f.path, 0, format!("{} bytes, at most {FILE_BYTES_MAX}", f.bytes)))
        .collect();
    let binaries: Vec<&File> = tree.files.iter().filter(|f| f.text.is_none()).collect();
    let total: u64 = binaries.iter().map(|f| f.bytes).sum();
    if let Some(largest) = binaries.iter().max_by_key(|f| f.bytes).filter(|_| total >= BINARY_BYTES_MAX) {
        let message = format!("binary files have {total} bytes in all, the limit is {BINARY_BYTES_MAX}");
        faults.push(Fault::new(&largest.path, 0, format!("{message}; this is the largest")));
    }
    faults
}

/// One line of figures: how many files, their median and longest, the longest function.
pub(crate) fn summary(tree: &Tree) -> String {
    let mut files: Vec<(usize, &str)> = sources(tree).map(|(f, lines)| (lines, f.path.as_str())).collect();
    files.sort_unstable();
    let functions: Vec<(&File, Function)> = all_functions(tree).collect();
    let Some((longest, path)) = files.last() else { return "no source files".to_owned() };
    let median = files[files.len() / 2].0;
    let mut text = format!("{} source files, median {median} lines, longest {longest} ({path})", files.len());
    if let Some((file, f)) = functions.iter().max_by_key(|(_, f)| f.lines) {
        let long = functions.iter().filter(|(_, f)| f.lines > FUNCTION_LINES_MAX).count();
        text += &format!(
            "\n{} functions, {long} over {FUNCTION_LINES_MAX} lines, longest {} ({}: {})",
            functions.len(),
            f.lines,
            file.path,
            f.name
        );
    }
    text
}

/// Source files and their lengths in lines.
fn sources(tree: &Tree) -> impl Iterator<Item = (&File, usize)> {
    let known = tree.files.iter().filter(|f| Language::of(&f.path).is_some());
    known.map(|f| (f, f.text().lines().count()))
}

fn all_functions(tree: &Tree) -> impl Iterator<Item = (&File, Function)> {
    tree.files.iter().flat_map(|file| {
        let split = file.views.as_ref().zip(Language::of(&file.path));
        let list = split.map(|(views, language)| functions(views, language)).unwrap_or_default();
        list.into_iter().map(move |f| (file, f))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of exactly `lines` lines, all of them one function.
    fn function_of(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn files_may_have_600_lines_and_no_more() {
        let good = Tree::sample(&[("a.rs", &"\n".repeat(600)), ("a.md", &"\n".repeat(601))]);
        assert!(file_length(&good).is_empty());
        for path in ["a.rs", "a.cu", "a.py"] {
            assert_eq!(file_length(&Tree::sample(&[(path, &"\n".repeat(601))])).len(), 1, "{path}");
        }
    }

    #[test]
    fn functions_may_have_70_lines_and_no_more() {
        assert!(function_length(&Tree::sample(&[("a.rs", &function_of(70))])).is_empty());
        let bad = function_length(&Tree::sample(&[("a.rs", &function_of(71))]));
        assert_eq!(bad[0].message, "`f` has 71 lines, at most 70");
    }

    #[test]
    fn large_files_and_many_binaries_are_found() {
        let mebibyte = |n: usize, byte: u8| vec![byte; n << 20];
        assert!(file_bytes(&Tree::sample_binary("a", mebibyte(1, 0))).is_empty());
        assert_eq!(file_bytes(&Tree::sample_binary("a", mebibyte(2, b'a'))).len(), 1);
        let mut five = Tree { files: Vec::new() };
        for i in 0..5 {
            five.files.extend(Tree::sample_binary(&format!("{i}.bin"), mebibyte(1, 0)).files);
        }
        assert_eq!(file_bytes(&five).len(), 1);
        five.files.pop();
        assert!(file_bytes(&five).is_empty());
    }

    #[test]
    fn the_summary_counts() {
        let tree = Tree::sample(&[("a.rs", &function_of(9)), ("b.py", "x = 1\n"), ("c.cu", "\n\n")]);
        let want = "3 source files, median 2 lines, longest 9 (a.rs)\n\
                    1 functions, 0 over 70 lines, longest 9 (a.rs: f)";
        assert_eq!(summary(&tree), want);
    }
}
