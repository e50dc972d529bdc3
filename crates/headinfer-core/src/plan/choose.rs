//! From a budget to decisions: which chunk, tile, group, ring and placement.

use thiserror::Error;

use super::format::KvFormat;
use super::layout::{BLOCK, DECODE_ROWS, Knobs, Layout, SPLIT, STORE_PIECE, WeightPlace};
use super::op::Step;
use super::region::{Memory, RegionId};
use super::why::why;
use super::{Machine, Plan};
use crate::dtype::DType;
use crate::model::spec::ModelSpec;
use crate::store::{self, StoreOptions};
use crate::units::{Bytes, KIB, MIB};

/// What kind of device a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// An arena in host memory plays the device; activations are f32, weights are used where they are mapped.
    Cpu,
    /// A CUDA GPU; activations are bf16.
    Cuda,
}

/// Whether KV heads may stay on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlacementMode {
    /// As many heads as fit stay; the rest is streamed.
    #[default]
    Auto,
    /// All heads stay, or the plan does not fit.
    Resident,
    /// All heads are streamed.
    Offload,
}

/// Where weights may live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightsMode {
    /// In place on the CPU; on a GPU resident if they fit, else streamed.
    #[default]
    Auto,
    /// Copied to the device.
    Resident,
    /// Streamed layer by layer; at most an eighth of the layers stays.
    Stream,
}

/// Decisions taken away from the planner. Impossible ones are refused by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// New tokens per prefill step.
    pub chunk: Option<usize>,
    /// Tokens per tile.
    pub tile: Option<usize>,
    /// KV heads per launch.
    pub heads_per_group: Option<usize>,
    /// Ring slots.
    pub ring_slots: Option<usize>,
    /// (layer, KV head) pairs that never leave the device.
    pub resident_heads: Option<usize>,
    /// (layer, KV head) pairs that the CPU attends to in decode; none without this and `balance_host`.
    pub host_heads: Option<usize>,
    /// As many as keep the CPU and the link equally long at work, step by step, by the machine's rates.
    pub balance_host: bool,
    /// Rows with logits of one step.
    pub logit_rows: Option<usize>,
    /// Layers that stay on the device when weights stream.
    pub kept_layers: Option<usize>,
    /// How the host's store keeps K and V.
    pub kv: KvFormat,
}

/// What a plan is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Kind of device.
    pub device: DeviceKind,
    /// Most tokens in the cache, prompt and output together.
    pub context: usize,
    /// Bytes of device memory the process may use.
    pub device_budget: u64,
    /// Bytes of host memory the plan may allocate, [`Request::stored`]'s and the index of guesses included.
    pub host_budget: u64,
    /// Least tokens of a checkpoint, when a session store keeps the prefill: it holds some of them in host memory.
    pub stored: Option<usize>,
    /// Placement of KV heads.
    pub placement: PlacementMode,
    /// Placement of weights.
    pub weights: WeightsMode,
    /// Fixed decisions.
    pub overrides: Overrides,
    /// Rates of the machine, for the cost model.
    pub machine: Machine,
}

/// Why there is no plan.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PlanError {
    /// The smallest plan needs more than the budget.
    #[error("{what} does not fit: {memory} memory needs {need} of {have} (largest: {largest})")]
    DoesNotFit {
        /// The model and context.
        what: String,
        /// `device` or `host`.
        memory: &'static str,
        /// Bytes of the smallest plan.
        need: Bytes,
        /// The budget.
        have: Bytes,
        /// Largest regions, biggest first.
        largest: String,
        /// What to change.
        hint: String,
        /// Longest context that fits under the same budget; 0 when none does.
        longest: usize,
    },
    /// An override no plan can have.
    #[error("{0}")]
    Override(String),
}

