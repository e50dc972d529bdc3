//! Links between documents lead somewhere.

use super::{Fault, Tree};

/// Every relative link of a markdown file points to a file or folder of the repository.
pub(crate) fn relative_links(tree: &Tree) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in tree.files.iter().filter(|f| f.extension() == "md") {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, target) in links(file.text()) {
            let path = target.split(['#', '?']).next().unwrap_or_default();
            let outside = path.is_empty() || path.contains(':');
            if !outside && !resolve(folder, path).is_some_and(|p| tree.holds(&p)) {
                faults.push(Fault::new(&file.path, line, format!("nothing at `{target}`")));
            }
        }
    }
    faults
}

/// Targets of inline links, images and reference definitions outside code, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect();
        let definition = prose.strip_prefix('[').and_then(|l| l.split_once("]: ")).map(|(_, target)| target);
        let inline = prose.match_indices("](").map(|(at, mark)| {
            let target = &prose[at + mark.len()..];
            target.split(')').next().unwrap_or_default()
        });
        for target in inline.chain(definition) {
            // What follows a space is the link's title.
            let target = target.split_whitespace().next().unwrap_or_default();
            found.push((number, target.trim_matches(['<', '>']).to_owned()));
        }
    }
    found
}

/// `path` as seen from `folder`, with dots resolved; `None` where it leaves the repository.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    if path.starts_with('/') {
        return None;
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> Vec<usize> {
        let tree = Tree::sample(&[("docs/a.md", text), ("docs/b.md", ""), ("LICENSE", "")]);
        relative_links(&tree).iter().map(|f| f.line).collect()
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        let good = [
            "[b](b.md) and [c](./b.md#part) and ![l](../LICENSE \"title\")",
            "[docs](../docs/) [top](..) [here](#part)",
            "[web](https://example.org/none) [mail](mailto:a@example.org)",
            "[b]: b.md",
            "`[code](none.md)`",
            "```\n[code](none.md)\n```",
        ];
        for text in good {
            assert_eq!(broken(text), [0; 0], "{text}");
        }
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        assert_eq!(broken("[b](b.md)\n[x](none.md), [y](LICENSE)\n"), [2, 2]);
        assert_eq!(broken("![x](none.svg)\n"), [1]);
        assert_eq!(broken("[x]: none.md\n"), [1]);
        assert_eq!(broken("[x](../../outside.md)\n"), [1]);
        assert_eq!(broken("```\ncode\n```\n[x](/b.md)\n"), [4]);
    }
}
