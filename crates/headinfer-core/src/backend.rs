//! What executes schedules: the seam between the engine and a device.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::plan::{Lane, Schedule};
use crate::watch::Watch;

/// The arithmetic of all backends: raised when a change of it changes a bit of K or V, so that what an older build
/// stored is not continued by a newer one.
pub const NUMERICS: u32 = 3;

/// Executes the steps of one plan. Opening a backend allocates all it will ever use.
pub trait Backend: Send {
    /// Runs one step. `ids` are the step's new tokens, as many as its rows.
    ///
    /// # Errors
    /// [`BackendError`] when the device fails; the backend is unusable after.
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError>;

    /// Logits of the last step, f32 `[logit_rows, vocab]`; waits for it.
    ///
    /// # Errors
    /// [`BackendError`] when the device failed.
    fn logits(&mut self) -> Result<&[f32], BackendError>;

    /// Stores K and V of `rows` tokens drawn from the law of [`SyntheticKv`](crate::model::synthetic::SyntheticKv)
    /// in place of computed ones: for measurements at depth.
    ///
    /// # Errors
    /// [`BackendError`] when the device failed, or cannot do this.
    fn fill_past(&mut self, rows: usize, seed: u64) -> Result<(), BackendError> {
        let _ = seed;
        Err(BackendError(format!("this backend cannot make a synthetic past of {rows} tokens")))
    }

    /// Copies K and V of the tokens `rows` to `to`, bf16 `[layer][kv_head][K | V][rows, head_dim]`, wherever the plan
    /// keeps them; waits for the steps so far. `held` is how many tokens there are, which tells what of a coded store
    /// is open.
    ///
    /// # Errors
    /// [`BackendError`] when the device failed, or cannot do this.
    ///
    /// # Panics
    /// When the rows exceed the context, or `to` has another size.
    fn read_rows(&mut self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        let _ = (held, to);
        Err(BackendError(format!("this backend cannot give away the KV of tokens {rows:?}")))
    }

    /// The other way: K and V of the tokens `rows` become `from`, and there are none after them. Steps after it see
    /// them. All tokens before `rows` must be there; where the store is coded and `rows` start within a unit, this
    /// must be the open one.
    ///
    /// # Errors
    /// As [`Backend::read_rows`].
    ///
    /// # Panics
    /// As [`Backend::read_rows`].
    fn write_rows(&mut self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        let _ = from;
        Err(BackendError(format!("this backend cannot take over the KV of tokens {rows:?}")))
    }

    /// Names all that its bits depend on besides model, ids and chunk: instruction set, device, libraries. K and V
    /// are only exchanged between backends of one name; `None` exchanges them with none.
    fn numerics(&self) -> Option<String> {
        None
    }

    /// Rows up to which a step gives each row the bits, of logits, K and V, that it would have in a step of its own
    /// after those before it; more rows differ by rounding. At most [`DECODE_ROWS`](crate::plan::DECODE_ROWS).
    fn rows_alike(&self) -> usize {
        1
    }

    /// What has been done since the backend was opened.
    fn stats(&self) -> Stats;

    /// Where its lanes are while a step runs; `None` when it cannot tell.
    fn watch(&self) -> Option<Arc<Watch>> {
        None
    }

    /// Keeps (or stops keeping) the start and end of every command of the last step.
    fn record_timeline(&mut self, on: bool);

    /// Commands of the last step with their times, when recorded.
    fn timeline(&self) -> &[Timed];
}

/// A device failed.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct BackendError(pub String);

/// Totals since a backend was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Time each lane was busy, by [`Lane::index`].
    pub busy: [Duration; Lane::ALL.len()],
    /// Bytes each lane moved or (compute, host) read from the KV cache.
    pub bytes: [u64; Lane::ALL.len()],
    /// Bytes of device memory allocated: the measured peak.
    pub device_bytes: u64,
    /// Bytes of host memory allocated by the backend, mapped weights not counted.
    pub host_bytes: u64,
    /// Time in copies, and the part of it during which arithmetic ran too.
    pub copy: Duration,
    /// See `copy`.
    pub copy_hidden: Duration,
}

impl Stats {
    /// Share of copy time hidden behind arithmetic; 1 when nothing was copied.
    pub fn hidden_fraction(&self) -> f64 {
        match self.copy.as_secs_f64() {
            0.0 => 1.0,
            copy => self.copy_hidden.as_secs_f64() / copy,
        }
    }
}

/// One executed command.
#[derive(Clone, Debug)]
pub struct Timed {
    /// Index in the schedule.
    pub command: usize,
    /// Its lane.
    pub lane: Lane,
    /// Its op's name.
    pub name: &'static str,
    /// From the start of the step.
    pub start: Duration,
    /// From the start of the step.
    pub end: Duration,
}

/// Time that copies took, and the part of it during which the compute or host lane was busy.
pub fn copy_overlap(timed: &[Timed]) -> (Duration, Duration) {
    let is_copy = |t: &&Timed| matches!(t.lane, Lane::In | Lane::Out);
    let mut busy: Vec<(Duration, Duration)> =
        timed.iter().filter(|t| !is_copy(t)).map(|t| (t.start, t.end)).collect();
    busy.sort();
    let mut merged: Vec<(Duration, Duration)> = Vec::new();
    for (start, end) in busy {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    let (mut copy, mut hidden) = (Duration::ZERO, Duration::ZERO);
    for t in timed.iter().filter(is_copy) {
        copy += t.end - t.start;
        let first = merged.partition_point(|(_, end)| *end <= t.start);
        for (start, end) in merged[first..].iter().take_while(|(start, _)| *start < t.end) {
            hidden += (*end).min(t.end) - (*start).max(t.start);
        }
    }
    (copy, hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_the_shared_time() {
        let at = |lane, start, end| Timed {
            command: 0,
            lane,
            name: "x",
            start: Duration::from_millis(start),
            end: Duration::from_millis(end),
        };
        let timed = [at(Lane::Compute, 0, 10), at(Lane::Compute, 20, 30), at(Lane::In, 5, 25)];
        let (copy, hidden) = copy_overlap(&timed);
        assert_eq!((copy.as_millis(), hidden.as_millis()), (20, 10));
    }
}
