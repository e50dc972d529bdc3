//! Every Rust file is compiled: it is the root of a target or declared as a module by a file that is.

use std::collections::BTreeSet;

use super::source::{Views, is_word, words};
use super::tree::File;
use super::{Fault, Tree};

/// Rust files that no target reaches.
pub(crate) fn orphans(tree: &Tree) -> Vec<Fault> {
    let mut reached = BTreeSet::new();
    let mut waiting = roots(tree);
    while let Some((path, is_root)) = waiting.pop() {
        let Some((file, views)) = tree.get(&path).and_then(|f| Some((f, f.views.as_ref()?))) else {
            continue;
        };
        if reached.insert(path) {
            let next = declared(file, views, is_root);
            waiting.extend(next.into_iter().filter(|p| tree.get(p).is_some()).map(|p| (p, false)));
        }
    }
    let lost = tree.rust().filter(|(file, _)| !reached.contains(&file.path));
    lost.map(|(file, _)| Fault::new(&file.path, 0, "no `mod` leads here: declare it or delete it")).collect()
}

/// The files cargo compiles by itself: by their place, or named by a manifest.
fn roots(tree: &Tree) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for manifest in tree.files.iter().filter(|f| f.path.rsplit('/').next() == Some("Cargo.toml")) {
        let package = manifest.path.trim_end_matches("Cargo.toml");
        for line in manifest.text().lines().map(str::trim).filter(|l| l.starts_with("path")) {
            found.extend(line.split('"').nth(1).map(|p| format!("{package}{p}")));
        }
    }
    for (file, _) in tree.rust() {
        let parts: Vec<&str> = file.path.split('/').collect();
        let by_place = match parts[..] {
            [.., "src", "main.rs" | "lib.rs"] | [.., "build.rs"] => true,
            [.., "src", "bin", _] | [.., "tests" | "benches" | "examples", _, "main.rs"] => true,
            [ref package @ .., "tests" | "benches" | "examples", _] => !package.contains(&"src"),
            _ => false,
        };
        if by_place {
            found.push(file.path.clone());
        }
    }
    found.into_iter().map(|path| (path, true)).collect()
}

/// Where the modules that `file` declares may lie.
fn declared(file: &File, views: &Views, is_root: bool) -> Vec<String> {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let inside = match name.strip_suffix(".rs") {
        Some(stem) if !is_root && stem != "mod" => format!("{folder}/{stem}"),
        _ => folder.to_owned(),
    };
    let mut found = Vec::new();
    for at in words(&views.code, "mod") {
        let rest = views.code[at + 3..].trim_start();
        let length = rest.bytes().take_while(|&b| is_word(b)).count();
        if length > 0 && rest[length..].trim_start().starts_with(';') {
            let module = &rest[..length];
            found.extend([format!("{inside}/{module}.rs"), format!("{inside}/{module}/mod.rs")]);
        }
    }
    for (at, _) in views.code.match_indices("#[path") {
        // The literal is blank in the code, so it is read from the text.
        let path = file.text().get(at..).and_then(|t| t.split('"').nth(1));
        found.extend(path.map(|p| format!("{folder}/{p}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(files: &[(&str, &str)]) -> Vec<String> {
        orphans(&Tree::sample(files)).into_iter().map(|f| f.path).collect()
    }

    #[test]
    fn modules_are_reached_through_every_layout() {
        let tree = [
            ("a/src/lib.rs", "pub mod b;\nmod c;\n#[path = \"odd.rs\"]\nmod d;\n"),
            ("a/src/b.rs", "mod e;"),
            ("a/src/b/e.rs", ""),
            ("a/src/c/mod.rs", "#[cfg(test)]\nmod tests;"),
            ("a/src/c/tests.rs", ""),
            ("a/src/odd.rs", ""),
            ("a/build.rs", ""),
            ("a/tests/one/main.rs", "mod two;"),
            ("a/tests/one/two.rs", ""),
            ("a/Cargo.toml", "[[bin]]\npath = \"fuzz/target.rs\"\n"),
            ("a/fuzz/target.rs", ""),
        ];
        assert_eq!(lost(&tree), [""; 0]);
    }

    #[test]
    fn files_that_nothing_declares_are_lost() {
        let tree = [
            ("a/src/lib.rs", "// mod b;\nlet s = \"mod b;\";\nmod c { }\n"),
            ("a/src/b.rs", "mod e;"),
            ("a/src/b/e.rs", ""),
            ("a/src/c.rs", ""),
            ("a/tests/one/two.rs", ""),
        ];
        assert_eq!(lost(&tree), ["a/src/b.rs", "a/src/b/e.rs", "a/src/c.rs", "a/tests/one/two.rs"]);
    }
}
