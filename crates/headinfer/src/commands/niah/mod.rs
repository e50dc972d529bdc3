//! `headinfer niah`: needles in haystacks, one prefill per haystack, one line per question.

mod heat_map;
mod table;
mod words;

use std::ops::ControlFlow;

use anyhow::Result;
use headinfer_core::engine::Session;
use headinfer_core::niah::{self, Cell, Event, Haystack, Request};
use headinfer_core::units::Bytes;
use serde::Serialize;

use crate::args::{Environment, NiahArgs};
use crate::error::{Exit, Failure};
use crate::model_source::ModelSource;
use crate::output::OutFile;
use crate::progress::Prefill;
use crate::{device, interrupt, open, output};
pub(crate) use words::Words;

/// Hides, asks and prints.
///
/// # Errors
/// When the model cannot be used, nothing fits, or an answer is wrong.
pub(crate) fn run(args: &NiahArgs, environment: &Environment) -> Result<()> {
    let source = ModelSource::parse(&args.model)?;
    let device = device::choose(args.engine.device)?;
    let model = source.find(&environment.hub)?;
    let words = Words::of(&model, args.chain)?;
    let haystacks = haystacks(args, &words)?;
    let request = open::request(model.generated_bytes(), device, args.context, &args.engine, environment);
    let plan = open::plan(&model.spec, &request)?;
    // Before the work, so that what cannot be written is told at once.
    let plot = args.plot.as_deref().map(OutFile::create).transpose()?;
    let mut session = open::session(&model, plan, &args.engine, environment.cache.as_deref())?;
    announce(&session);
    let cells = ask(&mut session, &haystacks, &words, args.json)?;
    let report = Report::new(args.context, &session, cells);
    if let Some(plot) = plot {
        heat_map::write(plot, &report)?;
    }
    match args.json {
        true => output::print_json(&report)?,
        false => output::print(&table::end(&report))?,
    }
    match report.trials - report.correct {
        0 => Ok(()),
        wrong => {
            Err(Failure::new(Exit::Failed, format!("{wrong} of {} answers are wrong", report.trials)).into())
        }
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    context: usize,
    trials: usize,
    correct: usize,
    /// The least lead of a right token over the next best; negative when one is wrong.
    margin_min: f32,
    device_peak_bytes: u64,
    plan_device_bytes: u64,
    host_bytes: u64,
    /// Bytes of the whole KV, wherever it lies.
    kv_bytes: u64,
    /// Mean over the haystacks.
    prefill_s: f64,
    cells: Vec<Cell>,
}

impl Report {
    fn new(context: usize, session: &Session, cells: Vec<Cell>) -> Self {
        let (stats, plan) = (session.backend().stats(), session.plan());
        let trials = cells.len();
        Self {
            context,
            trials,
            correct: cells.iter().filter(|c| c.correct).count(),
            margin_min: cells.iter().map(|c| c.margin_min).fold(f32::INFINITY, f32::min),
            device_peak_bytes: stats.device_bytes,
            plan_device_bytes: plan.device_bytes(),
            host_bytes: stats.host_bytes,
            kv_bytes: plan.kv_bytes_per_token() * context as u64,
            // As many cells to each haystack.
            prefill_s: cells.iter().map(|c| c.prefill_s).sum::<f64>() / trials as f64,
            cells,
        }
    }
}

fn haystacks(args: &NiahArgs, words: &Words) -> Result<Vec<Haystack>> {
    let depths = args.depths().map_err(Failure::usage)?;
    let seeds = (0..u64::from(args.seeds)).map(|i| args.seed.wrapping_add(i));
    seeds
        .map(|seed| words.haystack(&Request { context: args.context, depths: depths.clone(), seed }))
        .collect()
}

fn announce(session: &Session) {
    let plan = session.plan();
    let context = plan.knobs().context;
    let kv = Bytes(plan.kv_bytes_per_token() * context as u64);
    let device = Bytes(plan.device_bytes());
    output::remark(&format!("{} tokens of {}: {kv} of KV, a device of {device}", context, plan.spec.name));
}

fn ask(session: &mut Session, haystacks: &[Haystack], words: &Words, json: bool) -> Result<Vec<Cell>> {
    let _cooperative = interrupt::cooperative();
    if !json {
        output::print(table::HEAD)?;
    }
    let mut cells = Vec::new();
    for haystack in haystacks {
        let mut bar = Prefill::new(haystack.ids.len());
        let mut questions = haystack.questions.iter();
        let mut printed = Ok(());
        let asked = niah::run(session, haystack, &mut |event| {
            match event {
                Event::Prefill(progress) => bar.update(&progress),
                Event::Cell(cell) => {
                    let question = questions.next().map(|q| q.ids.as_slice()).unwrap_or_default();
                    if !json {
                        printed = output::print(&table::line(cell, question, words));
                    }
                }
            }
            if printed.is_err() { ControlFlow::Break(()) } else { interrupt::flow() }
        });
        printed?;
        cells.extend(asked?);
    }
    Ok(cells)
}
