//! `bench split`: decode with one share of the heads for the CPU after another.

use anyhow::Result;
use headinfer_core::cpu::measure::median;
use headinfer_core::plan::report::seconds;
use headinfer_core::plan::{Overrides, Request, Step};
use headinfer_core::simulate;
use serde::Serialize;

use super::report::Spread;
use super::steps::{Bench, random_ids};
use crate::args::{Environment, HostHeads, SplitArgs};
use crate::error::Failure;
use crate::model_source::ModelSource;
use crate::{interrupt, output};

/// Shares that are tried unless others are asked for, `auto` apart.
const SHARES: usize = 8;

/// Measures and prints.
///
/// # Errors
/// When the model cannot be run, a split is impossible, or the context holds no past.
pub(super) fn run(args: &SplitArgs, environment: &Environment) -> Result<()> {
    let (context, tokens) = (args.measure.context, args.tokens as usize);
    if tokens >= context {
        let message = format!("{tokens} tokens leave no past in a context of {context}");
        return Err(Failure::usage(message).hint("give a larger --context or a smaller -n").into());
    }
    let _cooperative = interrupt::cooperative();
    let mut rows = Vec::new();
    for heads in asked(args, environment)? {
        rows.push(row(args, heads, environment)?);
        let row = &rows[rows.len() - 1];
        output::remark(&format!("--host-heads {}: {}", row.asked, seconds(row.seconds)));
        if interrupt::requested() {
            return Err(interrupt::interrupted(&format!("after {} splits", rows.len())).into());
        }
    }
    let report = Report::new(&args.measure.model, context, context - tokens, rows);
    if args.measure.json { output::print_json(&report) } else { output::print(&report.text()) }
}

/// What to try, in order.
fn asked(args: &SplitArgs, environment: &Environment) -> Result<Vec<HostHeads>> {
    if !args.heads.is_empty() {
        return Ok(args.heads.clone());
    }
    let spec = ModelSource::parse(&args.measure.model)?.spec(&environment.hub)?;
    let pairs = spec.layers * spec.kv_heads;
    let mut counts: Vec<usize> = (0..=SHARES).map(|share| share * pairs / SHARES).collect();
    counts.dedup();
    Ok(std::iter::once(HostHeads::Auto).chain(counts.into_iter().map(HostHeads::Count)).collect())
}

fn row(args: &SplitArgs, heads: HostHeads, environment: &Environment) -> Result<Row> {
    let tokens = args.tokens as usize;
    let past = args.measure.context - tokens;
    let mut bench = Bench::open(&args.measure, environment, |request| {
        let (host_heads, balance_host) = (heads.count(), heads == HostHeads::Auto);
        let overrides = Overrides { host_heads, balance_host, ..request.overrides };
        Request { overrides, ..request }
    })?;
    let ids = random_ids(tokens, bench.session.plan().spec.vocab, args.measure.seed);
    bench.session.assume_past(past, args.measure.seed)?;
    bench.warm(&ids[..1])?;
    let times = ids.iter().map(|id| Ok(bench.timed(&[*id], 1)?.0)).collect::<Result<Vec<f64>>>()?;
    let (plan, middle) = (bench.session.plan(), past + tokens / 2);
    let predicted_s = simulate::decode_s(plan, middle);
    let step = Step { past: middle, rows: 1, logit_rows: 1 };
    Ok(Row {
        asked: heads.count().map_or_else(|| "auto".to_owned(), |n| n.to_string()),
        host_heads: plan.host_attended_heads(&step),
        resident_heads: plan.knobs().resident_heads,
        seconds: median(&times),
        repetitions: Spread::of(&times),
        predicted_s,
        predicted_ratio: median(&times) / predicted_s,
    })
}

/// One split.
#[derive(Serialize)]
struct Row {
    /// `--host-heads`.
    asked: String,
    /// (layer, KV head) pairs that the CPU attended to, and those that stayed on the device.
    host_heads: usize,
    resident_heads: usize,
    /// Of a token, median.
    seconds: f64,
    repetitions: Spread,
    /// What the planner expected by the figures that `doctor` kept, and `seconds` over it.
    predicted_s: f64,
    predicted_ratio: f64,
}

#[derive(Serialize)]
struct Report {
    model: String,
    context: usize,
    /// Tokens before the first that is decoded.
    past: usize,
    rows: Vec<Row>,
    /// As it was asked for.
    best: String,
    best_s: f64,
    /// Time of `auto` over the best; absent where it was not tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    auto_over_best: Option<f64>,
}

impl Report {
    fn new(model: &str, context: usize, past: usize, rows: Vec<Row>) -> Self {
        let best = rows.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("something is tried");
        let (best, best_s) = (best.asked.clone(), best.seconds);
        let auto = rows.iter().find(|row| row.asked == "auto");
        let auto_over_best = auto.map(|auto| auto.seconds / best_s);
        Self { model: model.to_owned(), context, past, rows, best, best_s, auto_over_best }
    }

    fn text(&self) -> String {
        let Self { model, past, best, best_s, .. } = self;
        let mut text = format!("decode after {past}, {model}, by (layer, KV head) pairs of the CPU\n");
        for Row { asked, host_heads, seconds: time, repetitions, predicted_s, predicted_ratio, .. } in
            &self.rows
        {
            let Spread { least_s, most_s, .. } = *repetitions;
            text += &format!(
                "  {asked:>5} ({host_heads}): {} a token, {} to {}; predicted {}, ratio {predicted_ratio:.3}\n",
                seconds(*time),
                seconds(least_s),
                seconds(most_s),
                seconds(*predicted_s)
            );
        }
        text += &format!("  best  {best}: {}\n", seconds(*best_s));
        if let Some(ratio) = self.auto_over_best {
            text += &format!("  auto  {ratio:.3} times the best\n");
        }
        text
    }
}
