//! `bench decode --text`: what guesses gain, or cost, on a text.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use headinfer_core::cpu::measure::median;
use headinfer_core::engine::Decoder;
use headinfer_core::engine::generate::{Limits, generate};
use headinfer_core::engine::guess::{Counts, Speculation};
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::model::retrieval::Retrieval;
use headinfer_core::niah::{self, code_haystack};
use headinfer_core::plan::Request;
use headinfer_core::plan::report::seconds;
use serde::Serialize;

use super::steps::Bench;
use crate::args::{DecodeArgs, Environment};
use crate::error::{Exit, Failure};
use crate::model_source::ModelSource;
use crate::{input, interrupt, output};

/// Runs without guesses and with them; the times are medians.
const TURNS: usize = 3;

/// Measures and prints.
///
/// # Errors
/// When the model cannot be run, the text does not suit it, or guesses changed a token.
pub(super) fn run(args: &DecodeArgs, text: &Path, environment: &Environment) -> Result<()> {
    let ids = ids(args, text, environment)?;
    let guesses = args.guess.any();
    let mut bench = Bench::open(&args.measure, environment, |request| Request { guesses, ..request })?;
    let begun = Instant::now();
    bench.prefill(&ids)?;
    let past_s = begun.elapsed().as_secs_f64();
    let first = bench.session.backend_mut().logits()?.to_vec();
    bench.session.backend_mut().record_timeline(false);
    let mut turns = [Vec::new(), Vec::new()];
    for _ in 0..TURNS {
        for (turns, speculation) in turns.iter_mut().zip([Speculation::Off, args.guess.speculate]) {
            bench.session.rewind(ids.len());
            turns.push(turn(&mut bench, &first, args.tokens as usize, speculation)?);
        }
    }
    let plan = bench.session.plan();
    let [plain, guessing] = &turns;
    let same = |turn: &Turn| turn.made == plain[0].made && turn.hash == plain[0].hash;
    let report = Report {
        model: plan.spec.name.clone(),
        context: plan.knobs().context,
        text: text.display().to_string(),
        past: ids.len(),
        past_s,
        tokens: plain[0].made.len(),
        plain: Speed::of(plain),
        guessing: Speed::of(guessing),
        speedup: Speed::of(plain).seconds / Speed::of(guessing).seconds,
        identical: guessing.iter().all(same),
        logits_hash: plain[0].hash.clone(),
    };
    match args.measure.json {
        true => output::print_json(&report)?,
        false => output::print(&report.text())?,
    }
    match report.identical {
        true => Ok(()),
        false => Err(Failure::new(Exit::Failed, "guesses changed what was generated").into()),
    }
}

/// The prompt: what the context leaves beside the tokens to decode.
fn ids(args: &DecodeArgs, text: &Path, environment: &Environment) -> Result<Vec<u32>> {
    let (context, tokens) = (args.measure.context, args.tokens as usize);
    let Some(most) = context.checked_sub(tokens).filter(|past| *past > 0) else {
        let message = format!("{tokens} tokens leave no past in a context of {context}");
        return Err(Failure::usage(message).hint("give a larger --context or a smaller -n").into());
    };
    let model = ModelSource::parse(&args.measure.model)?.find(&environment.hub)?;
    let quotes = text == Path::new("quote");
    if quotes || text == Path::new("own") {
        let Some(retrieval) = model.retrieval() else {
            let message = format!("--text {} is for retrieval models", text.display());
            return Err(Failure::usage(message).hint("give -m builtin:retrieval, or a file").into());
        };
        return made(&retrieval, args, quotes);
    }
    let mut ids = model.tokenizer()?.encode(&input::prompt(Some(text), None)?)?;
    ids.truncate(most);
    Ok(ids)
}

