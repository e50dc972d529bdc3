//! The command line of headinfer: parses, runs one command, prints at most one error, and exits with its code.

mod args;
mod commands;
mod date;
mod device;
mod error;
mod heap;
mod input;
mod interrupt;
mod machine;
mod measure;
mod model_source;
mod open;
mod output;
mod plot;
mod progress;
mod sessions;
mod summary;
mod tensors_out;

use std::process::ExitCode;

fn main() -> ExitCode {
    heap::limit_arenas();
    let (cli, environment) = match args::parse() {
        Ok(parsed) => parsed,
        Err(end) => return end,
    };
    args::logging(&cli);
    match interrupt::install().and_then(|()| commands::run(cli, &environment)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    }
}
