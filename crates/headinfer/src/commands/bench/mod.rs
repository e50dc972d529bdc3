//! `headinfer bench`: one file per measurement.

mod decode;
mod memory;
mod overlap;
mod prefill;
mod steps;

use anyhow::Result;

use crate::args::{Bench, BenchArgs, Environment};
use crate::error::Failure;

/// Runs the measurement.
///
/// # Errors
/// What the measurement says.
pub(crate) fn run(args: &BenchArgs, environment: &Environment) -> Result<()> {
    match &args.what {
        Bench::Memory(args) => memory::run(args, environment),
        Bench::Prefill(args) => prefill::run(args, environment),
        Bench::Decode(args) => decode::run(args, environment),
        Bench::Overlap(args) => overlap::run(args, environment),
        Bench::Attention => Err(needs_cuda("attention")),
        Bench::Link => Err(needs_cuda("link")),
    }
}

fn needs_cuda(what: &str) -> anyhow::Error {
    Failure::usage(format!("bench {what} measures a CUDA device alone, and is not part of this build"))
        .hint("give bench prefill, decode or overlap; headinfer doctor measures memory")
        .into()
}
