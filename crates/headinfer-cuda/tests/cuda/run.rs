//! Opening the backend for tests, and running single commands of it.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use headinfer_core::backend::Backend;
use headinfer_core::engine::Session;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{
    Command, DeviceKind, Memory, Op, Plan, Request, Role, Schedule, Span, Step, hazard,
};
use headinfer_cuda::{Cuda, CudaOptions, CudaWeights, PrefillKernel, Tiling, probe};

use crate::support::{Draw, request, tiny};

/// Whether there is a GPU to test on. `HEADINFER_CUDA=required` makes its absence a failure.
pub(crate) fn has_gpu() -> bool {
    match probe(0) {
        Ok(_) => {
            keep_context();
            true
        }
        Err(error) => {
            let required = std::env::var("HEADINFER_CUDA").is_ok_and(|v| v == "required");
            assert!(!required, "no CUDA device: {error}");
            eprintln!("skipped: no CUDA device ({error})");
            false
        }
    }
}

/// One backend stays open while tests run: a context that nobody holds is destroyed, and making one takes longer than
/// most tests.
fn keep_context() {
    static KEPT: Mutex<Option<Cuda>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.is_none() {
        let spec = tiny(1, 1, 1, 64);
        let plan = Plan::new(&spec, &request(DeviceKind::Cuda, 256)).expect("the plan fits");
        let cuda = Cuda::open(Arc::new(plan), CudaWeights::Random { seed: 0 }, &options());
        *kept = Some(cuda.expect("the backend opens"));
    }
}

/// Kernels are compiled once for all tests.
pub(crate) fn options() -> CudaOptions {
    let cache_dir: PathBuf = std::env::temp_dir().join("headinfer-cuda-tests");
    CudaOptions { cache_dir: Some(cache_dir), poison: true, ..CudaOptions::default() }
}

/// As [`options`], once for each kernel of prefill attention that the device can run.
pub(crate) fn options_by_kernel(head_dim: usize) -> Vec<CudaOptions> {
    let info = probe(0).expect("has_gpu was asked");
    let portable = PrefillKernel::Portable(Tiling::new(head_dim, info.shared_bytes));
    let mut kernels = vec![info.prefill_kernel(head_dim), portable];
    kernels.dedup();
    kernels.into_iter().map(|kernel| CudaOptions { prefill: Some(kernel), ..options() }).collect()
}

pub(crate) fn open_plan(plan: &Arc<Plan>, weights: &Arc<Weights>, options: &CudaOptions) -> Cuda {
    Cuda::open(plan.clone(), CudaWeights::Loaded(weights.clone()), options).expect("the backend opens")
}

/// A session on memory that starts as NaN.
pub(crate) fn open(
    spec: &ModelSpec,
    weights: &Arc<Weights>,
    request: &Request,
    options: &CudaOptions,
) -> Session {
    let plan = Arc::new(Plan::new(spec, request).expect("the plan fits"));
    let cuda = open_plan(&plan, weights, options);
    Session::new(plan, Box::new(cuda))
}

/// Logits of the last `rows` of `ids`, `[rows * vocab]`.
pub(crate) fn logits(session: &mut Session, ids: &[u32], rows: usize) -> Vec<f32> {
    let mut out = Vec::new();
    let quiet = &mut |_| ControlFlow::Continue(());
    session.score(ids, rows, quiet, &mut |_, logits| out.extend_from_slice(logits)).expect("scores");
    out
}

/// ‖a − b‖ / ‖b‖; NaN counts as infinite.
pub(crate) fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b.powi(2)).sum();
    match (difference / norm.max(f64::MIN_POSITIVE)).sqrt() {
        error if error.is_nan() => f64::INFINITY,
        error => error,
    }
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// One command without waits, run to its end.
pub(crate) fn run_op(cuda: &mut Cuda, plan: &Plan, step: Step, op: &Op, ids: &[u32]) {
    let lane = match op {
        Op::Fetch { .. } | Op::FetchWeights { .. } => headinfer_core::plan::Lane::In,
        Op::Evict { .. } => headinfer_core::plan::Lane::Out,
        Op::AttendHost { .. } => headinfer_core::plan::Lane::Host,
        _ => headinfer_core::plan::Lane::Compute,
    };
    let command = Command { lane, op: op.clone(), waits: Vec::new(), signals: None };
    let schedule = Schedule { step, commands: vec![command], events: 0 };
    assert_eq!(hazard::check(plan, &schedule), []);
    cuda.submit(&schedule, ids).expect("the op runs");
}

/// The ranges of an op with some role, in the op's order.
pub(crate) fn spans(plan: &Plan, step: &Step, op: &Op, role: Role) -> Vec<Span> {
    plan.operands(step, op).as_slice().iter().filter(|o| o.role == role).map(|o| o.span).collect()
}

/// All of the device's memory.
pub(crate) fn everything(cuda: &Cuda, plan: &Plan) -> Vec<u8> {
    let bytes = plan.layout().bytes(Memory::Device);
    cuda.read(Span { memory: Memory::Device, offset: 0, bytes }).expect("the device reads")
}

/// Roughly normal draws, as the bits of bf16.
pub(crate) fn random_bf16(draw: &mut Draw, count: usize, size: f64) -> Vec<u16> {
    let one =
        |draw: &mut Draw| (0..4).map(|_| draw.below(1 << 20) as f64 / f64::from(1 << 20) - 0.5).sum::<f64>();
    (0..count).map(|_| half::bf16::from_f64(one(draw) * 1.7 * size).to_bits()).collect()
}

pub(crate) fn bytes_of(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn bf16_of(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect()
}

pub(crate) fn f32_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
