//! What a report of a failure tells of the work: which tokens were under way, which are done, and where it showed.

use std::collections::VecDeque;

use headinfer_core::plan::{Command, Lane, Op, Step};

use crate::error::CudaError;

/// Steps put on the device, and what is known of their end.
#[derive(Default)]
pub(crate) struct Log {
    /// Steps whose end was not seen, oldest first.
    under_way: VecDeque<Step>,
    /// Tokens of the last step that was seen to end, and those before it.
    finished: usize,
    /// The command that is being put on its lane.
    command: Option<(Lane, Op)>,
}

impl Log {
    /// A step begins.
    pub(crate) fn begin(&mut self, step: Step) {
        self.under_way.push_back(step);
    }

    /// A command is put on its lane, or the last one of a step was.
    pub(crate) fn command(&mut self, command: Option<&Command>) {
        self.command = command.map(|command| (command.lane, command.op.clone()));
    }

    /// All steps but the newest `left` were seen to end.
    pub(crate) fn ended(&mut self, left: usize) {
        while self.under_way.len() > left {
            let step = self.under_way.pop_front();
            self.finished = step.map_or(self.finished, |step| step.past + step.rows);
        }
    }

    /// One line: what failed, what was under way, what is done, and what to do.
    pub(crate) fn report(&self, error: &CudaError) -> String {
        let mut text = "the GPU failed".to_owned();
        if let (Some(first), Some(last)) = (self.under_way.front(), self.under_way.back()) {
            text += &match (first.past, last.past + last.rows - 1) {
                (first, last) if first == last => format!(" at token {first}"),
                (first, last) => format!(" at tokens {first} to {last}"),
            };
        }
        if let Some((lane, op)) = &self.command {
            text += &format!(", seen at {op:?} on lane {}", lane.name());
        }
        text += &format!(": {error}; done before: {} tokens", self.finished);
        if let Some(advice) = error.advice() {
            text += &format!("; {advice}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(past: usize) -> Step {
        Step { past, rows: 16, logit_rows: 0 }
    }

    #[test]
    fn a_report_tells_what_was_under_way_and_what_is_done() {
        let mut log = Log::default();
        let error = CudaError::call("cuStreamSynchronize", "gone".into());
        assert_eq!(
            log.report(&error),
            "the GPU failed: cuStreamSynchronize failed: gone; done before: 0 tokens"
        );
        (0..4).for_each(|i| log.begin(step(16 * i)));
        log.ended(2);
        let op = Op::Mlp { layer: 3, start: 0, end: 16 };
        log.command(Some(&Command { lane: Lane::Compute, op, waits: Vec::new(), signals: None }));
        let text = log.report(&error);
        for part in ["at tokens 32 to 63", "Mlp { layer: 3,", "on lane compute", "done before: 32 tokens"] {
            assert!(text.contains(part), "{text}");
        }
        log.command(None);
        assert!(!log.report(&error).contains("seen at"));
    }
}
