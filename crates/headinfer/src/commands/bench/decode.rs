//! `bench decode`: single tokens at the end of a context.

use std::time::Instant;

use anyhow::Result;
use headinfer_core::cpu::measure::median;
use headinfer_core::plan::DeviceKind;
use headinfer_core::plan::report::seconds;
use headinfer_core::simulate;

use super::ceilings::Floor;
use super::report::{Report, Spread};
use super::steps::{Bench, Copied, Measured, random_ids};
use crate::args::{DecodeArgs, Environment};
use crate::error::Failure;
use crate::{interrupt, output};

/// Tokens whose commands are timed on a GPU, after those that are counted.
const OBSERVED: usize = 4;

/// Measures and prints; the time is the median over the tokens.
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
    let mut bench = Bench::metered(&args.measure, environment)?;
    let ids = random_ids(context, bench.session.plan().spec.vocab, seed);
    let begun = Instant::now();
    match args.synthetic {
        true => bench.session.assume_past(past, seed)?,
        false => drop(bench.prefill(&ids[..past])?),
    }
    let past_s = Some(begun.elapsed().as_secs_f64());
    bench.begin();
    let (times, observed) = match bench.session.plan().knobs().device {
        // Commands are timed at no cost, and ceilings measured between the tokens.
        DeviceKind::Cpu => observed(&mut bench, &ids[past..])?,
        DeviceKind::Cuda => {
            let (times, hash) = counted(&mut bench, &ids[past..])?;
            bench.session.rewind(past);
            let (_, observed) = observed(&mut bench, &ids[past..][..tokens.min(OBSERVED)])?;
            (times, Measured { logits_hash: hash, ..observed })
        }
    };
    let end = bench.finish()?;
    let middle = &observed.steps[observed.steps.len() / 2];
    let predicted_s = simulate::decode_s(&end.0, past + tokens / 2);
    let floor = Floor::of(&end.0, std::slice::from_ref(middle), &end.2);
    let report = Report { past_s, ..Report::new(end, &observed, floor) };
    let report = report.timed(1, median(&times), Spread::of(&times)).predicted(predicted_s);
    if args.measure.json {
        return output::print_json(&report);
    }
    let Report { model, tokens_per_s, .. } = &report;
    let time = seconds(report.seconds);
    let line =
        format!("decode of {tokens} tokens after {past}, {model}: {time} a token, {tokens_per_s:.2} tok/s\n");
    output::print(&(line + &report.text()))
}

/// Times of the tokens, and the hash of the last one's logits.
fn counted(bench: &mut Bench, ids: &[u32]) -> Result<(Vec<f64>, String)> {
    let _cooperative = interrupt::cooperative();
    bench.warm(&ids[..1])?;
    let (mut times, mut hash) = (Vec::with_capacity(ids.len()), String::new());
    for id in ids {
        let (seconds, of_logits) = bench.timed(&[*id], 1)?;
        times.push(seconds);
        hash = of_logits;
        if interrupt::requested() {
            return Err(interrupt::interrupted(&format!("after {} tokens", times.len())).into());
        }
    }
    Ok((times, hash))
}

/// Times of the tokens, and what the lanes do for one: the mean.
fn observed(bench: &mut Bench, ids: &[u32]) -> Result<(Vec<f64>, Measured)> {
    let _cooperative = interrupt::cooperative();
    let (mut sum, mut times) = (Measured::default(), Vec::with_capacity(ids.len()));
    for id in ids {
        let step = bench.step(&[*id], 1)?;
        times.push(step.seconds);
        sum.add(step);
        if interrupt::requested() {
            return Err(interrupt::interrupted(&format!("after {} tokens", times.len())).into());
        }
    }
    let count = ids.len();
    let one = |of: f64| of / count as f64;
    let lane = |of: Copied| Copied { bytes: of.bytes / count as u64, seconds: one(of.seconds) };
    let mean = Measured {
        tokens: 1,
        seconds: one(sum.seconds),
        attention_s: one(sum.attention_s),
        attention_flop: one(sum.attention_flop),
        kv_bytes: one(sum.kv_bytes),
        host_bytes: one(sum.host_bytes),
        host_s: one(sum.host_s),
        to_device: lane(sum.to_device),
        to_host: lane(sum.to_host),
        copy_s: one(sum.copy_s),
        copy_hidden_s: one(sum.copy_hidden_s),
        ..sum
    };
    Ok((times, mean))
}
