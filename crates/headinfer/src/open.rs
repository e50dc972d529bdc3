//! From flags to a session: request, plan, backend.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use headinfer_core::engine::Session;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{DeviceKind, Overrides, Plan, PlanError, Request};

use crate::args::{EngineArgs, Environment};
use crate::machine::{self, Kept};
use crate::model_source::Model;
use crate::{device, output};

/// What a plan is asked for, from the flags, the kept figures and the memory of this machine.
///
/// `generated` is the host memory of generated weights, bytes.
pub(crate) fn request(
    generated: u64,
    device: DeviceKind,
    context: usize,
    engine: &EngineArgs,
    environment: &Environment,
) -> Request {
    let kept = Kept::load(environment.cache.as_deref());
    let generated = match device {
        DeviceKind::Cpu => generated,
        // Made on the device.
        DeviceKind::Cuda => 0,
    };
    let mut budgets = kept.budgets(device, machine::available_memory().saturating_sub(generated));
    // The figure kept is for planning where the card is not; where it is, others may hold a part of it.
    if let (DeviceKind::Cuda, Some(free)) = (device, device::cuda_free()) {
        budgets.device = free;
    }
    Request {
        device,
        context,
        device_budget: engine.gpu_memory.map_or(budgets.device, |b| b.0),
        host_budget: engine.host_memory.map_or(budgets.host, |b| b.0),
        placement: engine.placement.into(),
        weights: engine.weights.into(),
        overrides: Overrides {
            chunk: engine.chunk,
            tile: engine.tile,
            heads_per_group: engine.heads_per_group,
            ..Overrides::default()
        },
        machine: kept.machine(device),
    }
}

/// The plan of `spec` under `request`. Nothing is allocated, so that what does not fit is refused before any work.
///
/// # Errors
/// When nothing fits, or an override is impossible.
pub(crate) fn plan(spec: &ModelSpec, request: &Request) -> Result<Arc<Plan>, PlanError> {
    let plan = Plan::new(spec, request)?;
    let (context, max) = (request.context, spec.max_position);
    // Beyond its trained length a model still computes, but seldom makes sense.
    if context > max {
        output::remark(&format!(
            "warning: {} was made for {max} tokens, the context is {context}",
            spec.name
        ));
    }
    Ok(Arc::new(plan))
}

/// An empty session of `model` under `plan`; `cache` is the folder for files that can be made again.
///
/// # Errors
/// When the weights cannot be used, or the backend cannot be opened.
pub(crate) fn session(
    model: &Model,
    plan: Arc<Plan>,
    engine: &EngineArgs,
    cache: Option<&Path>,
) -> Result<Session> {
    let backend = device::open(plan.clone(), model, engine, cache)?;
    Ok(Session::new(plan, backend))
}
