//! Bytes and FLOP of every command, and the floors they imply: no schedule can be faster than its slowest lane.

use serde::{Deserialize, Serialize};

use super::Plan;
use super::layout::RegionId;
use super::op::{Heads, Lane, Op, Step};
use super::operands::{Access, Role};
use crate::model::spec::ModelSpec;

/// Rates of a machine: measured by `doctor`, or stated defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Where the figures come from.
    pub source: String,
    /// Matrix multiplication at the model's shapes, FLOP/s.
    pub gemm_flops: f64,
    /// Prefill attention, FLOP/s.
    pub attention_flops: f64,
    /// Reading device memory, bytes/s.
    pub device_bytes_s: f64,
    /// Host to device copies (and back), bytes/s.
    pub link_bytes_s: f64,
    /// Reading host memory with all cores, bytes/s.
    pub host_bytes_s: f64,
    /// Device memory the driver takes for itself, bytes.
    pub device_overhead: u64,
    /// What link and CPU reach while both read the host's memory; absent where nobody measured it.
    #[serde(default)]
    pub together: Option<Together>,
}

/// Rates of two that share the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// Host to device copies, bytes/s.
    pub link_bytes_s: f64,
    /// K and V that decode attention of one row reads on all cores but one, bytes/s.
    pub host_bytes_s: f64,
    /// The same at a step of many rows, as FLOP/s.
    pub host_flops: f64,
}

impl Machine {
    /// Stated figures of a 24 GB consumer card on PCIe 4 x16 (RTX 4090 datasheet: 165 TFLOP/s bf16 dense with
    /// f32 accumulation, 1008 GB/s; of these the shares that kernels reach in practice).
    pub fn default_cuda() -> Self {
        Self {
            source: "stated defaults: a 24 GB card on PCIe 4 x16".into(),
            gemm_flops: 140e12,
            attention_flops: 110e12,
            device_bytes_s: 900e9,
            link_bytes_s: 25e9,
            host_bytes_s: 50e9,
            device_overhead: 512 << 20,
            together: None,
        }
    }

    /// Stated figures of one CPU core with AVX2 at 3 GHz, times `cores`, and two channels of DDR5.
    pub fn default_cpu(cores: usize) -> Self {
        let flops = 48e9 * cores as f64;
        Self {
            source: format!("stated defaults: {cores} CPU cores"),
            gemm_flops: flops,
            attention_flops: flops,
            device_bytes_s: 20e9,
            link_bytes_s: 10e9,
            host_bytes_s: 20e9,
            device_overhead: 0,
            together: None,
        }
    }

    /// Tokens of a step that hides its copies, a power of two within [1024, 8192]: those of KV and those of streamed
    /// weights, whether this plan streams any or not, for the chunk is part of the question and placement is not.
    pub fn hiding_chunk(&self, spec: &ModelSpec) -> usize {
        let least = self.kv_hiding_rows(spec).max(self.weight_hiding_rows(spec));
        (least as usize).next_power_of_two().clamp(1024, 8192)
    }

    /// Least rows whose attention hides the copies of the KV it needs: 4·C·g·d FLOP per KV token against 4·d bytes,
    /// doubled for safety.
    pub fn kv_hiding_rows(&self, spec: &ModelSpec) -> f64 {
        2.0 * self.attention_flops / (spec.group() as f64 * self.link_bytes_s)
    }

    /// Least rows whose matrix products hide the copies of the weights they need: 2·C FLOP per weight against its
    /// bytes. Fewer do once attention over a long past helps.
    pub fn weight_hiding_rows(&self, spec: &ModelSpec) -> f64 {
        spec.dtype.bytes() as f64 / 2.0 * self.gemm_flops / self.link_bytes_s
    }
}

/// Work of a command or a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// FLOP of projections and MLP.
    pub gemm_flop: f64,
    /// FLOP of attention.
    pub attention_flop: f64,
    /// Device bytes read by arithmetic: weights and KV.
    pub device_bytes: f64,
    /// Bytes host to device.
    pub in_bytes: f64,
    /// Bytes device to host.
    pub out_bytes: f64,
    /// Host bytes read by CPU attention.
    pub host_bytes: f64,
    /// FLOP of CPU attention.
    pub host_flop: f64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, o: Self) {
        self.gemm_flop += o.gemm_flop;
        self.attention_flop += o.attention_flop;
        self.device_bytes += o.device_bytes;
        self.in_bytes += o.in_bytes;
        self.out_bytes += o.out_bytes;
        self.host_bytes += o.host_bytes;
        self.host_flop += o.host_flop;
    }
}

