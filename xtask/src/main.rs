//! Project chores that need more than a cargo command: `cargo xtask tidy`, `cargo xtask table`, `cargo xtask gpu-stage`.
//!
//! Standard library only, so that it builds in a second on a fresh clone. Knows the layout of the repository
//! and nothing of what the engine does.
#![allow(clippy::print_stdout, reason = "a command-line tool whose output is its result")]

mod json;
mod stage;
mod table;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask tidy         checks the rules of the house over every file of the repository
       cargo xtask table        writes README.md's table of measured figures from bench/runs; tidy finds a stale one
       cargo xtask gpu-stage    puts the binary and the CUDA tests into .stage/, for a GPU machine without cargo";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(),
        ["table"] => said(make_table()),
        ["gpu-stage"] => said(stage::stage(&root())),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn tidy() -> ExitCode {
    let tree = match tidy::Tree::of_checkout(&root()) {
        Ok(tree) => tree,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let findings = tidy::check(&tree);
    for finding in &findings {
        println!("{finding}");
    }
    println!("{}", tidy::summary(&tree));
    if findings.is_empty() {
        println!("tidy: clean");
        return ExitCode::SUCCESS;
    }
    println!("tidy: {} finding(s)", findings.len());
    ExitCode::FAILURE
}

/// Writes the table into README.md.
fn make_table() -> Result<String, String> {
    let (is, should_be) = table::readme(&tidy::Tree::of_checkout(&root())?)?;
    if is == should_be {
        return Ok("README.md: the table is what the runs say\n".into());
    }
    std::fs::write(root().join("README.md"), should_be).map_err(|e| format!("README.md: {e}"))?;
    Ok("README.md: the table was written\n".into())
}

/// Prints what came of a chore.
fn said(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
