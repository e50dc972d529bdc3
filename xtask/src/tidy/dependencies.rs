//! Which crate must not depend on what. A crate of this workspace exists only to refuse a dependency, so the
//! refusals are checked where they are declared.

use super::tree::File;
use super::{Fault, Tree};

/// Manifest, and the packages it refuses; `*` refuses all.
const REFUSED: [(&str, &[&str]); 4] = [
    (
        "crates/headinfer-core/Cargo.toml",
        &["axum", "clap", "cudarc", "headinfer", "headinfer-cuda", "headinfer-server", "hyper", "tokio"],
    ),
    (
        "crates/headinfer-cuda/Cargo.toml",
        &["axum", "clap", "headinfer", "headinfer-server", "hyper", "tokio"],
    ),
    ("crates/headinfer-server/Cargo.toml", &["clap", "cudarc", "headinfer", "headinfer-cuda"]),
    ("xtask/Cargo.toml", &["*"]),
];

/// No manifest declares a dependency its crate refuses, for any target and for tests too.
pub(crate) fn layers(tree: &Tree) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (path, refused) in REFUSED {
        let Some(manifest) = tree.get(path) else { continue };
        for (line, package) in declared(manifest) {
            if refused.contains(&package.as_str()) || refused.contains(&"*") {
                faults.push(Fault::new(path, line, format!("this crate must not depend on `{package}`")));
            }
        }
    }
    faults
}

/// The packages a manifest names, each with its line: keys of its dependency tables and renamed packages.
fn declared(manifest: &File) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(manifest.text().lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(table) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let (head, last) = table.rsplit_once('.').unwrap_or(("", table));
            inside = last.ends_with("dependencies");
            if head.ends_with("dependencies") {
                found.push((number, unquoted(last)));
                inside = true;
            }
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            let name = key.split('.').next().unwrap_or_default();
            found.push((number, unquoted(name)));
            if let Some((_, renamed)) = value.split_once("package") {
                found.push((number, renamed.split('"').nth(1).unwrap_or_default().to_owned()));
            } else if name.trim() == "package" {
                found.push((number, unquoted(value)));
            }
        }
    }
    found
}

fn unquoted(text: &str) -> String {
    text.trim().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core_with(text: &str) -> usize {
        layers(&Tree::sample(&[(REFUSED[0].0, text)])).len()
    }

    #[test]
    fn core_may_use_what_it_does_not_refuse() {
        assert_eq!(core_with("[dependencies]\nrayon.workspace = true\n# tokio = \"1\"\n"), 0);
        assert_eq!(core_with("[package]\nname = \"clap\"\n[features]\ntokio = []\n"), 0);
    }

    #[test]
    fn every_way_to_declare_a_refused_package_is_seen() {
        let ways = [
            "[dependencies]\ntokio.workspace = true\n",
            "[dependencies]\ntokio = { version = \"1\" }\n",
            "[dev-dependencies]\ntokio = \"1\"\n",
            "[dependencies.tokio]\nversion = \"1\"\n",
            "[target.'cfg(unix)'.dependencies]\ncudarc = \"0.19\"\n",
            "[dependencies]\nquick = { package = \"cudarc\", version = \"0.19\" }\n",
            "[dependencies.quick]\npackage = \"cudarc\"\n",
        ];
        for text in ways {
            assert_eq!(core_with(text), 1, "{text}");
        }
    }

    #[test]
    fn server_and_cuda_refuse_each_other_and_xtask_refuses_all() {
        let cases = [
            (REFUSED[1].0, "[dependencies]\nheadinfer-server.workspace = true\n"),
            (REFUSED[2].0, "[dependencies]\nheadinfer-cuda.workspace = true\n"),
            (REFUSED[3].0, "[dependencies]\nrayon = \"1\"\n"),
        ];
        for (path, text) in cases {
            assert_eq!(layers(&Tree::sample(&[(path, text)])).len(), 1, "{path}");
        }
        let seam = "[dependencies]\nheadinfer-core.workspace = true\n";
        assert!(layers(&Tree::sample(&[(REFUSED[1].0, seam), (REFUSED[2].0, seam)])).is_empty());
    }
}