impl Cost {
    /// Bytes that a lane moves or, for the arithmetic lanes, reads.
    pub fn lane_bytes(&self, lane: Lane) -> f64 {
        match lane {
            Lane::Compute => self.device_bytes,
            Lane::In => self.in_bytes,
            Lane::Out => self.out_bytes,
            Lane::Host => self.host_bytes,
        }
    }

    /// Seconds that no schedule can beat on `machine`: the busiest of arithmetic, device memory, link and CPU.
    pub fn floor_s(&self, machine: &Machine) -> f64 {
        let arithmetic = self.gemm_flop / machine.gemm_flops + self.attention_flop / machine.attention_flops;
        let device = self.device_bytes / machine.device_bytes_s;
        let (link, host) = match machine.together {
            Some(together) if self.host_bytes > 0.0 => {
                let bytes = self.host_bytes / together.host_bytes_s;
                (together.link_bytes_s, bytes.max(self.host_flop / together.host_flops))
            }
            _ => (machine.link_bytes_s, self.host_bytes / machine.host_bytes_s),
        };
        let link = self.in_bytes.max(self.out_bytes) / link;
        arithmetic.max(device).max(link).max(host)
    }
}

impl Plan {
    /// Work of one command.
    pub fn command_cost(&self, step: &Step, op: &Op) -> Cost {
        let spec = &self.spec;
        let (h, i) = (spec.hidden as f64, spec.intermediate as f64);
        let gemm = |rows: f64, weights: f64| Cost {
            gemm_flop: 2.0 * rows * weights,
            device_bytes: weights * spec.dtype.bytes() as f64,
            ..Cost::default()
        };
        let rows = step.rows as f64;
        match *op {
            Op::Norm { .. } | Op::Merge { .. } => Cost::default(),
            Op::Embed => {
                // Rows of an embedding on the host cross the link as they are read.
                let on_host = self.layout().region_bytes(RegionId::HostWeights) > 0;
                let bytes = if on_host { rows * h * spec.dtype.bytes() as f64 } else { 0.0 };
                Cost { in_bytes: bytes, ..Cost::default() }
            }
            Op::FetchWeights { block, part, .. } => {
                let range = self.layout().weight_part(block, part);
                Cost { in_bytes: (range.end - range.start) as f64, ..Cost::default() }
            }
            Op::Project { .. } => gemm(rows, h * (spec.q_dim() + 2 * spec.kv_dim()) as f64),
            Op::OutProject { .. } => gemm(rows, h * spec.q_dim() as f64),
            Op::Mlp { start, end, .. } => {
                let mut cost = gemm((end - start) as f64, 3.0 * h * i);
                // Counted once per layer: the blocks of a step share the weights while they are hot.
                cost.device_bytes *= if start == 0 { 1.0 } else { 0.0 };
                cost
            }
            Op::Logits { start, end } => gemm(step.logit_rows as f64, h * (end - start) as f64),
            Op::Evict { .. } => {
                Cost { out_bytes: self.bytes_of(step, op, &[Role::Key, Role::Value]), ..Cost::default() }
            }
            Op::Fetch { .. } => {
                Cost { in_bytes: self.bytes_of(step, op, &[Role::Key, Role::Value]), ..Cost::default() }
            }
            Op::Attend { layer, heads, part, .. } => {
                let mut seen = pairs(spec, step, layer, self.past_rows(step, part));
                if part.has_own() {
                    seen += pairs(spec, step, layer, step.past..step.past + step.rows);
                }
                let kv = [Role::Key, Role::Value, Role::OwnKey, Role::OwnValue];
                Cost { device_bytes: self.bytes_of(step, op, &kv), ..attention(spec, heads, seen) }
            }
            Op::AttendHost { layer, heads } => Cost {
                host_bytes: self.bytes_of(step, op, &[Role::Key, Role::Value]),
                host_flop: attention(spec, heads, pairs(spec, step, layer, 0..step.past)).attention_flop,
                ..Cost::default()
            },
        }
    }

