//! Rules of Rust source that the compiler and clippy do not have.

use super::source::{Views, line_of, words};
use super::tree::File;
use super::{Fault, Tree};

/// The only rooms with unsafe code, by the start of the path.
const UNSAFE_ROOMS: [&str; 7] = [
    "crates/headinfer-core/src/memory/",
    "crates/headinfer-core/src/cpu/kernels/linear", // the interface of `gemm` is pointers
    "crates/headinfer-core/src/cpu/kernels/simd",
    "crates/headinfer-core/src/model/mapping",
    "crates/headinfer-core/src/store/ring", // io_uring takes pointers
    "crates/headinfer-cuda/",
    "crates/headinfer/src/heap.rs", // a setting of the C library's allocator
];

/// The only rooms that read environment variables, by the start of the path.
const ENVIRONMENT_ROOMS: [&str; 3] =
    ["crates/headinfer/src/args", "crates/headinfer/src/machine.rs", "xtask/"];

/// Every Rust file opens with what it is for.
pub(crate) fn module_doc(tree: &Tree) -> Vec<Fault> {
    let silent = tree.rust().filter(|(file, _)| {
        let first = file.text().lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
        first.strip_prefix("//!").is_none_or(|doc| doc.trim().is_empty())
    });
    silent
        .map(|(file, _)| Fault::new(&file.path, 1, "open the file with a `//!` doc: what it is for"))
        .collect()
}

/// Nothing is left half done.
pub(crate) fn unfinished(tree: &Tree) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut search = |file: &File, text: &str, word: &str| {
        for at in words(text, word) {
            let fault = format!("`{word}` is unfinished work");
            faults.push(Fault::new(&file.path, line_of(text, at), fault));
        }
    };
    for file in &tree.files {
        let comments = match (&file.views, file.extension()) {
            (Some(views), _) => &views.comments,
            (None, "toml" | "sh") => file.text(),
            (None, "") if file.text().starts_with("#!") => file.text(),
            _ => continue,
        };
        for word in ["TODO", "FIXME", "XXX"] {
            search(file, comments, word);
        }
        if let (Some(views), "rs") = (&file.views, file.extension()) {
            for word in ["todo!", "unimplemented!", "dbg!"] {
                search(file, &views.code, word);
            }
        }
    }
    faults
}

/// Unsafe code lives in the few rooms made for it.
pub(crate) fn unsafe_rooms(tree: &Tree) -> Vec<Fault> {
    outside(tree, &UNSAFE_ROOMS, "unsafe", |_, _| false, "unsafe code outside the rooms for it")
}

/// Environment variables are read by the argument layer, by tests and by build scripts.
pub(crate) fn environment(tree: &Tree) -> Vec<Fault> {
    let message = "environment variables are read in the argument layer only";
    ["env::var", "env::var_os", "env::vars", "env::vars_os"]
        .iter()
        .flat_map(|call| outside(tree, &ENVIRONMENT_ROOMS, call, is_test_or_build, message))
        .collect()
}

/// Uses of `word` in code outside `rooms`, but for places that `excused` lets pass.
fn outside(
    tree: &Tree,
    rooms: &[&str],
    word: &str,
    excused: fn(&File, usize) -> bool,
    message: &str,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (file, views) in tree.rust().filter(|(f, _)| !rooms.iter().any(|room| f.path.starts_with(room))) {
        for at in words(&views.code, word).filter(|&at| !excused(file, at)) {
            faults.push(Fault::new(&file.path, line_of(&views.code, at), message));
        }
    }
    faults
}

/// Whether `offset` lies in a build script, a test or a bench.
fn is_test_or_build(file: &File, offset: usize) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let folder = |name: &str| file.path.split('/').any(|part| part == name);
    let code = file.views.as_ref().map_or("", |v| v.code.as_str());
    name == "build.rs"
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
        || folder("tests")
        || folder("benches")
        || test_module(code).is_some_and(|start| offset > start)
}

/// Offset of the first inline `#[cfg(test)] mod`, which by custom runs to the end of the file.
fn test_module(code: &str) -> Option<usize> {
    const MARK: &str = "#[cfg(test)]";
    let mut starts = code.match_indices(MARK).map(|(at, _)| at);
    starts.find(|at| {
        let next = code[at + MARK.len()..].trim_start();
        next.starts_with("mod ") && next.find('{') < next.find(';').or(Some(usize::MAX))
    })
}

/// A lint is silenced with a reason: in the attribute, or in a comment on its lines or the line before.
pub(crate) fn allow_reason(tree: &Tree) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (file, views) in tree.rust() {
        for (start, end) in attributes(&views.code) {
            let attribute = &views.code[start..end];
            let silences = ["allow(", "expect("].iter().any(|call| words(attribute, call).next().is_some());
            let reasoned = words(attribute, "reason").next().is_some();
            if silences && !reasoned && !commented(views, start, end) {
                let message = "say why the lint is silenced, in a comment or a `reason`";
                faults.push(Fault::new(&file.path, line_of(&views.code, start), message));
            }
        }
    }
    faults
}

/// Start and end of every attribute.
fn attributes(code: &str) -> impl Iterator<Item = (usize, usize)> {
    code.match_indices('#').filter_map(|(start, _)| {
        let open = start + 1 + usize::from(code[start + 1..].starts_with('!'));
        if !code[open..].starts_with('[') {
            return None;
        }
        let mut depth = 0;
        let length = code[open..].bytes().position(|byte| {
            match byte {
                b'[' => depth += 1,
                b']' => depth -= 1,
                _ => {}
            }
            depth == 0
        })?;
        Some((start, open + length + 1))
    })
}

