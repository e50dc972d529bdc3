//! What the CUDA device reaches, as it is printed and kept.

use std::path::Path;

use anyhow::{Context, Result};
use headinfer_core::model::known::known_shape;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{DeviceKind, Machine, Overrides, PlacementMode, Plan, Request, WeightsMode};
use headinfer_core::units::{GIB, MIB};
use headinfer_cuda::measure::Rates;
use serde::Serialize;

use crate::{date, device};

/// A context takes less; what is more belongs to other processes.
const OVERHEAD_MAX: u64 = GIB;

/// The rates of a plan; memory to measure on is freed before this returns.
///
/// # Errors
/// When the device cannot be opened, has no memory, or fails.
pub(crate) fn rates(plan: &Plan, cache: Option<&Path>) -> Result<Rates> {
    Ok(Rates::measure(plan, &device::cuda_options(cache))?)
}

/// The rates that are kept for the planner: at the shapes of Llama-3-8B, offloaded, at 128 Ki tokens.
///
/// # Errors
/// As [`rates`].
pub(crate) fn usual_rates(cache: Option<&Path>) -> Result<Rates> {
    let spec = known_shape("llama-3-8b").context("the shape of llama-3-8b is known")?;
    rates(&Plan::new(&spec, &usual_request())?, cache)
}

/// The plan whose chunk and blocks a model's kernels are measured with, or with a chunk of `rows`; it is never run.
///
/// # Errors
/// When the model's shape cannot be planned for.
pub(crate) fn kernels_plan(spec: &ModelSpec, rows: Option<usize>) -> Result<Plan> {
    let usual = usual_request();
    let overrides = Overrides { chunk: rows, ..usual.overrides };
    Ok(Plan::new(spec, &Request { device_budget: 1 << 50, overrides, ..usual })?)
}

fn usual_request() -> Request {
    Request {
        device: DeviceKind::Cuda,
        context: 128 << 10,
        device_budget: 24 * GIB,
        // The plan is measured, not run.
        host_budget: 1 << 50,
        stored: None,
        guesses: false,
        placement: PlacementMode::Offload,
        weights: WeightsMode::Resident,
        // With heads for the CPU, link and CPU are measured together.
        overrides: Overrides { balance_host: true, ..Overrides::default() },
        machine: Machine::default_cuda(),
    }
}

/// As the planner takes them; `host_bytes_s` is what the CPU reads.
pub(crate) fn machine(rates: &Rates, host_bytes_s: f64) -> Machine {
    let overhead = match rates.overhead_bytes {
        bytes if bytes <= OVERHEAD_MAX => bytes.next_multiple_of(16 * MIB),
        _ => Machine::default_cuda().device_overhead,
    };
    let source = format!("measured by headinfer doctor on {}, {}", date::today_text(), rates.device);
    rates.machine(source, host_bytes_s, overhead)
}

/// Rates in the units people read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) device: String,
    /// Prefill over a past in tiles.
    pub(crate) attention_tflops: f64,
    /// Prefill of a chunk over itself, causal.
    pub(crate) own_attention_tflops: f64,
    /// A layer's products.
    pub(crate) gemm_tflops: f64,
    /// To the device.
    pub(crate) link_in_gb_s: f64,
    /// From the device.
    pub(crate) link_out_gb_s: f64,
    /// Each way while both run.
    pub(crate) link_both_gb_s: f64,
    /// To the device while the CPU attends to K and V, and what the CPU reads of them; where the plan has it do so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) link_beside_cpu_gb_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_beside_link_gb_s: Option<f64>,
    /// Of one copy over the link.
    pub(crate) link_copy_bytes: u64,
    /// Read and written.
    pub(crate) device_copy_gb_s: f64,
    /// Device memory taken besides: the context, kernels, other processes.
    pub(crate) overhead_bytes: u64,
}

impl From<&Rates> for Shown {
    fn from(rates: &Rates) -> Self {
        Self {
            device: rates.device.clone(),
            attention_tflops: rates.attention_flops / 1e12,
            own_attention_tflops: rates.own_attention_flops / 1e12,
            gemm_tflops: rates.gemm_flops / 1e12,
            link_in_gb_s: rates.link_in_bytes_s / 1e9,
            link_out_gb_s: rates.link_out_bytes_s / 1e9,
            link_both_gb_s: rates.link_both_bytes_s / 1e9,
            link_beside_cpu_gb_s: rates.together.map(|t| t.link_bytes_s / 1e9),
            cpu_beside_link_gb_s: rates.together.map(|t| t.host_bytes_s / 1e9),
            link_copy_bytes: rates.link_copy_bytes,
            device_copy_gb_s: rates.device_copy_bytes_s / 1e9,
            overhead_bytes: rates.overhead_bytes,
        }
    }
}
