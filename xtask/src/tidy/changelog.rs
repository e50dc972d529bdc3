//! The changelog always has a place for the next change.

use super::{Fault, Tree};

const PATH: &str = "CHANGELOG.md";

/// CHANGELOG.md has a standing Unreleased section.
pub(crate) fn unreleased(tree: &Tree) -> Vec<Fault> {
    match tree.get(PATH) {
        None => vec![Fault::new(PATH, 0, "the file is missing")],
        Some(file) if file.text().lines().any(|l| l.trim_end() == "## Unreleased") => Vec::new(),
        Some(_) => vec![Fault::new(PATH, 0, "no `## Unreleased` section")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unreleased_section_stands() {
        assert!(unreleased(&Tree::sample(&[(PATH, "# Changelog\n\n## Unreleased\n")])).is_empty());
        assert_eq!(unreleased(&Tree::sample(&[(PATH, "# Changelog\n\n## 0.1.0\n\nUnreleased\n")])).len(), 1);
        assert_eq!(unreleased(&Tree::sample(&[("docs/CHANGELOG.md", "## Unreleased\n")])).len(), 1);
    }
}
