//! Bytes and FLOP of every command, and the floors they imply: no schedule can be faster than its slowest lane.

use serde::{Deserialize, Serialize};

use super::Plan;
use super::format::UNIT;
use super::op::{Heads, Lane, Op, Step};
use super::region::RegionId;
use super::role::{Access, Operand, Role};
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

/// What the host's store holds of K and V.
const STORED: [Role; 3] = [Role::Key, Role::Value, Role::Units];

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
            Op::Project { layer } => {
                let mut cost = gemm(rows, h * (spec.q_dim() + 2 * spec.kv_dim()) as f64);
                // Open rows are read and written.
                let heads = spec.kv_heads - self.layout().resident(layer).len();
                cost.device_bytes += (2 * heads * self.open_rows(step.past)) as f64 * row_bytes(spec);
                cost
            }
            Op::OutProject { .. } => gemm(rows, h * spec.q_dim() as f64),
            Op::Mlp { start, end, .. } => {
                let mut cost = gemm((end - start) as f64, 3.0 * h * i);
                // Counted once per layer: the blocks of a step share the weights while they are hot.
                cost.device_bytes *= if start == 0 { 1.0 } else { 0.0 };
                cost
            }
            Op::Logits { start, end } => gemm(step.logit_rows as f64, h * (end - start) as f64),
            Op::Pack { .. } | Op::Unpack { .. } => {
                Cost { device_bytes: self.bytes_moved(step, op), ..Cost::default() }
            }
            Op::Evict { .. } => Cost { out_bytes: self.bytes_of(step, op, &STORED), ..Cost::default() },
            Op::Fetch { .. } => Cost { in_bytes: self.bytes_of(step, op, &STORED), ..Cost::default() },
            Op::Attend { layer, heads, part, .. } => {
                let mut seen = pairs(spec, step, layer, self.past_rows(step, part));
                if part.has_own() {
                    seen += pairs(spec, step, layer, step.past..step.past + step.rows);
                }
                let kv = [Role::Key, Role::Value, Role::OwnKey, Role::OwnValue];
                Cost { device_bytes: self.bytes_of(step, op, &kv), ..attention(spec, heads, seen) }
            }
            Op::AttendHost { layer, heads } => {
                let stored = step.past - self.open_rows(step.past);
                let host_bytes = self.bytes_of(step, op, &STORED);
                let attended = attention(spec, heads, pairs(spec, step, layer, 0..stored)).attention_flop;
                let host_flop = attended + self.decode_flop(host_bytes);
                Cost { host_bytes, host_flop, ..Cost::default() }
            }
        }
    }

    /// Work of a step, from shapes alone: what summing [`Plan::command_cost`] over its schedule gives, without
    /// making the schedule.
    pub fn step_cost(&self, step: &Step) -> Cost {
        let spec = &self.spec;
        let mut total = Cost::default();
        let row = row_bytes(spec);
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
            let open = if past > 0 { self.open_rows(step.past) } else { 0 };
            let open = pairs(spec, step, layer, step.past - open..step.past);
            let cpu = by_cpu / spec.kv_heads as f64;
            let (seen, open) = (attention(spec, all, seen), attention(spec, all, open));
            total.attention_flop += seen.attention_flop * (1.0 - cpu) + open.attention_flop * cpu;
            total.host_flop += (seen.attention_flop - open.attention_flop) * cpu;
            let at_own = on_host * step.rows as f64 + (on_host - by_cpu) * past as f64;
            total.device_bytes += (resident * (step.past + step.rows) as f64 + at_own) * row;
            total += match self.coded() {
                true => self.coded_copies(step, layer, (on_host, by_cpu)),
                false => {
                    let own = if past > 0 { step.split_end() - step.past } else { 0 };
                    Cost {
                        out_bytes: on_host * step.rows as f64 * row,
                        in_bytes: (on_host - by_cpu) * past as f64 * row,
                        host_bytes: by_cpu * (past + own) as f64 * row,
                        ..Cost::default()
                    }
                }
            };
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

    /// What a step moves of a layer's KV where the store is coded, the projection's copy of open rows not counted, with
    /// so many heads on the host, and of these attended to by the CPU.
    fn coded_copies(&self, step: &Step, layer: usize, (on_host, by_cpu): (f64, f64)) -> Cost {
        let (row, open) = (row_bytes(&self.spec), self.open_rows(step.past));
        let unit = (2 * self.knobs().kv.half_bytes(self.spec.head_dim)) as f64;
        let new = self.new_units(step).len();
        let left = if new > 0 { (step.past + step.rows) % UNIT } else { step.rows };
        let packed = new as f64 * (UNIT as f64 * row + unit) + (2 * left) as f64 * row;
        let past = self.visible_past(step, layer);
        let units = past / UNIT;
        // Open rows go behind those of a tile that was fetched.
        let last = self.visible_tiles(step, layer).last();
        let behind = last.filter(|tile| !self.stored_rows(step, *tile).is_empty()).map_or(0, |_| open);
        let unpacked = units as f64 * (UNIT as f64 * row + unit) + (2 * behind) as f64 * row;
        let seen = if past > 0 { open } else { 0 };
        let streamed = on_host - by_cpu;
        Cost {
            device_bytes: on_host * packed + streamed * unpacked + by_cpu * seen as f64 * row,
            out_bytes: on_host * new as f64 * unit,
            in_bytes: streamed * units as f64 * unit,
            host_bytes: by_cpu * units as f64 * unit,
            host_flop: self.decode_flop(by_cpu * units as f64 * unit),
            ..Cost::default()
        }
    }

    /// FLOP that decoding so many bytes of a coded store takes the CPU.
    fn decode_flop(&self, bytes: f64) -> f64 {
        bytes * self.knobs().kv.decode_flop_a_byte(self.spec.head_dim)
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

    /// Device bytes of K and V that an op reads and writes.
    fn bytes_moved(&self, step: &Step, op: &Op) -> f64 {
        let operands = self.operands(step, op);
        let kv = |o: &&Operand| !matches!(o.role, Role::Planes | Role::PlaneCounts | Role::PackFault);
        operands.as_slice().iter().filter(kv).map(|o| o.span.bytes as f64).sum()
    }

    fn bytes_of(&self, step: &Step, op: &Op, roles: &[Role]) -> f64 {
        let operands = self.operands(step, op);
        let counted =
            operands.as_slice().iter().filter(|o| roles.contains(&o.role) && o.access == Access::Read);
        counted.map(|o| o.span.bytes as f64).sum()
    }
}

/// Bytes of K and V of a row of a head, as attention reads them.
fn row_bytes(spec: &ModelSpec) -> f64 {
    (spec.head_dim * 4) as f64
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
