//! `headinfer logits`: scores of given ids, written as they come.

use std::io::{self, Write as _};

use anyhow::Result;
use headinfer_core::engine::generate::{Limits, generate};
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::engine::{Decoder, Session};
use headinfer_core::units::MIB;
use serde_json::json;

use crate::args::{Environment, LogitsArgs};
use crate::error::{Exit, Failure};
use crate::model_source::ModelSource;
use crate::output::OutFile;
use crate::tensors_out::{self, Tensor};
use crate::{device, input, interrupt, open, output, progress, summary};

/// Memory for the logits of one step: long scores are cut into steps whose logits fit.
const LOGITS_BYTES: usize = 16 * MIB as usize;

/// Scores and writes.
///
/// # Errors
/// When an input cannot be used, nothing fits, or OUT cannot be written; OUT is then untouched.
pub(crate) fn run(args: &LogitsArgs, environment: &Environment) -> Result<()> {
    let source = ModelSource::parse(&args.model.model)?;
    let device = device::choose(args.engine.device)?;
    let model = source.find(&environment.hub)?;
    let spec = &model.spec;
    let ids = input::ids(&args.ids, spec.vocab)?;
    let rows = rows(args, ids.len())?;
    let context = context(args, ids.len())?;
    let mut request = open::request(model.generated_bytes(), device, context, &args.engine, environment);
    let per_step = (LOGITS_BYTES / (4 * spec.vocab)).clamp(1, rows.max(1));
    request.overrides.logit_rows = Some(per_step);
    let plan = open::plan(spec, &request)?;
    // Before the work, so that what cannot be written is told at once.
    let mut out = OutFile::create(&args.out)?;
    let mut session = open::session(&model, plan, &args.engine, environment.cache.as_deref())?;
    let scored = score(&mut session, &ids, rows, args.greedy, &mut out)?;
    out.publish()?;
    if args.json {
        output::print_json(&json!({
            "tokens": ids.len(),
            "rows": rows,
            "vocab": spec.vocab,
            "greedy": scored.greedy,
            "logits_hash": scored.hash,
        }))?;
    }
    Ok(())
}

/// What was scored, besides what was written.
struct Scored {
    greedy: Vec<u32>,
    /// Of the last given id's logits.
    hash: String,
}

fn score(
    session: &mut Session,
    ids: &[u32],
    rows: usize,
    greedy: usize,
    out: &mut OutFile,
) -> Result<Scored> {
    let vocab = session.plan().spec.vocab;
    let logits = Tensor { name: "logits", dtype: "F32", shape: &[rows, vocab] };
    let continuation = Tensor { name: "greedy", dtype: "I32", shape: &[greedy] };
    let tensors: &[Tensor<'_>] = if greedy > 0 { &[logits, continuation] } else { &[logits] };
    tensors_out::header(out, tensors).map_err(|e| out.failed(e))?;
    let _cooperative = interrupt::cooperative();
    let mut bar = progress::Prefill::new(ids.len());
    let mut last = vec![0.0; vocab];
    let mut written: io::Result<()> = Ok(());
    let mut finite = true;
    session.score(
        ids,
        rows,
        &mut |p| {
            bar.update(&p);
            interrupt::flow()
        },
        &mut |_, values| {
            finite &= values.iter().all(|x| x.is_finite());
            if written.is_ok() {
                written = tensors_out::values(out, values);
            }
            last.copy_from_slice(&values[values.len() - vocab..]);
        },
    )?;
    drop(bar);
    written.map_err(|e| out.failed(e))?;
    if !finite {
        return Err(headinfer_core::engine::EngineError::NotFinite.into());
    }
    let greedy = continue_greedily(session, &last, greedy)?;
    for id in &greedy {
        out.write_all(&id.to_le_bytes()).map_err(|e| out.failed(e))?;
    }
    Ok(Scored { greedy, hash: summary::hash(&last) })
}

fn continue_greedily(session: &mut Session, last: &[f32], count: usize) -> Result<Vec<u32>> {
    let mut sampler = Sampler::new(Sampling::default(), last.len());
    let limits = Limits { max_tokens: count, stop_tokens: Vec::new() };
    let mut made = Vec::new();
    let mut decoder = Decoder::plain(session, last);
    generate(session, &mut decoder, &mut sampler, &limits, &mut |id| {
        made.push(id);
        interrupt::flow()
    })?;
    match made.len() < count {
        true => Err(interrupt::interrupted(&format!("after {} of {count} greedy tokens", made.len())).into()),
        false => Ok(made),
    }
}

fn rows(args: &LogitsArgs, given: usize) -> Result<usize> {
    if args.last == 0 || args.last > given {
        let file = args.ids.display();
        let message = format!("--last must be 1..={given}, the ids of {file}, not {}", args.last);
        return Err(Failure::usage(message).into());
    }
    Ok(args.last)
}

fn context(args: &LogitsArgs, given: usize) -> Result<usize> {
    // The last greedy token is never taken in.
    let need = given + args.greedy.saturating_sub(1);
    let context = args.context.unwrap_or(need);
    if need > context {
        let message =
            format!("the ids do not fit: they and --greedy need {need} tokens of a context of {context}");
        return Err(Failure::new(Exit::DoesNotFit, message).hint(format!("give --context {need}")).into());
    }
    Ok(context)
}
