//! `bench overlap`: one prefill step over a synthetic past, command by command.

use anyhow::Result;
use headinfer_core::backend::Timed;
use headinfer_core::plan::Lane;
use headinfer_core::plan::report::seconds;
use serde::Serialize;
use serde_json::{Value, json};

use super::profile::Shown;
use super::steps::{Bench, random_ids};
use crate::args::{Environment, OverlapArgs};
use crate::error::Failure;
use crate::output;

/// Measures, prints, and writes the trace.
///
/// # Errors
/// When the model cannot be run, the context holds no past, or the trace cannot be written.
pub(crate) fn run(args: &OverlapArgs, environment: &Environment) -> Result<()> {
    let mut bench = Bench::open(&args.measure, environment, |request| request)?;
    let plan = bench.session.plan().clone();
    let (context, chunk) = (args.measure.context, plan.knobs().chunk);
    if context <= chunk {
        let message = format!("a context of {context} is one step of {chunk}: there is no past to fetch");
        return Err(Failure::usage(message).hint("give a larger --context or a smaller --chunk").into());
    }
    bench.session.assume_past(context - chunk, args.measure.seed)?;
    let ids = random_ids(chunk, plan.spec.vocab, args.measure.seed);
    bench.warm(&ids)?;
    let measured = bench.step(&ids, 1)?;
    let timeline = bench.session.backend().timeline();
    if let Some(path) = &args.trace {
        output::write_file(path, trace(timeline).to_string().as_bytes())?;
    }
    let report = Report {
        context,
        rows: chunk,
        seconds: measured.seconds,
        copy_hidden_fraction: measured.hidden(),
        link_gb_s: measured.link_bytes_s() / 1e9,
        bytes_in: measured.to_device.bytes,
        bytes_out: measured.to_host.bytes,
        profile: measured.profile.shown(measured.seconds),
    };
    if args.measure.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    context: usize,
    /// New tokens of the step.
    rows: usize,
    seconds: f64,
    copy_hidden_fraction: f64,
    link_gb_s: f64,
    /// Copied to the device and from it.
    bytes_in: u64,
    bytes_out: u64,
    #[serde(flatten)]
    profile: Shown,
}

impl Report {
    fn text(&self) -> String {
        let past = self.context - self.rows;
        let mut text = format!("a step of {} tokens after {past}: {}\n", self.rows, seconds(self.seconds));
        text += &self.profile.lanes_text();
        let hidden = 100.0 * self.copy_hidden_fraction;
        text += &match self.link_gb_s {
            0.0 => "nothing was copied\n".to_owned(),
            rate => format!("copies at {rate:.1} GB/s, {hidden:.1} % of their time behind arithmetic\n"),
        };
        text
    }
}

/// Complete events of Chrome's trace format: one thread per lane, times in microseconds.
fn trace(timeline: &[Timed]) -> Value {
    let names = Lane::ALL.iter().map(|lane| {
        let name = json!({"name": lane.name()});
        json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": lane.index(), "args": name})
    });
    let events = timeline.iter().map(|t| {
        let (start, length) = (t.start.as_secs_f64() * 1e6, (t.end - t.start).as_secs_f64() * 1e6);
        json!({"ph": "X", "name": t.name, "pid": 1, "tid": t.lane.index(), "ts": start, "dur": length,
               "args": {"command": t.command}})
    });
    json!({"displayTimeUnit": "ms", "traceEvents": names.chain(events).collect::<Vec<_>>()})
}
