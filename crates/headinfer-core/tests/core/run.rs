//! Opening small models on the CPU backend and running them.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use headinfer_core::backend::{Backend, BackendError, Stats, Timed};
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::engine::Session;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{Plan, Request, Schedule, hazard};

/// Runs on the CPU, and refuses a schedule with a hazard.
pub(crate) struct Checked {
    plan: Arc<Plan>,
    inner: Cpu,
}

impl Backend for Checked {
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError> {
        assert_eq!(hazard::check(&self.plan, schedule), []);
        self.inner.submit(schedule, ids)
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        self.inner.logits()
    }

    fn read_rows(&mut self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        self.inner.read_rows(rows, held, to)
    }

    fn write_rows(&mut self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
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

    fn record_timeline(&mut self, on: bool) {
        self.inner.record_timeline(on);
    }

    fn timeline(&self) -> &[Timed] {
        self.inner.timeline()
    }
}

/// A session whose schedules are all checked, on memory that starts as NaN.
pub(crate) fn open(
    spec: &ModelSpec,
    weights: &Arc<Weights>,
    request: &Request,
    options: &CpuOptions,
) -> Session {
    let plan = Arc::new(Plan::new(spec, request).expect("the plan fits"));
    let options = CpuOptions { poison: true, ..options.clone() };
    let inner = Cpu::open(plan.clone(), weights.clone(), &options).expect("the backend opens");
    let stats = inner.stats();
    assert_eq!(stats.device_bytes, plan.device_bytes(), "measured peak = planned peak");
    assert_eq!(stats.host_bytes, plan.host_bytes());
    Session::new(plan.clone(), Box::new(Checked { plan, inner }))
}

/// Logits of the last `rows` of `ids`, `[rows * vocab]`.
pub(crate) fn logits(session: &mut Session, ids: &[u32], rows: usize) -> Vec<f32> {
    let mut out = Vec::new();
    let quiet = &mut |_| ControlFlow::Continue(());
    session.score(ids, rows, quiet, &mut |_, logits| out.extend_from_slice(logits)).expect("scores");
    out
}

/// ‖a − b‖ / ‖b‖; NaN counts as infinite.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    match (difference / norm).sqrt() {
        error if error.is_nan() => f64::INFINITY,
        error => error,
    }
}

/// A folder beside the checkout that a clone does not have.
pub(crate) fn shared(path: &str) -> Option<std::path::PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not here", path.display());
    None
}
