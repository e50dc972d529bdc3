//! `headinfer bench`: one file per measurement.

mod attention;
mod ceilings;
mod decode;
mod guesses;
mod kernels;
mod link;
mod memory;
mod overlap;
mod prefill;
mod profile;
mod quality;
mod report;
mod split;
mod steps;

use anyhow::Result;

use crate::args::{Bench, BenchArgs, Environment};

/// Runs the measurement.
///
/// # Errors
/// What the measurement says.
pub(crate) fn run(args: &BenchArgs, environment: &Environment) -> Result<()> {
    match &args.what {
        Bench::Memory(args) => memory::run(args, environment),
        Bench::Prefill(args) => prefill::run(args, environment),
        Bench::Decode(args) => match &args.text {
            Some(text) => guesses::run(args, text, environment),
            None => decode::run(args, environment),
        },
        Bench::Quality(args) => quality::run(args, environment),
        Bench::Overlap(args) => overlap::run(args, environment),
        Bench::Split(args) => split::run(args, environment),
        Bench::Attention(args) => attention::run(args, environment),
        Bench::Kernels(args) => kernels::run(args, environment),
        Bench::Link(args) => link::run(args, environment),
    }
}