/// Contexts beyond this are refused: offsets and positions stay far from overflow.
pub(super) const CONTEXT_MAX: usize = 1 << 32;
const RING_SLOTS: usize = 3;
/// More would only hold what waits; with the longest tiles their bytes are still far from the end of 64 bits.
const RING_SLOTS_MAX: usize = 1 << 6;
/// One block of weights is used while the next is fetched.
const WEIGHT_SLOTS: usize = 2;
/// Who asks for streamed weights wants the device for something else: of this many layers one may stay.
pub(super) const KEPT_OF: usize = 8;
const LOGIT_ROWS: usize = 16;
const LEVELS: u32 = 16;

impl Plan {
    /// Decides everything and lays it out.
    ///
    /// # Errors
    /// [`PlanError`] when nothing fits or an override is impossible.
    pub fn new(spec: &ModelSpec, request: &Request) -> Result<Plan, PlanError> {
        check_overrides(spec, request)?;
        match choose(spec, request) {
            Some(plan) => Ok(Plan { why: why(&plan), ..plan }),
            None => Err(does_not_fit(spec, request)),
        }
    }

    /// Bytes of device memory the process will use: all regions and the driver's own.
    pub fn device_bytes(&self) -> u64 {
        self.layout().bytes(Memory::Device) + self.request.machine.device_overhead
    }

    /// Bytes of device memory that hold K and V.
    pub fn device_kv_bytes(&self) -> u64 {
        let plain = [RegionId::KvNew, RegionId::Ring, RegionId::ResidentKv];
        let coded = [RegionId::PackedNew, RegionId::OpenKv, RegionId::Unpacked];
        plain.iter().chain(&coded).map(|id| self.layout().region_bytes(*id)).sum()
    }

    /// Bytes of host memory the plan allocates, mapped weights and the session store not counted.
    pub fn host_bytes(&self) -> u64 {
        self.layout().bytes(Memory::Host)
    }

    /// Bytes of host memory that a session store takes beside the plan's; 0 without one.
    pub fn store_bytes(&self) -> u64 {
        store_bytes(&self.spec, &self.request, self.knobs().chunk)
    }

    /// Bytes of host memory, beside the plan's regions, that the engine's index of guesses takes at most: by then the
    /// text is as long as the context.
    pub fn guess_bytes(&self) -> u64 {
        guess_bytes(self.request.context)
    }

    /// Longest context that fits `request` with everything else unchanged; 0 when none does.
    pub fn longest_context(spec: &ModelSpec, request: &Request) -> usize {
        let fits = |context: usize| {
            let request = Request { context, ..request.clone() };
            check_overrides(spec, &request).is_ok() && choose(spec, &request).is_some()
        };
        let (mut low, mut high) = (0, CONTEXT_MAX / SPLIT);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle * SPLIT) { low = middle } else { high = middle - 1 }
        }
        low * SPLIT
    }
}

fn choose(spec: &ModelSpec, request: &Request) -> Option<Plan> {
    let all = spec.layers * spec.kv_heads;
    for weights in weight_places(request) {
        if may_be_all_resident(request, all) {
            for level in 0..4 {
                let mut knobs = knobs(spec, request, weights, level);
                knobs.resident_heads = all;
                knobs.heads_per_group = request.overrides.heads_per_group.unwrap_or(spec.kv_heads);
                if let Some(plan) = fit(spec, request, knobs) {
                    return Some(keep_layers(spec, request, plan));
                }
            }
        }
        if request.placement == PlacementMode::Resident {
            continue;
        }
        for level in 0..LEVELS {
            if let Some(plan) = fit(spec, request, knobs(spec, request, weights, level)) {
                let plan = keep_layers(spec, request, plan);
                return Some(balance(spec, request, grow(spec, request, plan)));
            }
        }
    }
    None
}

fn may_be_all_resident(request: &Request, all: usize) -> bool {
    let asked = request.overrides.resident_heads;
    let no_host = request.overrides.host_heads.unwrap_or(0) == 0;
    no_host && request.placement != PlacementMode::Offload && asked.is_none_or(|n| n == all)
}

