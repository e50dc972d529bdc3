//! `bench prefill`: random ids from nothing, or from a depth over a synthetic past; then some greedy tokens.

use std::time::Instant;

use anyhow::Result;
use headinfer_core::plan::report::seconds;

use super::ceilings::Floor;
use super::report::Report;
use super::steps::{Bench, random_ids};
use crate::args::{Environment, PrefillArgs};
use crate::error::Failure;
use crate::output;

/// Measures and prints.
///
/// # Errors
/// When the model cannot be run, or `--at` leaves no token.
pub(crate) fn run(args: &PrefillArgs, environment: &Environment) -> Result<()> {
    let (at, tokens) = (args.at.unwrap_or(0), args.tokens as usize);
    let context = args.measure.context;
    if at.saturating_add(tokens) >= context {
        let message = match tokens {
            0 => format!("--at {at} leaves nothing to take in of --context {context}"),
            n => format!("--at {at} and {n} tokens after leave nothing to take in of --context {context}"),
        };
        return Err(Failure::usage(message).hint("give a larger --context").into());
    }
    let mut bench = Bench::metered(&args.measure, environment)?;
    let begun = Instant::now();
    if at > 0 {
        bench.session.assume_past(at, args.measure.seed)?;
    }
    let past_s = (at > 0).then(|| begun.elapsed().as_secs_f64());
    let ids = random_ids(context - at - tokens, bench.session.plan().spec.vocab, args.measure.seed);
    bench.warm(&ids)?;
    let measured = bench.prefill(&ids)?;
    let decoded = (tokens > 0).then(|| bench.decode(tokens)).transpose()?;
    let end = bench.finish()?;
    let floor = Floor::of(&end.0, &measured.steps, &end.2);
    let profile = args.profile.then(|| measured.profile.shown(measured.seconds));
    let report = Report { past_s, decoded, profile, ..Report::new(end, &measured, floor) };
    if args.measure.json {
        return output::print_json(&report);
    }
    let Report { model, tokens: taken, tokens_per_s, .. } = &report;
    let time = seconds(report.seconds);
    let line = format!("prefill of {taken} tokens after {at}, {model}: {time}, {tokens_per_s:.1} tok/s\n");
    output::print(&(line + &report.text()))
}
