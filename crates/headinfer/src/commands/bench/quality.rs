//! `bench quality`: what a form of keys and values costs, against the exact one.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use headinfer_core::engine::quality::Apart;
use headinfer_core::engine::{EngineError, Progress, Session};
use headinfer_core::niah::{self, Request, even_depths};
use headinfer_core::plan::{KvFormat, PlacementMode, UNIT};
use headinfer_core::units::MIB;
use serde::Serialize;

use crate::args::{Environment, KvDtype, QualityArgs};
use crate::commands::niah::Words;
use crate::error::Failure;
use crate::model_source::{Model, ModelSource};
use crate::{device, input, interrupt, open, output, progress};

/// New tokens per step where not told: few, so that most keys are read back from the store.
const CHUNK: usize = 256;
/// Memory for the logits of one step.
const LOGITS_BYTES: usize = 16 * MIB as usize;
/// The model that needles are hidden for: its margins are sums of equal shares of all heads.
const NEEDLES: &str = "builtin:retrieval";
const DEPTHS: usize = 5;

/// Measures and prints.
///
/// # Errors
/// When a model or the text cannot be used, nothing fits, nothing is coded, or logits are not finite.
pub(super) fn run(args: &QualityArgs, environment: &Environment) -> Result<()> {
    let model = ModelSource::parse(&args.model)?.find(&environment.hub)?;
    let ids = ids(args, &model)?;
    let windows = windows(ids.len(), args.context, args.tokens);
    let length = windows.iter().map(Range::len).max().unwrap_or_default();
    if length == 0 {
        return Err(Failure::input("the text has less than 2 tokens: there is nothing to predict").into());
    }
    // Both at once, as distributions of a long text are too large to keep.
    let mut sessions = Vec::new();
    for dtype in [KvDtype::Bf16, args.engine.kv_dtype] {
        sessions.push(session(args, &model, (dtype, length, 2), environment)?);
    }
    let [exact, coded] = &mut sessions[..] else { unreachable!("two forms") };
    let (apart, seen) = compare([exact, coded], &ids, &windows)?;
    let plan = coded.plan().clone();
    drop(sessions);
    let (mean, max) = apart.divergence();
    let [exact_perplexity, perplexity] = apart.perplexity();
    let (format, d) = (plan.knobs().kv, plan.spec.head_dim);
    let report = Report {
        model: plan.spec.name.clone(),
        kv_dtype: format.name(),
        ratio: format.ratio(d),
        lossy: plan.lossy().is_some(),
        tokens: apart.tokens,
        context: length,
        chunk: plan.knobs().chunk,
        coded_share: seen,
        exact_perplexity,
        perplexity,
        kl_mean_nats: mean,
        kl_max_nats: max,
        same_top_fraction: apart.same_top(),
        needles: needles(args, environment)?,
    };
    match args.json {
        true => output::print_json(&report),
        false => output::print(&report.text()),
    }
}

fn ids(args: &QualityArgs, model: &Model) -> Result<Vec<u32>> {
    match (&args.text.ids, &args.text.file) {
        (Some(path), _) => input::ids(path, model.spec.vocab),
        (None, file) => {
            let path: Option<&Path> = file.as_deref();
            Ok(model.tokenizer()?.encode(&input::prompt(path, None)?)?)
        }
    }
}

/// Tokens that predict the one after each: at most `most` of `given`, in texts of at most `context`.
fn windows(given: usize, context: usize, most: usize) -> Vec<Range<usize>> {
    let end = given.saturating_sub(1).min(most);
    (0..end).step_by(context).map(|start| start..end.min(start + context)).collect()
}

/// A session of `context` tokens whose K and V are `dtype`, in the host's store unless told otherwise; one of `sessions`
/// at a time.
fn session(
    args: &QualityArgs,
    model: &Model,
    (kv_dtype, context, sessions): (KvDtype, usize, u64),
    environment: &Environment,
) -> Result<Session> {
    let engine = crate::args::EngineArgs { kv_dtype, ..args.engine.clone() };
    let device = device::choose(engine.device)?;
    let mut request = open::request(model.generated_bytes(), device, context, &engine, environment);
    if request.placement == PlacementMode::Auto {
        request.placement = PlacementMode::Offload;
    }
    request.device_budget /= sessions;
    request.host_budget /= sessions;
    let chunk = engine.chunk.unwrap_or(CHUNK).min(context);
    request.overrides.chunk = Some(chunk);
    request.overrides.logit_rows = Some((LOGITS_BYTES / (4 * model.spec.vocab)).clamp(1, chunk));
    let plan = open::plan(&model.spec, &request)?;
    if plan.knobs().kv != KvFormat::Bf16 && !plan.coded() {
        let message = format!("no head lives in host memory: nothing is {}", plan.knobs().kv.name());
        return Err(Failure::usage(message).hint("give --placement offload").into());
    }
    open::session(model, plan, &engine, environment.cache.as_deref())
}

