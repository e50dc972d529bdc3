//! Project chores that need more than a cargo command: `cargo xtask tidy`, `cargo xtask gpu-stage`.
//!
//! Standard library only, so that it builds in a second on a fresh clone. Knows the layout of the repository
//! and nothing of what the engine does.
#![allow(clippy::print_stdout, reason = "a command-line tool whose output is its result")]

mod stage;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask tidy         checks the rules of the house over every file of the repository
       cargo xtask gpu-stage    puts the binary and the CUDA tests into .stage/, for a GPU machine without cargo";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(),
        ["gpu-stage"] => gpu_stage(),
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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tree = match tidy::Tree::of_checkout(&root) {
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

fn gpu_stage() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match stage::stage(&root) {
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
