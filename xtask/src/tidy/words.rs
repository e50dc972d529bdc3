//! What no text of the repository contains: one developer's folders, sales talk, stray white space.

use super::source::line_of;
use super::{Fault, Tree};

/// Top folders whose mention means a path that exists on one machine only; `concat!` keeps this file clean.
const MACHINE_FOLDERS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/")];

/// Words that promise where a number should stand, in lower case.
const SALES_TALK: [&str; 6] = [
    concat!("blazing", "ly"),
    concat!("cutting", "-edge"),
    concat!("game", "-chang"),
    concat!("revolution", "ary"),
    concat!("seam", "less"),
    concat!("world", "-class"),
];

/// Extensions of what people write here; in snapshots, templates and test data white space may be meant.
const WRITTEN_BY_HAND: [&str; 8] = ["", "cu", "cuh", "md", "py", "rs", "sh", "toml"];

/// No paths of one machine and no sales talk.
pub(crate) fn denied(tree: &Tree) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in tree.files.iter().filter(|f| f.extension() != "lock") {
        let text = file.text();
        for folder in MACHINE_FOLDERS {
            for (at, _) in text.match_indices(folder).filter(|&(at, _)| starts_a_path(text, at)) {
                let message = format!("`{folder}…` exists on one machine only; use a relative path");
                faults.push(Fault::new(&file.path, line_of(text, at), message));
            }
        }
        let lower = text.to_ascii_lowercase();
        for word in SALES_TALK {
            for (at, _) in lower.match_indices(word) {
                let message = format!("`{word}` promises; give the number instead");
                faults.push(Fault::new(&file.path, line_of(text, at), message));
            }
        }
    }
    faults
}

/// Whether an absolute path starts at `at`: what stands before it is no part of a longer path or address.
fn starts_a_path(text: &str, at: usize) -> bool {
    let before = text[..at].chars().next_back();
    before.is_none_or(|c| !c.is_alphanumeric() && !"._-~/}>*".contains(c))
}

/// No tabs, no spaces at the end of a line, one line end at the end of a file.
pub(crate) fn whitespace(tree: &Tree) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in tree.files.iter().filter(|f| WRITTEN_BY_HAND.contains(&f.extension())) {
        let Some(text) = &file.text else { continue };
        for (number, line) in (1..).zip(text.split('\n')) {
            if line.contains('\t') {
                faults.push(Fault::new(&file.path, number, "a tab; use spaces"));
            } else if line.trim_end() != line {
                faults.push(Fault::new(&file.path, number, "white space at the end of the line"));
            }
        }
        if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
            let last = text.lines().count();
            faults.push(Fault::new(&file.path, last, "the file must end with one line end"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&Tree) -> Vec<Fault>, path: &str, text: &str) -> Vec<usize> {
        rule(&Tree::sample(&[(path, text)])).iter().map(|f| f.line).collect()
    }

    #[test]
    fn paths_of_one_machine_are_found_in_any_text() {
        for folder in MACHINE_FOLDERS {
            for path in ["a.rs", "a.md", ".ci/run"] {
                assert_eq!(lines(denied, path, &format!("x\nlet p = \"{folder}me/x\";\n")), [2], "{folder}");
            }
            let relative =
                format!("..{folder}x ~{folder}x a{folder}x https://example.org{folder}x $A/{folder}");
            assert_eq!(lines(denied, "a.md", &relative), [0; 0], "{relative}");
        }
    }

    #[test]
    fn sales_talk_is_found_in_any_case() {
        for word in SALES_TALK {
            assert_eq!(lines(denied, "README.md", &format!("\n{}\n", word.to_uppercase())), [2], "{word}");
        }
        assert_eq!(lines(denied, "README.md", "54.9 GB/s from host to device\n"), [0; 0]);
    }

    #[test]
    fn stray_white_space_is_found() {
        assert_eq!(lines(whitespace, "a.rs", "a\nb\n"), [0; 0]);
        assert_eq!(lines(whitespace, "a.rs", ""), [0; 0]);
        assert_eq!(lines(whitespace, "a.rs", "a \n\tb\nc\r\n"), [1, 2, 3]);
        assert_eq!(lines(whitespace, "a.rs", "a\nb"), [2]);
        assert_eq!(lines(whitespace, "a.rs", "a\n\n"), [2]);
        assert_eq!(lines(whitespace, ".ci/run", "a\t\n"), [1]);
        assert_eq!(lines(whitespace, "a.snap", "a \n"), [0; 0]);
    }
}
