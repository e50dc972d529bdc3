//! `headinfer completions`.

use anyhow::Result;
use clap_complete::Shell;

use crate::{args, output};

/// Prints the completions of `shell`.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn run(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::grammar(), "headinfer", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