fn weight_places(request: &Request) -> Vec<WeightPlace> {
    let kept = request.overrides.kept_layers.unwrap_or(0);
    let streamed = WeightPlace::Streamed { slots: WEIGHT_SLOTS, kept };
    match (request.weights, request.device) {
        (WeightsMode::Auto, DeviceKind::Cpu) => vec![WeightPlace::InPlace],
        (WeightsMode::Auto, DeviceKind::Cuda) => vec![WeightPlace::Resident, streamed],
        (WeightsMode::Resident, _) => vec![WeightPlace::Resident],
        (WeightsMode::Stream, _) => vec![streamed],
    }
}

/// The offloading plan at one level of thrift: each level halves the chunk and the ring slots.
fn knobs(spec: &ModelSpec, request: &Request, weights: WeightPlace, level: u32) -> Knobs {
    let o = &request.overrides;
    let (chunk, [tile_bytes, slot_bytes], mlp_rows, activation) = match request.device {
        DeviceKind::Cpu => (512, [4 * MIB; 2], 256, DType::F32),
        // Two long tiles a launch: what passes between launches, and the state they carry, is then below a percent.
        DeviceKind::Cuda => (request.machine.hiding_chunk(spec), [32 * MIB, 64 * MIB], 1024, DType::Bf16),
    };
    let chunk = o.chunk.unwrap_or((chunk >> level).max(16)).min(request.context);
    let tokens = |bytes: u64| (bytes >> level) as usize / (4 * spec.head_dim);
    let unit =
        if request.context > STORE_PIECE && tokens(tile_bytes) >= STORE_PIECE { STORE_PIECE } else { SPLIT };
    let store = request.context.next_multiple_of(unit);
    let tile = o.tile.unwrap_or((tokens(tile_bytes) / unit * unit).clamp(unit, store));
    let group = o.heads_per_group.unwrap_or((tokens(slot_bytes) / tile).clamp(1, spec.kv_heads));
    Knobs {
        device: request.device,
        context: request.context,
        chunk,
        tile,
        heads_per_group: group,
        ring_slots: o.ring_slots.unwrap_or(RING_SLOTS),
        resident_heads: o.resident_heads.unwrap_or(0),
        host_heads: o.host_heads.unwrap_or(0),
        logit_rows: o.logit_rows.unwrap_or(LOGIT_ROWS).min(chunk),
        mlp_rows: chunk.min(mlp_rows),
        weights,
        activation,
        kv: o.kv,
    }
}

fn fit(spec: &ModelSpec, request: &Request, knobs: Knobs) -> Option<Plan> {
    let layout = Layout::new(spec, knobs);
    let device = layout.bytes(Memory::Device) + request.machine.device_overhead;
    let fits = device <= request.device_budget && host_need(spec, request, &layout) <= request.host_budget;
    // When the host is too small, heads on the device relieve it.
    let fits = fits || device <= request.device_budget && relievable(spec, request, &layout, device);
    fits.then(|| Plan { spec: spec.clone(), request: request.clone(), layout, why: Vec::new() })
}

/// What the plan allocates, and what the session store and the index of guesses take beside it.
fn host_need(spec: &ModelSpec, request: &Request, layout: &Layout) -> u64 {
    let beside = store_bytes(spec, request, layout.knobs.chunk) + guess_bytes(request.context);
    layout.bytes(Memory::Host) + beside
}

/// Tables at most three quarters full and a list that double as they grow (`engine/guess/lookup.rs`), and their least sizes.
fn guess_bytes(context: usize) -> u64 {
    40 * context as u64 + KIB
}

fn store_bytes(spec: &ModelSpec, request: &Request, chunk: usize) -> u64 {
    let options = |interval_min| StoreOptions { interval_min, ..StoreOptions::default() };
    // A file that cannot be is refused when the store is opened.
    let bytes = |interval_min| store::buffer_bytes(spec, chunk, &options(interval_min)).unwrap_or(0);
    request.stored.map_or(0, bytes)
}

