//! The table of measured figures in README.md, made from the runs under `bench/runs`.
//!
//! `bench/runs/table.txt` lists its rows. The newest folder that holds a row's file gives its figures, so a new run
//! with the same file names takes the place of the old one.

use crate::json::Json;
use crate::tidy::Tree;

const README: &str = "README.md";
const ROWS: &str = "bench/runs/table.txt";
const RUNS: &str = "bench/runs/";
/// Between these lines README's table lies.
const BEGIN: &str = "<!-- table: made by `cargo xtask table` from bench/runs -->";
const END: &str = "<!-- end of table -->";

/// README.md as it is, and as the runs say it should be.
///
/// # Errors
/// One line with the file, when a row, a run or the place in README.md is missing or wrong.
pub(crate) fn readme(tree: &Tree) -> Result<(String, String), String> {
    let text =
        |path: &str| tree.get(path).map(|file| file.text()).ok_or_else(|| format!("{path}: no such file"));
    let readme = text(README)?;
    let place = readme.split_once(&format!("{BEGIN}\n"));
    let place = place.and_then(|(before, rest)| Some((before, rest.split_once(&format!("{END}\n"))?.1)));
    let (before, after) =
        place.ok_or_else(|| format!("{README}: no line `{BEGIN}` with `{END}` after it"))?;
    let mut table = "| what | measured | on | run |\n|---|---|---|---|\n".to_owned();
    for (number, line) in (1..).zip(text(ROWS)?.lines()) {
        if !line.trim().is_empty() && !line.starts_with('#') {
            table += &row(tree, line).map_err(|why| format!("{ROWS}:{number}: {why}"))?;
        }
    }
    Ok((readme.to_owned(), format!("{before}{BEGIN}\n\n{table}\n{END}\n{after}")))
}

/// Whether the repository has such a table at all.
pub(crate) fn is_wanted(tree: &Tree) -> bool {
    tree.get(ROWS).is_some()
}

/// One line of the list of rows as a line of the table.
fn row(tree: &Tree, line: &str) -> Result<String, String> {
    let parts: Vec<&str> = line.split(" | ").map(str::trim).collect();
    let [what, file, figures] = parts[..] else {
        return Err("a row is `what | file of a run | figures`".into());
    };
    let in_run = |path: &str| {
        path.strip_prefix(RUNS).is_some_and(|rest| rest.split_once('/') == Some((folder(path), file)))
    };
    let newest = tree.files.iter().filter(|f| in_run(&f.path)).max_by(|a, b| a.path.cmp(&b.path));
    let newest = newest.ok_or_else(|| format!("no run has a file {file}"))?;
    let path = &newest.path;
    let json = Json::parse(newest.text()).map_err(|why| format!("{path}: {why}"))?;
    let figures = fill(figures, &json).map_err(|why| format!("{path}: {why}"))?;
    let machine = machine(tree, folder(path))?;
    Ok(format!("| {what} | {figures} | {machine} | [{file}]({path}) |\n"))
}

/// Of a file in a run: the run's folder.
fn folder(path: &str) -> &str {
    path.strip_prefix(RUNS).and_then(|rest| rest.split('/').next()).unwrap_or_default()
}

/// What the title of a run's README.md says after the date.
fn machine<'a>(tree: &'a Tree, folder: &str) -> Result<&'a str, String> {
    let path = format!("{RUNS}{folder}/README.md");
    let title = tree.get(&path).and_then(|file| file.text().lines().next()?.strip_prefix("# "));
    let machine = title.and_then(|title| Some(title.split_once(", ")?.1));
    machine.ok_or_else(|| format!("{path}: its first line must be `# DATE, MACHINE`"))
}

