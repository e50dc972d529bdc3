//! From flags to a session: request, plan, backend.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use headinfer_core::engine::Session;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{DeviceKind, Memory, Overrides, Plan, PlanError, Request};
use headinfer_core::units::{Bytes, MIB};

use crate::args::{EngineArgs, Environment, HostHeads};
use crate::error::{Exit, Failure};
use crate::machine::{self, Available, Kept};
use crate::model_source::Model;
use crate::{device, output};

/// What a plan that will run here is asked for: as [`request_anywhere`], with no more device memory than the GPU
/// has free, and a remark when that is less than the cap given.
pub(crate) fn request(
    generated: u64,
    device: DeviceKind,
    context: usize,
    engine: &EngineArgs,
    environment: &Environment,
) -> Request {
    let request = request_anywhere(generated, device, context, engine, environment);
    let Some(card) = device::card().filter(|_| device == DeviceKind::Cuda) else { return request };
    let (free, total) = (Bytes(card.free_bytes), Bytes(card.total_bytes));
    if let Some(cap) = engine.gpu_memory.filter(|cap| cap.0 > free.0) {
        let have = format!("of its {total} {} has {free} free", card.name);
        output::remark(&format!(
            "warning: --gpu-memory {cap} cannot be had: {have}, and the plan is made for that"
        ));
    }
    Request { device_budget: request.device_budget.min(free.0), ..request }
}

/// What a plan is asked for, from the flags, the kept figures and the memory of this machine; a GPU need not be
/// here.
///
/// `generated` is the host memory of generated weights, bytes.
pub(crate) fn request_anywhere(
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
    let mut machine = kept.machine(device);
    // The figures kept are for planning where the card is not; where it is, others may hold a part of it.
    if let (DeviceKind::Cuda, Some(card)) = (device, device::card()) {
        budgets.device = card.free_bytes;
        machine.device_overhead = card.context_bytes.unwrap_or(machine.device_overhead);
    }
    Request {
        device,
        context,
        device_budget: engine.gpu_memory.map_or(budgets.device, |b| b.0),
        host_budget: engine.host_memory.map_or(budgets.host, |b| b.0),
        stored: None,
        placement: engine.placement.into(),
        weights: engine.weights.into(),
        overrides: Overrides {
            chunk: engine.chunk,
            tile: engine.tile,
            heads_per_group: engine.heads_per_group,
            host_heads: match engine.host_heads {
                HostHeads::Count(n) => Some(n),
                HostHeads::Auto => None,
            },
            balance_host: engine.host_heads == HostHeads::Auto,
            kv: engine.kv_dtype.into(),
            ..Overrides::default()
        },
        machine,
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
/// When the memory is not there, the weights cannot be used, or the backend cannot be opened.
pub(crate) fn session(
    model: &Model,
    plan: Arc<Plan>,
    engine: &EngineArgs,
    cache: Option<&Path>,
) -> Result<Session> {
    check_room(&plan)?;
    let backend = device::open(plan.clone(), model, engine, cache)?;
    Ok(Session::new(plan, backend))
}

/// A system that promised memory it does not have ends the process that uses it: so what there is decides before.
fn check_room(plan: &Plan) -> Result<(), Failure> {
    let bytes = |memory| plan.layout().bytes(memory);
    let host = bytes(Memory::Host) + plan.store_bytes() + plan.guess_bytes();
    let (need, caps) = match plan.request.device {
        DeviceKind::Cpu => (host + bytes(Memory::Device), "--gpu-memory and --host-memory that sum to"),
        DeviceKind::Cuda => (host, "--host-memory"),
    };
    let Available { bytes: have, cgroup } = machine::available();
    // 0 is a system that does not tell.
    if have == 0 || need <= have {
        return Ok(());
    }
    let (who, more) = match cgroup {
        true => ("the limit of this cgroup leaves", ", or raise the cgroup's limit"),
        false => ("the system has", ""),
    };
    let (need, have) = (Bytes(need), Bytes(have));
    let message = format!("the plan does not fit host memory as it is now: it needs {need}, {who} {have}");
    let hint = format!("give {caps} {}MiB or less, or a shorter --context{more}", have.0 / MIB);
    Err(Failure::new(Exit::DoesNotFit, message).hint(hint))
}