fn relievable(spec: &ModelSpec, request: &Request, layout: &Layout, device: u64) -> bool {
    let over = host_need(spec, request, layout).saturating_sub(request.host_budget);
    let free = free_heads(spec, request, layout, device);
    may_keep_heads(request) && over <= free as u64 * head_store_bytes(spec, layout)
}

/// Bytes of one head's store on the host.
fn head_store_bytes(spec: &ModelSpec, layout: &Layout) -> u64 {
    layout.head_rows_bytes(layout.store_rows(), spec.head_dim)
}

fn may_keep_heads(request: &Request) -> bool {
    request.placement == PlacementMode::Auto && request.overrides.resident_heads.is_none()
}

/// Heads that the rest of the device budget holds.
fn free_heads(spec: &ModelSpec, request: &Request, layout: &Layout, device: u64) -> usize {
    let per_head = layout.resident_rows() * 4 * spec.head_dim as u64;
    let most = spec.layers * spec.kv_heads - request.overrides.host_heads.unwrap_or(0);
    ((request.device_budget.saturating_sub(device)) / per_head.max(1)).min(most as u64) as usize
}

/// Spends what is left of the device budget on layers that need not be fetched, before heads: a byte of them is saved
/// in every step, however short the past. An even share of streamed ones to each slot lets the next step's first
/// layer come beside this step's last.
fn keep_layers(spec: &ModelSpec, request: &Request, plan: Plan) -> Plan {
    let WeightPlace::Streamed { slots, .. } = plan.knobs().weights else { return plan };
    if request.overrides.kept_layers.is_some() {
        return plan;
    }
    let most = match request.weights {
        WeightsMode::Stream => spec.layers / KEPT_OF,
        WeightsMode::Auto | WeightsMode::Resident => spec.layers - 1,
    };
    let left = request.device_budget.saturating_sub(plan.device_bytes());
    let room = left / plan.layout().layer_weight_bytes().max(1);
    (1..=most.min(room as usize))
        .rev()
        .filter(|kept| (spec.layers - kept).is_multiple_of(slots))
        .map(|kept| Knobs { weights: WeightPlace::Streamed { slots, kept }, ..plan.knobs().clone() })
        .find_map(|knobs| fit(spec, request, knobs))
        .unwrap_or(plan)
}

/// Spends what is left of the device budget on resident heads.
fn grow(spec: &ModelSpec, request: &Request, plan: Plan) -> Plan {
    if !may_keep_heads(request) {
        return plan;
    }
    let free = free_heads(spec, request, plan.layout(), plan.device_bytes());
    (0..=free)
        .rev()
        .take(8)
        .find_map(|n| fit(spec, request, Knobs { resident_heads: n, ..plan.knobs().clone() }))
        .unwrap_or(plan)
}

/// Gives heads that are left on the host to the CPU, as many as it ever takes.
fn balance(spec: &ModelSpec, request: &Request, plan: Plan) -> Plan {
    if !request.overrides.balance_host || request.overrides.host_heads.is_some() {
        return plan;
    }
    let most = |rows| plan.balanced_host_heads(&Step { past: request.context - 1, rows, logit_rows: 1 });
    let host_heads = (1..=DECODE_ROWS).map(most).max().unwrap_or(0);
    fit(spec, request, Knobs { host_heads, ..plan.knobs().clone() }).unwrap_or(plan)
}