    /// Work of a step, from shapes alone: what summing [`Plan::command_cost`] over its schedule gives, without
    /// making the schedule.
    pub fn step_cost(&self, step: &Step) -> Cost {
        let spec = &self.spec;
        let mut total = Cost::default();
        let row = (spec.head_dim * 4) as f64;
        for layer in 0..spec.layers {
            total += self.command_cost(step, &Op::Project { layer });
            total += self.command_cost(step, &Op::OutProject { layer });
            total += self.command_cost(step, &Op::Mlp { layer, start: 0, end: step.rows });
            let resident = self.layout().resident(layer).len() as f64;
            let on_host = spec.kv_heads as f64 - resident;
            let by_cpu = self.host_attended(step, layer).len() as f64;
            let past = self.visible_past(step, layer);
            let all = Heads { start: 0, end: spec.kv_heads };
            let own = pairs(spec, step, layer, step.past..step.past + step.rows);
            let seen = pairs(spec, step, layer, 0..step.past);
            total += attention(spec, all, own);
            let (flop, host) = (attention(spec, all, seen).attention_flop, by_cpu / spec.kv_heads as f64);
            total.attention_flop += flop * (1.0 - host);
            total.host_flop += flop * host;
            total.out_bytes += on_host * step.rows as f64 * row;
            total.in_bytes += (on_host - by_cpu) * past as f64 * row;
            let own = if past > 0 { step.split_end() - step.past } else { 0 };
            total.host_bytes += by_cpu * (past + own) as f64 * row;
            let at_own = on_host * step.rows as f64 + (on_host - by_cpu) * past as f64;
            total.device_bytes += (resident * (step.past + step.rows) as f64 + at_own) * row;
        }
        total += self.command_cost(step, &Op::Embed);
        for block in self.weight_fetches(step) {
            total.in_bytes += self.layout().weight_block_bytes(block) as f64;
        }
        if step.logit_rows > 0 {
            total += self.command_cost(step, &Op::Logits { start: 0, end: spec.vocab });
        }
        total
    }

    /// Seconds that no prefill of `tokens` can beat on this plan's machine.
    pub fn prefill_floor_s(&self, tokens: usize) -> f64 {
        let chunk = self.knobs().chunk;
        (0..tokens)
            .step_by(chunk)
            .map(|past| {
                let rows = chunk.min(tokens - past);
                let logit_rows = usize::from(past + rows == tokens);
                self.step_cost(&Step { past, rows, logit_rows }).floor_s(&self.request.machine)
            })
            .sum()
    }

    /// Seconds that no decoded token after `past` can beat on this plan's machine.
    pub fn decode_floor_s(&self, past: usize) -> f64 {
        self.step_cost(&Step { past, rows: 1, logit_rows: 1 }).floor_s(&self.request.machine)
    }

    fn bytes_of(&self, step: &Step, op: &Op, roles: &[Role]) -> f64 {
        let operands = self.operands(step, op);
        let counted =
            operands.as_slice().iter().filter(|o| roles.contains(&o.role) && o.access == Access::Read);
        counted.map(|o| o.span.bytes as f64).sum()
    }
}

fn attention(spec: &ModelSpec, heads: Heads, pairs: f64) -> Cost {
    let flop = 4.0 * (spec.head_dim * spec.group() * heads.len()) as f64 * pairs;
    Cost { attention_flop: flop, ..Cost::default() }
}

/// (query, key) pairs that the mask lets through: keys `range`, queries of the step.
fn pairs(spec: &ModelSpec, step: &Step, layer: usize, range: std::ops::Range<usize>) -> f64 {
    let window = spec.windows[layer];
    if window.is_none() && range.end <= step.past {
        return range.len() as f64 * step.rows as f64;
    }
    let visible = |row: usize| {
        let position = step.past + row;
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        range.end.min(position + 1).saturating_sub(range.start.max(first)) as f64
    };
    (0..step.rows).map(visible).sum()
}
