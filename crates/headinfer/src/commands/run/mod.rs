//! `headinfer run`: a text in, its continuation out as it comes.

mod printer;
mod prompt;

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;
use headinfer_core::engine::generate::{Finish, Limits, generate};
use headinfer_core::engine::guess::Speculation;
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::engine::{Decoder, EngineError, Session};
use headinfer_core::plan::Request;
use headinfer_core::text::Tokenizer;
use serde_json::json;

use crate::args::{Environment, RunArgs};
use crate::error::{Exit, Failure};
use crate::model_source::{Model, ModelSource};
use crate::sessions::Keeper;
use crate::summary::{Phase, Summary};
use crate::{device, input, interrupt, open, output, progress, sessions};
use printer::Printer;

/// New tokens when not told otherwise.
const NEW_TOKENS: usize = 128;

/// Prefills, generates and sums up.
///
/// # Errors
/// When an input cannot be used, nothing fits, or it is interrupted; what was printed stays.
pub(crate) fn run(args: &RunArgs, environment: &Environment) -> Result<()> {
    let sampling = args.sampling.sampling().map_err(Failure::usage)?;
    let source = ModelSource::parse(&args.model.model)?;
    let device = device::choose(args.engine.device)?;
    let text = input::prompt(args.file.as_deref(), args.prompt.as_deref())?;
    let model = source.find(&environment.hub)?;
    let tokenizer = model.tokenizer()?;
    let ids = prompt::ids(args, &tokenizer, text)?;
    let (context, new_tokens) = lengths(args, ids.len())?;
    let request = open::request(model.generated_bytes(), device, context, &args.engine, environment);
    let (stored, guesses) = (sessions::interval_min(&args.store), args.guess.any());
    let request = Request { stored, guesses, ..request };
    let plan = open::plan(&model.spec, &request)?;
    let mut printer = Printer::new(&tokenizer, args.stop.clone(), !args.json)?;
    let mut session = open::session(&model, plan, &args.engine, environment.cache.as_deref())?;
    let limits = Limits { max_tokens: new_tokens, stop_tokens: stop_tokens(&model, &tokenizer) };
    let mut keeper = Keeper::open(&args.store, &model, &session)?;
    let ask = Ask { ids: &ids, sampling, limits, speculation: args.guess.speculate };
    let outcome = generate_text(&mut session, keeper.as_mut(), ask, &mut printer)?;
    let (text, tokens) = printer.finish()?;
    if args.json {
        output::print_json(&json!({
            "text": text,
            "ids": tokens,
            "finish": finish_name(outcome.finish, outcome.interrupted),
            "measured": outcome.summary,
        }))?;
    } else if std::io::stdout().is_terminal() {
        output::print("\n")?;
    }
    if let Some(keeper) = &mut keeper {
        keeper.finish(&mut session)?;
    }
    output::remark(&outcome.summary.line());
    if outcome.interrupted {
        return Err(interrupt::interrupted(&format!("after {} new tokens", tokens.len())).into());
    }
    Ok(())
}

/// Tokens of the context, and most new ones, of a prompt of `given` tokens.
fn lengths(args: &RunArgs, given: usize) -> Result<(usize, usize)> {
    let Some(context) = args.context else {
        let new = args.new_tokens.unwrap_or(NEW_TOKENS);
        return Ok((given + new.saturating_sub(1), new));
    };
    // The last new token is never taken in.
    let room = (context + 1).saturating_sub(given);
    let (what, need) = match args.new_tokens {
        _ if given > context => ("the prompt does not fit: it has", given),
        Some(new) if new > room => ("prompt and new tokens do not fit: they need", given + new - 1),
        Some(new) => return Ok((context, new)),
        None => return Ok((context, NEW_TOKENS.min(room))),
    };
    let message = format!("{what} {need} tokens of a context of {context}");
    Err(Failure::new(Exit::DoesNotFit, message).hint(format!("give --context {need}, or less text")).into())
}

fn stop_tokens(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    model.spec.eos.iter().copied().chain(tokenizer.end_tokens()).collect()
}

/// How a generation went.
struct Outcome {
    finish: Finish,
    interrupted: bool,
    summary: Summary,
}

/// What to continue, and how.
struct Ask<'a> {
    ids: &'a [u32],
    sampling: Sampling,
    limits: Limits,
    speculation: Speculation,
}

fn generate_text(
    session: &mut Session,
    mut keeper: Option<&mut Keeper>,
    Ask { ids, sampling, limits, speculation }: Ask<'_>,
    printer: &mut Printer<'_>,
) -> Result<Outcome> {
    let _cooperative = interrupt::cooperative();
    let begun = Instant::now();
    let restored = match &mut keeper {
        Some(keeper) => keeper.restore(session, ids)?,
        None => 0,
    };
    let logits = take_in(session, keeper, &ids[restored..])?;
    let prefill = Phase { restored, ..phase(session, ids.len() - restored, begun.elapsed()) };
    let mut sampler = Sampler::new(sampling, logits.len());
    let begun = Instant::now();
    let mut decoder = Decoder::new(session, &logits, speculation);
    let finish = generate(session, &mut decoder, &mut sampler, &limits, &mut |id| printer.push(id))?;
    let decode = phase(session, printer.count(), begun.elapsed());
    let plan = session.plan().clone();
    let summary = Summary::new(&plan, &prefill, &decode, &decoder);
    // A token that was asked to be the last, and was: nothing was cut short.
    let interrupted = interrupt::requested() && finish == Finish::Stopped;
    Ok(Outcome { finish, interrupted, summary })
}

/// Prefills under a bar; logits of the last token. Ctrl-C ends it after a chunk, and what was finished is kept.
fn take_in(session: &mut Session, mut keeper: Option<&mut Keeper>, ids: &[u32]) -> Result<Vec<f32>> {
    let mut bar = progress::Prefill::new(ids.len());
    let mut device_failed = None;
    let result = session.prefill_with(ids, &mut |session, p| {
        bar.update(&p);
        let kept = keeper.as_mut().map_or(Ok(()), |keeper| keeper.checkpoint(session));
        device_failed = kept.err();
        if device_failed.is_some() { ControlFlow::Break(()) } else { interrupt::flow() }
    });
    let result = result.map(<[f32]>::to_vec);
    drop(bar);
    if let Some(error) = device_failed {
        return Err(error.into());
    }
    if let (Err(EngineError::Cancelled { .. }), Some(keeper)) = (&result, keeper) {
        keeper.finish(session)?;
    }
    Ok(result?)
}

fn phase(session: &Session, tokens: usize, time: Duration) -> Phase {
    Phase { tokens, restored: 0, time, stats: session.backend().stats() }
}

fn finish_name(finish: Finish, interrupted: bool) -> &'static str {
    match finish {
        _ if interrupted => "interrupted",
        Finish::Length => "length",
        Finish::StopToken(_) => "stop token",
        Finish::Stopped => "stop string",
        Finish::ContextFull => "context full",
    }
}