/// Whether a comment that is no documentation stands on the lines of `start..end` or the line before.
fn commented(views: &Views, start: usize, end: usize) -> bool {
    let (first, last) = (line_of(&views.code, start), line_of(&views.code, end));
    let near = views.comments.lines().skip(first.saturating_sub(2)).take(last + 2 - first.max(2));
    near.map(str::trim).any(|line| !line.is_empty() && !line.starts_with("///") && !line.starts_with("//!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&Tree) -> Vec<Fault>, path: &str, text: &str) -> Vec<usize> {
        rule(&Tree::sample(&[(path, text)])).iter().map(|f| f.line).collect()
    }

    #[test]
    fn a_file_opens_with_its_doc() {
        assert!(lines(module_doc, "a.rs", "\n//! Why.\n").is_empty());
        assert_eq!(lines(module_doc, "a.rs", "use std::fmt;\n//! Late.\n"), [1]);
        assert_eq!(lines(module_doc, "a.rs", "//!\n"), [1]);
        assert_eq!(lines(module_doc, "a.rs", ""), [1]);
    }

    #[test]
    fn unfinished_work_is_found_in_code_and_comments_only() {
        assert!(lines(unfinished, "a.rs", "let s = \"TODO todo!\"; // todos\nmy_todo!();\n").is_empty());
        assert_eq!(
            lines(unfinished, "a.rs", "todo!()\n// FIXME: x\ndbg!(1);\nunimplemented!()\n"),
            [2, 1, 4, 3]
        );
        assert_eq!(lines(unfinished, "a.cu", "/* XXX */\n"), [1]);
        assert_eq!(lines(unfinished, "a.py", "x = 'TODO'  # TODO\n"), [1]);
        assert_eq!(lines(unfinished, "a.toml", "# TODO\n"), [1]);
        assert_eq!(lines(unfinished, ".ci/run", "#!/bin/sh\n# TODO\n"), [2]);
    }

    #[test]
    fn unsafe_code_stays_in_its_rooms() {
        let text = "//! A.\nfn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(lines(unsafe_rooms, "crates/headinfer-core/src/cpu/mod.rs", text), [3]);
        assert_eq!(lines(unsafe_rooms, "crates/headinfer-core/src/cpu/kernels/gemm.rs", text), [3]);
        for room in UNSAFE_ROOMS {
            assert!(lines(unsafe_rooms, &format!("{room}.rs"), text).is_empty(), "{room}");
        }
        let word = "#![deny(unsafe_code)] // unsafe\nlet s = \"unsafe\";\n";
        assert!(lines(unsafe_rooms, "crates/headinfer-core/src/lib.rs", word).is_empty());
    }

    #[test]
    fn the_environment_is_read_by_the_argument_layer() {
        let text = "//! A.\nlet home = std::env::var(\"HOME\");\nlet all = env::vars_os();\n";
        assert_eq!(lines(environment, "crates/headinfer-core/src/lib.rs", text), [2, 3]);
        assert_eq!(lines(environment, "crates/headinfer/src/main.rs", text), [2, 3]);
        let rooms = ["crates/headinfer/src/args.rs", "crates/headinfer/src/args/model.rs"];
        for path in rooms.into_iter().chain(["crates/a/build.rs", "crates/a/tests/a/main.rs"]) {
            assert!(lines(environment, path, text).is_empty(), "{path}");
        }
        let built = "//! A.\nlet root = env!(\"CARGO_MANIFEST_DIR\");\nlet a = std::env::args();\n";
        assert!(lines(environment, "crates/a/src/lib.rs", built).is_empty());
    }

    #[test]
    fn tests_may_read_the_environment_and_code_before_them_may_not() {
        let text = "let a = env::var(\"A\");\n#[cfg(test)]\nmod tests {\n    env::var(\"B\");\n}\n";
        assert_eq!(lines(environment, "crates/a/src/lib.rs", text), [1]);
        let declared = "#[cfg(test)]\nmod tests;\nlet a = env::var(\"A\");\nfn f() {}\n";
        assert_eq!(lines(environment, "crates/a/src/lib.rs", declared), [3]);
    }

    #[test]
    fn a_silenced_lint_says_why() {
        let good = [
            "#[allow(dead_code)] // why\nfn f() {}\n",
            "// why\n#[allow(dead_code)]\nfn f() {}\n",
            "#![allow(\n    dead_code, // why\n)]\n",
            "#[expect(dead_code, reason = \"why\")]\n",
            "#[should_panic(expected = \"x\")]\n",
            "let s = \"#[allow(dead_code)]\";\n",
        ];
        for text in good {
            assert!(lines(allow_reason, "a.rs", text).is_empty(), "{text}");
        }
        let bad = [
            "#[allow(dead_code)]\nfn f() {} // late\n",
            "/// Doc.\n#[allow(dead_code)]\n",
            "#![allow(dead_code)]\n",
            "#[cfg_attr(test, allow(dead_code))]\n",
            "#[expect(dead_code)]\n",
            "// far\n\n#[allow(dead_code)]\n",
        ];
        for text in bad {
            assert_eq!(lines(allow_reason, "a.rs", text).len(), 1, "{text}");
        }
    }
}
