//! The table of measured figures says what the runs say.

use super::{Fault, Tree};
use crate::table;

/// README.md's table is what `cargo xtask table` makes.
pub(crate) fn measured(tree: &Tree) -> Vec<Fault> {
    if !table::is_wanted(tree) {
        return Vec::new();
    }
    match table::readme(tree) {
        Ok((is, should_be)) if is == should_be => Vec::new(),
        Ok(_) => {
            vec![Fault::new("README.md", 0, "its table is not what the runs say: run `cargo xtask table`")]
        }
        Err(why) => vec![Fault::new("README.md", 0, why)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_table_is_found() {
        let files = |table: &str| {
            let readme = format!(
                "<!-- table: made by `cargo xtask table` from bench/runs -->\n{table}<!-- end of table -->\n"
            );
            let tree = Tree::sample(&[
                ("README.md", &readme),
                ("bench/runs/table.txt", "step | p.json | {s} s\n"),
                ("bench/runs/1-x/README.md", "# 1, a card\n"),
                ("bench/runs/1-x/p.json", "{\"s\": 2}"),
            ]);
            measured(&tree).len()
        };
        let head = "\n| what | measured | on | run |\n|---|---|---|---|\n";
        let row = |s: u32| format!("{head}| step | {s} s | a card | [p.json](bench/runs/1-x/p.json) |\n\n");
        assert_eq!((files(&row(2)), files(&row(3)), files("")), (0, 1, 1));
        assert_eq!(measured(&Tree::sample(&[("README.md", "no table")])).len(), 0);
    }
}
