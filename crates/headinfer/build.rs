//! Tells the binary which commit it is built from, so that a run says which build made it.
#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::process::Command;

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    // What is changed but not committed makes another build.
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
    println!("cargo:rustc-env=HEADINFER_BUILD={commit}{}", if changed { "+" } else { "" });
    // All crates; and what every commit and checkout appends to.
    println!("cargo:rerun-if-changed=..");
    if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) {
        println!("cargo:rerun-if-changed={log}");
    }
}

/// What git says; `None` where there is no git or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
