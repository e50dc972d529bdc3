//! The seam to devices: which kind there is, and a backend of that kind for a plan.

use std::sync::Arc;

use anyhow::Result;
use headinfer_core::backend::Backend;
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::plan::{DeviceKind, Plan};

use crate::args::{DeviceChoice, EngineArgs};
use crate::error::{Exit, Failure};
use crate::model_source::Model;
use crate::output;

/// The kind of device to run on.
///
/// # Errors
/// [`Failure`] when `cuda` is asked for and cannot be had.
pub(crate) fn choose(choice: DeviceChoice) -> Result<DeviceKind> {
    match (choice, cuda_missing()) {
        (DeviceChoice::Cpu, _) => Ok(DeviceKind::Cpu),
        (DeviceChoice::Auto | DeviceChoice::Cuda, None) => Ok(DeviceKind::Cuda),
        (DeviceChoice::Auto, Some(why)) => {
            output::remark(&format!("no CUDA device was found ({why}): the CPU is used"));
            Ok(DeviceKind::Cpu)
        }
        (DeviceChoice::Cuda, Some(why)) => {
            let message = format!("no CUDA device was found: {why}");
            Err(Failure::new(Exit::Failed, message).hint("give --device cpu").into())
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

/// Opens a backend for `plan` with the weights of `model`; it allocates all it will ever use.
///
/// # Errors
/// When the weights cannot be used, or the device or the system refuses.
pub(crate) fn open(plan: Arc<Plan>, model: &Model, engine: &EngineArgs) -> Result<Box<dyn Backend>> {
    match plan.request.device {
        DeviceKind::Cpu => {
            let threads = engine.threads.map_or(0, usize::from);
            let options = CpuOptions { threads, ..CpuOptions::default() };
            Ok(Box::new(Cpu::open(plan, model.weights()?, &options)?))
        }
        DeviceKind::Cuda => Err(Failure::new(Exit::Failed, NO_CUDA).into()),
    }
}

const NO_CUDA: &str = "this build has no CUDA backend";

/// Why no CUDA device can be used; `None` when one can.
fn cuda_missing() -> Option<&'static str> {
    Some(NO_CUDA)
}
