//! From flags to a session: request, plan, backend.

use std::sync::Arc;

use anyhow::Result;
use headinfer_core::engine::Session;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{DeviceKind, Overrides, Plan, Request};

use crate::args::{EngineArgs, Environment};
use crate::machine::{self, Kept};
use crate::model_source::{Model, ModelSource};
use crate::{device, output};

/// What a plan is asked for, from the flags, the kept figures and the memory of this machine.
pub(crate) fn request(
    source: &ModelSource,
    spec: &ModelSpec,
    device: DeviceKind,
    context: usize,
    engine: &EngineArgs,
    environment: &Environment,
) -> Request {
    let kept = Kept::load(environment.cache.as_deref());
    let generated = match device {
        DeviceKind::Cpu => source.generated_bytes(spec),
        // Made on the device.
        DeviceKind::Cuda => 0,
    };
    let budgets = kept.budgets(device, machine::available_memory().saturating_sub(generated));
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

/// A session of `model` under `request`.
///
/// # Errors
/// When nothing fits, or the backend cannot be opened.
pub(crate) fn session(model: &Model, request: &Request, engine: &EngineArgs) -> Result<Session> {
    let plan = Arc::new(Plan::new(&model.spec, request)?);
    warn_of_length(&model.spec, request.context);
    let backend = device::open(plan.clone(), model.weights.clone(), engine)?;
    Ok(Session::new(plan, backend))
}

/// Beyond its trained length a model still computes, but seldom makes sense.
pub(crate) fn warn_of_length(spec: &ModelSpec, context: usize) {
    if context > spec.max_position {
        let (name, max) = (&spec.name, spec.max_position);
        output::remark(&format!("warning: {name} was made for {max} tokens, the context is {context}"));
    }
}
