//! The seam to devices: which kind there is, and a backend of that kind for a plan.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use headinfer_core::backend::Backend;
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::plan::{DeviceKind, Plan};
use headinfer_cuda::{Cuda, CudaError, CudaOptions, CudaWeights, DeviceInfo};

use crate::args::{DeviceChoice, EngineArgs};
use crate::error::{Exit, Failure};
use crate::model_source::Model;
use crate::{machine, output};

/// The kind of device to run on.
///
/// # Errors
/// [`Failure`] when `cuda` is asked for and cannot be had.
pub(crate) fn choose(choice: DeviceChoice) -> Result<DeviceKind> {
    if choice == DeviceChoice::Cpu {
        return Ok(DeviceKind::Cpu);
    }
    match (choice, probe()) {
        (_, Ok(_)) => Ok(DeviceKind::Cuda),
        (DeviceChoice::Auto, Err(why)) => {
            output::remark(&format!("the CPU is used: {}", advised(why)));
            Ok(DeviceKind::Cpu)
        }
        (_, Err(why)) => {
            let exit = if why.is_out_of_memory() { Exit::DoesNotFit } else { Exit::Failed };
            let advice = why.advice().map_or(String::new(), |advice| format!("{advice}, or "));
            let message = format!("no CUDA device can be used: {why}");
            Err(Failure::new(exit, message).hint(format!("{advice}give --device cpu")).into())
        }
    }
}

/// The kind of device to plan for: a card need not be here when it is asked for.
///
/// # Errors
/// None today; as [`choose`].
pub(crate) fn choose_for_plan(choice: DeviceChoice) -> Result<DeviceKind> {
    match choice {
        DeviceChoice::Cuda => Ok(DeviceKind::Cuda),
        _ => choose(choice),
    }
}

/// Opens a backend for `plan` with the weights of `model`; it allocates all it will ever use. `cache` is where
/// compiled kernels are kept.
///
/// # Errors
/// When the weights cannot be used, or the device or the system refuses.
pub(crate) fn open(
    plan: Arc<Plan>,
    model: &Model,
    engine: &EngineArgs,
    cache: Option<&Path>,
) -> Result<Box<dyn Backend>> {
    match plan.request.device {
        DeviceKind::Cpu => {
            let threads = engine.threads.map_or(0, usize::from);
            let options = CpuOptions { threads, ..CpuOptions::default() };
            Ok(Box::new(Cpu::open(plan, model.weights()?, &options)?))
        }
        DeviceKind::Cuda => {
            let weights = match model.seed() {
                Some(seed) => CudaWeights::Random { seed },
                None => CudaWeights::Loaded(model.weights()?),
            };
            let host_threads = engine.threads.map_or(0, usize::from);
            let options = CudaOptions { host_threads, ..cuda_options(cache) };
            Ok(Box::new(Cuda::open(plan, weights, &options)?))
        }
    }
}

/// How the CUDA device is opened; `cache` as for [`open`].
pub(crate) fn cuda_options(cache: Option<&Path>) -> CudaOptions {
    let host_left = Some(machine::available_memory as fn() -> u64);
    CudaOptions { cache_dir: cache.map(|dir| dir.join("kernels")), host_left, ..CudaOptions::default() }
}

/// The CUDA device; `None` when none can be used.
pub(crate) fn card() -> Option<&'static DeviceInfo> {
    probe().as_ref().ok()
}

/// Why no CUDA device can be used, and what to do; `None` when one can.
pub(crate) fn cuda_missing() -> Option<String> {
    probe().as_ref().err().map(advised)
}

fn advised(why: &CudaError) -> String {
    match why.advice() {
        Some(advice) => format!("{why}: {advice}"),
        None => why.to_string(),
    }
}

/// Looking makes a context, which takes a moment: once is enough.
fn probe() -> &'static Result<DeviceInfo, CudaError> {
    static FOUND: OnceLock<Result<DeviceInfo, CudaError>> = OnceLock::new();
    FOUND.get_or_init(|| headinfer_cuda::probe(0))
}
