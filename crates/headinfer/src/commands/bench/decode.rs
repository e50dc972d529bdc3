//! `bench decode`: single tokens at the end of a context.

use anyhow::Result;
use headinfer_core::plan::report::seconds;

use super::steps::{Bench, Measured, Report, random_ids};
use crate::args::{DecodeArgs, Environment};
use crate::error::Failure;
use crate::{interrupt, output};

/// Measures and prints; figures are medians over the tokens.
///
/// # Errors
/// When the model cannot be run, or the context holds no past.
pub(crate) fn run(args: &DecodeArgs, environment: &Environment) -> Result<()> {
    let (context, tokens) = (args.measure.context, args.tokens as usize);
    if tokens >= context {
        let message = format!("{tokens} tokens leave no past in a context of {context}");
        return Err(Failure::usage(message).hint("give a larger --context or a smaller -n").into());
    }
    let (past, seed) = (context - tokens, args.measure.seed);
    let mut bench = Bench::open(&args.measure, environment)?;
    let ids = random_ids(context, bench.session.plan().spec.vocab, seed);
    match args.synthetic {
        true => bench.session.assume_past(past, seed)?,
        false => drop(bench.prefill(&ids[..past])?),
    }
    bench.begin();
    let _cooperative = interrupt::cooperative();
    let mut steps = Vec::with_capacity(tokens);
    for id in &ids[past..] {
        steps.push(bench.step(&[*id], 1)?);
        if interrupt::requested() {
            return Err(interrupt::interrupted(&format!("after {} tokens", steps.len())).into());
        }
    }
    let report = Report::new(&bench, &median(&steps));
    if args.measure.json {
        return output::print_json(&report);
    }
    let Report { model, tokens_per_s, .. } = &report;
    let time = seconds(report.seconds);
    let line =
        format!("decode of {tokens} tokens after {past}, {model}: {time} a token, {tokens_per_s:.2} tok/s\n");
    output::print(&(line + &report.text()))
}

/// The step of median time, with medians of what rates are made of; copies are summed over all.
fn median(steps: &[Measured]) -> Measured {
    let of = |value: &dyn Fn(&Measured) -> f64| {
        let mut all: Vec<f64> = steps.iter().map(value).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(0.0)
    };
    let mut all = Measured::default();
    steps.iter().for_each(|step| all.add(step.clone()));
    Measured {
        tokens: 1,
        seconds: of(&|s| s.seconds),
        floor_s: of(&|s| s.floor_s),
        attention_s: of(&|s| s.attention_s),
        attention_flop: of(&|s| s.attention_flop),
        kv_bytes: of(&|s| s.kv_bytes),
        ..all
    }
}
