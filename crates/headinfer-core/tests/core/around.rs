//! The CPU backend with something done around its calls: what a test checks, breaks or holds up.

use std::ops::Range;
use std::sync::Arc;

use headinfer_core::backend::{Backend, BackendError, Stats, Timed};
use headinfer_core::cpu::Cpu;
use headinfer_core::plan::Schedule;
use headinfer_core::watch::Watch;

/// What is done; all of it optional.
pub(crate) trait Around: Send {
    /// Before a step. An error is the step's.
    fn before_step(&mut self, _: &mut Cpu, _: &Schedule) -> Result<(), BackendError> {
        Ok(())
    }

    /// Before rows are written. An error is the write's.
    fn before_write(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// What is given as the last step's logits, f32 `[logit_rows, vocab]`.
    fn logits<'a>(&'a mut self, computed: &'a [f32]) -> &'a [f32] {
        computed
    }
}

/// A CPU backend, surrounded.
pub(crate) struct Surrounded<A> {
    pub(crate) inner: Cpu,
    pub(crate) around: A,
}

impl<A: Around> Backend for Surrounded<A> {
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError> {
        self.around.before_step(&mut self.inner, schedule)?;
        self.inner.submit(schedule, ids)
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        Ok(self.around.logits(self.inner.logits()?))
    }

    fn fill_past(&mut self, rows: usize, seed: u64) -> Result<(), BackendError> {
        self.inner.fill_past(rows, seed)
    }

    fn read_rows(&mut self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        self.inner.read_rows(rows, held, to)
    }

    fn write_rows(&mut self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        self.around.before_write()?;
        self.inner.write_rows(rows, from)
    }

    fn numerics(&self) -> Option<String> {
        self.inner.numerics()
    }

    fn rows_alike(&self) -> usize {
        self.inner.rows_alike()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn watch(&self) -> Option<Arc<dyn Watch>> {
        self.inner.watch()
    }

    fn record_timeline(&mut self, on: bool) {
        self.inner.record_timeline(on);
    }

    fn timeline(&self) -> &[Timed] {
        self.inner.timeline()
    }
}
