//! One file per command: what it does between its arguments and its output.

mod bench;
mod completions;
mod doctor;
mod logits;
mod model;
mod niah;
mod plan;
mod run;
mod serve;

use anyhow::Result;

use crate::args::{Cli, Command, Environment};
use crate::output;

/// Runs the command.
///
/// # Errors
/// What the command says; `error::report` prints it.
pub(crate) fn run(cli: Cli, environment: &Environment) -> Result<()> {
    if cli.quiet {
        output::be_quiet();
    }
    match cli.command {
        Command::Plan(args) => plan::run(&args, environment),
        Command::Run(args) => run::run(&args, environment),
        Command::Serve(args) => serve::run(&args, environment),
        Command::Niah(args) => niah::run(&args, environment),
        Command::Logits(args) => logits::run(&args, environment),
        Command::Bench(args) => bench::run(&args, environment),
        Command::Doctor(args) => doctor::run(&args, environment),
        Command::Model(args) => model::run(&args, environment),
        Command::Completions { shell } => completions::run(shell),
    }
}