/// A haystack and a question whose answer is as long as what is decoded; with `quotes` the answer stands in the text.
fn made(retrieval: &Retrieval, args: &DecodeArgs, quotes: bool) -> Result<Vec<u32>> {
    let tokens = args.tokens as usize;
    let quoted = if quotes { tokens } else { 0 };
    let request = niah::Request {
        context: args.measure.context.saturating_sub(quoted),
        depths: vec![0.5],
        seed: args.measure.seed,
    };
    let haystack = code_haystack(retrieval, &request, tokens)?;
    let question = &haystack.questions[0];
    Ok([&haystack.ids[..], &question.answer[..quoted], &question.ids].concat())
}

/// One generation.
struct Turn {
    made: Vec<u32>,
    seconds: f64,
    counts: Counts,
    hash: String,
}

fn turn(bench: &mut Bench, first: &[f32], tokens: usize, speculation: Speculation) -> Result<Turn> {
    let _cooperative = interrupt::cooperative();
    let session = &mut bench.session;
    let mut sampler = Sampler::new(Sampling::default(), first.len());
    let limits = Limits { max_tokens: tokens, stop_tokens: Vec::new() };
    let mut made = Vec::with_capacity(tokens);
    let begun = Instant::now();
    let mut decoder = Decoder::new(session, first, speculation);
    generate(session, &mut decoder, &mut sampler, &limits, &mut |id| {
        made.push(id);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    if made.len() < tokens {
        return Err(interrupt::interrupted(&format!("after {} tokens", made.len())).into());
    }
    let hash = crate::summary::hash(decoder.logits());
    Ok(Turn { made, seconds, counts: decoder.counts(), hash })
}

#[derive(Serialize)]
struct Report {
    model: String,
    context: usize,
    /// `--text`.
    text: String,
    /// Tokens before the first that is decoded.
    past: usize,
    past_s: f64,
    tokens: usize,
    plain: Speed,
    guessing: Speed,
    /// Tokens per second with guesses over those without.
    speedup: f64,
    /// Tokens and last logits.
    identical: bool,
    logits_hash: String,
}

/// Of some turns alike.
#[derive(Serialize)]
struct Speed {
    /// Median, for all tokens.
    seconds: f64,
    least_s: f64,
    most_s: f64,
    tokens_per_s: f64,
    /// Of the last turn.
    passes: u64,
    tokens_per_pass: f64,
    guessed_tokens: u64,
    accepted_tokens: u64,
}

impl Speed {
    fn of(turns: &[Turn]) -> Self {
        let times: Vec<f64> = turns.iter().map(|turn| turn.seconds).collect();
        let last = &turns[turns.len() - 1];
        let Counts { passes, guessed, accepted, .. } = last.counts;
        let seconds = median(&times);
        Self {
            seconds,
            least_s: times.iter().copied().fold(f64::INFINITY, f64::min),
            most_s: times.iter().copied().fold(0.0, f64::max),
            // The first token comes from the prefill.
            tokens_per_s: (last.made.len() - 1) as f64 / seconds,
            passes,
            tokens_per_pass: last.counts.tokens_per_pass(),
            guessed_tokens: guessed,
            accepted_tokens: accepted,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let Self { model, tokens, past, text, speedup, .. } = self;
        let line = |name: &str, speed: &Speed| {
            let Speed { tokens_per_s, tokens_per_pass, guessed_tokens, accepted_tokens, .. } = speed;
            format!(
                "  {name:<12}{tokens_per_s:.2} tok/s, {}; {tokens_per_pass:.2} tokens a pass, {accepted_tokens} of \
                 {guessed_tokens} guesses right\n",
                seconds(speed.seconds)
            )
        };
        let verdict = if self.identical { "the same tokens" } else { "other tokens" };
        format!(
            "decode of {tokens} tokens after {past} of '{text}', {model}\n{}{}  {:<12}{speedup:.2} x, {verdict}\n",
            line("plain", &self.plain),
            line("guessing", &self.guessing),
            "gain"
        )
    }
}