fn check_overrides(spec: &ModelSpec, request: &Request) -> Result<(), PlanError> {
    let o = &request.overrides;
    let all = spec.layers * spec.kv_heads;
    let refuse = |text: String| Err(PlanError::Override(text));
    if request.context == 0 || request.context > CONTEXT_MAX {
        return refuse(format!("--context must be 1..={CONTEXT_MAX}, not {}", request.context));
    }
    if let Some(tile) = o.tile.filter(|t| *t == 0 || t % SPLIT != 0 || *t > CONTEXT_MAX) {
        return refuse(format!("--tile must be a multiple of {SPLIT}, not {tile}"));
    }
    if o.chunk == Some(0) || o.ring_slots == Some(0) || o.logit_rows == Some(0) {
        return refuse("--chunk, ring slots and logit rows must be at least 1".into());
    }
    if let Some(n) = o.ring_slots.filter(|n| *n > RING_SLOTS_MAX) {
        return refuse(format!("ring slots must be 1..={RING_SLOTS_MAX}, not {n}"));
    }
    if let Some(n) = o.heads_per_group.filter(|n| *n == 0 || *n > spec.kv_heads) {
        return refuse(format!("--heads-per-group must be 1..={} for this model, not {n}", spec.kv_heads));
    }
    if let Some(n) = o.host_heads.filter(|n| *n > all) {
        return refuse(format!("--host-heads must be 0..={all} for this model, not {n}"));
    }
    if let Some(n) = o.kept_layers.filter(|n| *n >= spec.layers) {
        return refuse(format!(
            "of {} layers fewer than all are kept when weights stream, not {n}",
            spec.layers
        ));
    }
    let kept = o.resident_heads.unwrap_or(0).checked_add(o.host_heads.unwrap_or(0));
    if kept.is_none_or(|n| n > all) {
        return refuse(format!("resident and host heads exceed the model's {all} (layer, KV head) pairs"));
    }
    debug_assert!(SPLIT.is_multiple_of(BLOCK));
    Ok(())
}

fn does_not_fit(spec: &ModelSpec, request: &Request) -> PlanError {
    let least = |weights| {
        let mut least = knobs(spec, request, weights, LEVELS - 1);
        if request.placement == PlacementMode::Resident {
            least.resident_heads = spec.layers * spec.kv_heads;
        }
        Layout::new(spec, least)
    };
    let on_device = |layout: &Layout| layout.bytes(Memory::Device) + request.machine.device_overhead;
    // Weights that stream take host memory: they help only where the device is what is short.
    let layouts: Vec<_> = weight_places(request).into_iter().map(least).collect();
    let fitting = layouts.iter().find(|layout| on_device(layout) <= request.device_budget);
    let Some(layout) = fitting.or(layouts.last()) else { unreachable!("weights have a place") };
    let device = on_device(layout);
    let relief = match may_keep_heads(request) && fitting.is_some() {
        true => free_heads(spec, request, layout, device) as u64 * head_store_bytes(spec, layout),
        false => 0,
    };
    let (memory, name, need, have) = match fitting {
        None => (Memory::Device, "device", device, request.device_budget),
        Some(_) => {
            let need = host_need(spec, request, layout).saturating_sub(relief);
            (Memory::Host, "host", need, request.host_budget)
        }
    };
    let mut largest: Vec<_> = layout.regions().iter().filter(|r| r.span.memory == memory).collect();
    largest.sort_by_key(|r| std::cmp::Reverse(r.span.bytes));
    let largest: Vec<_> =
        largest.iter().take(3).map(|r| format!("{} {}", r.name, Bytes(r.span.bytes))).collect();
    let longest = Plan::longest_context(spec, request);
    PlanError::DoesNotFit {
        what: format!("{} at {} tokens", spec.name, request.context),
        memory: name,
        need: Bytes(need),
        have: Bytes(have),
        largest: largest.join(", "),
        hint: hint(request, name, need, longest),
        longest,
    }
}

fn hint(request: &Request, memory: &str, need: u64, longest: usize) -> String {
    let mut ways = vec![match memory {
        "device" => format!("--gpu-memory {}MiB", need.div_ceil(MIB)),
        _ => format!("--host-memory {}MiB", need.div_ceil(MIB)),
    }];
    if request.placement == PlacementMode::Resident {
        ways.push("--placement offload".into());
    }
    if memory == "device" && request.weights == WeightsMode::Resident {
        ways.push("--weights stream".into());
    }
    if request.overrides.chunk.is_some_and(|c| c > 16) && memory == "device" {
        ways.push("a smaller --chunk".into());
    }
    if longest > 0 {
        ways.push(format!("--context {longest} (the longest that fits)"));
    }
    format!("give {}", ways.join(", or "))
}
