//! How far a prefill is, on stderr: a bar on a terminal, a line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use headinfer_core::engine::Progress;
use headinfer_core::plan::report::seconds;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows the progress of one prefill.
pub(crate) struct Prefill {
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Prefill {
    /// Nothing is shown before the first update.
    pub(crate) fn new(tokens: usize) -> Self {
        let visible = std::io::stderr().is_terminal() && !output::is_quiet();
        Self { bar: visible.then(|| bar(tokens)), told: Instant::now() }
    }

    /// Shows `progress`.
    pub(crate) fn update(&mut self, progress: &Progress) {
        let rate = progress.done as f64 / progress.elapsed.as_secs_f64().max(1e-9);
        let left = seconds(progress.remaining.as_secs_f64());
        let end = progress.done == progress.total;
        if let Some(bar) = &self.bar {
            bar.set_position(progress.done as u64);
            bar.set_message(format!("{rate:.0} tok/s, {left} left"));
            if end {
                bar.finish_and_clear();
            }
        } else if !end && self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            let Progress { done, total, .. } = progress;
            output::remark(&format!("prefill {done}/{total} tokens, {rate:.0} tok/s, {left} left"));
        }
    }
}

impl Drop for Prefill {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(tokens: usize) -> ProgressBar {
    const TEMPLATE: &str = "prefill {bar:40} {human_pos}/{human_len} tokens, {msg}";
    let bar = ProgressBar::new(tokens as u64);
    // The template is a constant: should it be wrong, the plain style still shows the bar.
    bar.with_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