/// Puts a run's figures in place of `{path}`, `{path .digits}`, `{path unit .digits}`.
fn fill(figures: &str, json: &Json) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = figures;
    while let Some((before, from)) = rest.split_once('{') {
        let (figure, after) = from.split_once('}').ok_or("a '{' without its '}'")?;
        text += before;
        text += &shown(figure, json)?;
        rest = after;
    }
    Ok(text + rest)
}

fn shown(figure: &str, json: &Json) -> Result<String, String> {
    let mut words = figure.split_whitespace();
    let path = words.next().ok_or("{} names no field")?;
    let (mut digits, mut unit) = (None, None);
    for word in words {
        match word.strip_prefix('.') {
            Some(count) => {
                digits = Some(count.parse::<usize>().map_err(|_| format!("'{word}' is no number of digits"))?)
            }
            None => unit = Some(word),
        }
    }
    let (factor, suffix) = match unit {
        None => (1.0, ""),
        Some("%") => (100.0, " %"),
        Some("ms") => (1e3, " ms"),
        Some("GiB") => (1.0 / f64::from(1 << 30), " GiB"),
        Some("MiB") => (1.0 / f64::from(1 << 20), " MiB"),
        Some(other) => return Err(format!("no unit '{other}': write %, ms, GiB or MiB")),
    };
    match json.at(path).ok_or_else(|| format!("no field {path}"))? {
        Json::Number(value) => Ok(match digits {
            Some(digits) => format!("{:.digits$}{suffix}", value * factor),
            None => format!("{}{suffix}", value * factor),
        }),
        Json::Text(text) => Ok(text.clone()),
        _ => Err(format!("the field {path} is neither a number nor a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const README_TEXT: &str =
        "# a\n<!-- table: made by `cargo xtask table` from bench/runs -->\nold\n<!-- end of table -->\nb\n";

    fn made(rows: &str) -> Result<String, String> {
        let tree = Tree::sample(&[
            (README, README_TEXT),
            (ROWS, rows),
            ("bench/runs/2026-01-01-x/README.md", "# 2026-01-01, an old card\n"),
            ("bench/runs/2026-01-01-x/p.json", r#"{"seconds": 9, "only": 1}"#),
            ("bench/runs/2026-01-01-x/q.json", r#"{"bytes": 3221225472, "share": 0.9876, "name": "n"}"#),
            ("bench/runs/2026-02-01-x/README.md", "# 2026-02-01, a card, 2 cores\n"),
            ("bench/runs/2026-02-01-x/p.json", r#"{"seconds": 0.01234, "rows": [{"a": 2}]}"#),
        ]);
        readme(&tree).map(|(_, made)| made)
    }

    #[test]
    fn the_newest_run_that_has_the_file_gives_the_figures() {
        let made = made(
            "# rows\n\nstep | p.json | {seconds ms .1}, {rows.0.a}\nsize | q.json | {bytes GiB .0}, {share % .1} of {name}\n",
        );
        let made = made.unwrap();
        assert!(
            made.starts_with("# a\n<!-- table") && made.ends_with("\n<!-- end of table -->\nb\n"),
            "{made}"
        );
        assert!(
            made.contains(
                "| step | 12.3 ms, 2 | a card, 2 cores | [p.json](bench/runs/2026-02-01-x/p.json) |\n"
            ),
            "{made}"
        );
        assert!(made.contains("| size | 3 GiB, 98.8 % of n | an old card | [q.json]"), "{made}");
        assert!(!made.contains("old\n<"), "{made}");
    }

    #[test]
    fn a_row_that_cannot_be_filled_is_named() {
        for (rows, why) in [
            ("a | p.json", "table.txt:1: a row is"),
            ("a | none.json | {x}", "no run has a file none.json"),
            ("a | p.json | {only}", "2026-02-01-x/p.json: no field only"),
            ("a | p.json | {seconds", "without its '}'"),
            ("a | p.json | {seconds parsec}", "no unit 'parsec'"),
            ("a | p.json | {rows}", "neither a number nor a text"),
        ] {
            let error = made(rows).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
