//! The rules of the house, each a function from the tree of files to what breaks it.
//!
//! A rule reads text and paths only: it compiles nothing and needs nothing but git. What clippy or rustfmt can
//! check is theirs and is not repeated here.

mod changelog;
mod dependencies;
mod functions;
mod links;
mod modules;
mod rust;
mod sizes;
mod source;
mod table;
mod tree;
mod words;

use std::fmt;

pub(crate) use tree::Tree;

/// One broken rule, at one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Path from the root of the repository.
    path: String,
    /// Line, from 1; 0 speaks of the file as a whole.
    line: usize,
    rule: &'static str,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, rule, message } = self;
        match line {
            0 => write!(f, "{path}: {rule}: {message}"),
            _ => write!(f, "{path}:{line}: {rule}: {message}"),
        }
    }
}

/// What is wrong and where; the runner adds the rule's name.
struct Fault {
    path: String,
    line: usize,
    message: String,
}

impl Fault {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

type Rule = fn(&Tree) -> Vec<Fault>;

const RULES: [(&str, Rule); 15] = [
    ("file-length", sizes::file_length),
    ("function-length", sizes::function_length),
    ("file-bytes", sizes::file_bytes),
    ("module-doc", rust::module_doc),
    ("unfinished", rust::unfinished),
    ("unsafe", rust::unsafe_rooms),
    ("environment", rust::environment),
    ("allow-reason", rust::allow_reason),
    ("dependencies", dependencies::layers),
    ("orphan", modules::orphans),
    ("links", links::relative_links),
    ("changelog", changelog::unreleased),
    ("table", table::measured),
    ("words", words::denied),
    ("whitespace", words::whitespace),
];

/// Runs every rule; the findings are sorted by path and line.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<Finding> = RULES
        .iter()
        .flat_map(|&(rule, run)| {
            run(tree).into_iter().map(move |Fault { path, line, message }| Finding {
                path,
                line,
                rule,
                message,
            })
        })
        .collect();
    findings.sort();
    findings
}

/// The figures the house watches: median and longest file, longest function.
pub(crate) fn summary(tree: &Tree) -> String {
    sizes::summary(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_place_rule_and_fault_in_one_line() {
        let tree =
            Tree::sample(&[("CHANGELOG.md", "## Unreleased\n"), ("a/src/lib.rs", "//! A.\n\ntodo!();\n")]);
        let lines: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["a/src/lib.rs:3: unfinished: `todo!` is unfinished work"]);
    }

    #[test]
    fn a_clean_tree_has_no_findings() {
        let tree = Tree::sample(&[("CHANGELOG.md", "## Unreleased\n"), ("a/src/lib.rs", "//! A.\n")]);
        assert_eq!(check(&tree), []);
    }
}
