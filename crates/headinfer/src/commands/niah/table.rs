//! The answers as a table: one line to each, as they come.

use headinfer_core::niah::Cell;
use headinfer_core::plan::report::seconds;
use headinfer_core::units::Bytes;

use super::Report;
use super::words::Words;

/// First line.
pub(super) const HEAD: &str = "seed  depth  margin  question and answer\n";

/// The line of one answer.
pub(super) fn line(cell: &Cell, question: &[u32], words: &Words) -> String {
    let tokens = |pick: fn(&headinfer_core::niah::Answer) -> u32| {
        words.text(&cell.answers.iter().map(pick).collect::<Vec<_>>())
    };
    let mut line = format!("{:>4}  {:>5.2}  {:>6.2}  ", cell.seed, cell.depth, cell.margin_min);
    line += &format!("{} -> {}", words.text(question), tokens(|a| a.got));
    if !cell.correct {
        line += &format!("  WRONG, not {}", tokens(|a| a.expected));
    }
    line.push('\n');
    line
}

/// What comes after the last line.
pub(super) fn end(report: &Report) -> String {
    let Report { correct, trials, margin_min, .. } = report;
    format!(
        "{correct} of {trials} right, least margin {margin_min:.2}; KV {}, device {} of {} planned, host {}; \
         prefill {}\n",
        Bytes(report.kv_bytes),
        Bytes(report.device_peak_bytes),
        Bytes(report.plan_device_bytes),
        Bytes(report.host_bytes),
        seconds(report.prefill_s),
    )
}