/// How far the second session is from the first, and the mean share of the keys that a token sees as the store has
/// them.
fn compare(sessions: [&mut Session; 2], ids: &[u32], windows: &[Range<usize>]) -> Result<(Apart, f64)> {
    let [exact, coded] = sessions;
    let _cooperative = interrupt::cooperative();
    let (plan, vocab) = (coded.plan().clone(), coded.plan().spec.vocab);
    let heads = (plan.spec.layers * plan.spec.kv_heads) as f64;
    let on_host = 1.0 - plan.knobs().resident_heads as f64 / heads;
    let (step, total) = (plan.knobs().logit_rows, windows.iter().map(Range::len).sum());
    let (mut apart, mut bar, begun) = (Apart::default(), progress::Prefill::new(total), Instant::now());
    let (mut stored, mut seen) = (0.0, 0.0);
    for window in windows {
        exact.rewind(0);
        coded.rewind(0);
        for at in window.clone().step_by(step) {
            let rows = at..window.end.min(at + step);
            let past = at - window.start;
            let right = exact.step(&ids[rows.clone()], rows.len())?;
            let other = coded.step(&ids[rows.clone()], rows.len())?;
            for ((right, other), row) in right.chunks(vocab).zip(other.chunks(vocab)).zip(rows.clone()) {
                if !apart.add(right, other, ids[row + 1]) {
                    return Err(EngineError::NotFinite.into());
                }
                seen += (row - window.start + 1) as f64;
                stored += (past / UNIT * UNIT) as f64 * on_host;
            }
            let elapsed = begun.elapsed();
            let left = elapsed.as_secs_f64() * (total - apart.tokens) as f64 / apart.tokens as f64;
            let remaining = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
            bar.update(&Progress { done: apart.tokens, total, elapsed, remaining });
            if interrupt::requested() && apart.tokens < total {
                return Err(
                    interrupt::interrupted(&format!("after {} of {total} tokens", apart.tokens)).into()
                );
            }
        }
    }
    Ok((apart, stored / seen))
}

/// Needles in a haystack of the context, by the exact form and by the other.
fn needles(args: &QualityArgs, environment: &Environment) -> Result<Needles> {
    let model = ModelSource::parse(NEEDLES)?.find(&environment.hub)?;
    let words = Words::of(&model, None)?;
    let request = Request { context: args.context, depths: even_depths(DEPTHS), seed: 0 };
    let haystack = words.haystack(&request)?;
    let mut found = Vec::new();
    for dtype in [KvDtype::Bf16, args.engine.kv_dtype] {
        let mut session = session(args, &model, (dtype, args.context, 1), environment)?;
        let cells = niah::run(&mut session, &haystack, &mut |_| interrupt::flow())?;
        let right = cells.iter().filter(|cell| cell.correct).count();
        let margin = cells.iter().map(|cell| cell.margin_min).fold(f32::INFINITY, f32::min);
        found.push((right, margin));
    }
    let [(exact_correct, exact_margin_min), (correct, margin_min)] = found[..] else {
        unreachable!("two forms")
    };
    let (model, trials) = (NEEDLES, haystack.questions.len());
    Ok(Needles { model, trials, exact_correct, correct, exact_margin_min, margin_min })
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    kv_dtype: &'static str,
    /// How many times smaller than bf16 K and V on the host are.
    ratio: f64,
    lossy: bool,
    /// Tokens that were predicted.
    tokens: usize,
    /// Tokens of the longest text that one was predicted from.
    context: usize,
    chunk: usize,
    /// Mean share of the keys and values that a token sees as they came back from the store.
    coded_share: f64,
    exact_perplexity: f64,
    perplexity: f64,
    kl_mean_nats: f64,
    kl_max_nats: f64,
    /// Tokens of which both find the same one the likeliest.
    same_top_fraction: f64,
    needles: Needles,
}

#[derive(Serialize)]
struct Needles {
    model: &'static str,
    trials: usize,
    exact_correct: usize,
    correct: usize,
    /// The least lead of a right token over the next best; negative when one is wrong.
    exact_margin_min: f32,
    margin_min: f32,
}

impl Report {
    fn text(&self) -> String {
        let Self { model, kv_dtype, ratio, tokens, context, chunk, needles, .. } = self;
        let lossy = if self.lossy { "lossy" } else { "exact" };
        let percent = |x: f64| 100.0 * x;
        let Needles { trials, exact_correct, correct, exact_margin_min, margin_min, .. } = needles;
        format!(
            "quality of {kv_dtype} KV ({lossy}, {ratio:.2} × smaller), {model}: {tokens} tokens, contexts up to {context}, \
             chunks of {chunk}\n  \
             read back      {:.1} % of the keys and values that a token sees\n  \
             perplexity     {:.4}, exact {:.4} ({:+.3} %)\n  \
             KL divergence  mean {:.6} nats, max {:.4}\n  \
             top token      the same for {:.2} %\n  \
             needles        {correct} of {trials}, exact {exact_correct}; least margin {margin_min:.2}, exact \
             {exact_margin_min:.2} ({} of {} tokens)\n",
            percent(self.coded_share),
            self.perplexity,
            self.exact_perplexity,
            percent(self.perplexity / self.exact_perplexity - 1.0),
            self.kl_mean_nats,
            self.kl_max_nats,
            percent(self.same_top_fraction),
            needles.model,
            context,
        )
    }
}
