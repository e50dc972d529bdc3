//! A plan as people and programs read it.

use std::fmt::Write as _;

use serde::Serialize;

use super::Plan;
use super::format::KvFormat;
use super::layout::WeightPlace;
use super::op::Step;
use super::region::Memory;
use crate::simulate::decode_s;
use crate::units::Bytes;

/// What `headinfer plan --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// Always true: a plan that does not fit is an error.
    pub fits: bool,
    /// Tokens the cache holds.
    pub context: usize,
    /// Device memory.
    pub device: MemoryReport,
    /// Host memory.
    pub host: MemoryReport,
    /// The KV cache.
    pub kv: KvReport,
    /// Prefill of the whole context.
    pub prefill: PrefillReport,
    /// Decode at the full context.
    pub decode: DecodeReport,
    /// Where weights are read from, and their size.
    pub weights: WeightsReport,
    /// Whose rates the floors use.
    pub machine: String,
}

/// One memory.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// Bytes used.
    pub bytes: u64,
    /// Bytes allowed.
    pub budget: u64,
    /// What they are used for.
    pub regions: Vec<RegionReport>,
}

/// One region.
#[derive(Clone, Debug, Serialize)]
pub struct RegionReport {
    /// What it holds.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// The KV cache.
#[derive(Clone, Debug, Serialize)]
pub struct KvReport {
    /// Over all layers and heads.
    pub bytes_per_token: u64,
    /// Of the whole context.
    pub bytes: u64,
    /// What they are on the host: `bf16`, `bf16-packed`, `int8` or `int4`.
    pub format: &'static str,
    /// Whether what is read back from there is not what was stored.
    pub lossy: bool,
    /// How many times smaller than bf16 that is.
    pub ratio: f64,
    /// Tokens per tile.
    pub tile_tokens: usize,
    /// KV heads per launch.
    pub heads_per_group: usize,
    /// Slots of the ring.
    pub ring_slots: usize,
    /// (layer, KV head) pairs that never leave the device.
    pub resident_heads: usize,
    /// (layer, KV head) pairs that the CPU attends to in decode at the full context.
    pub host_heads: usize,
    /// (layer, KV head) pairs of the model.
    pub heads: usize,
}

/// Prefill.
#[derive(Clone, Debug, Serialize)]
pub struct PrefillReport {
    /// New tokens per step.
    pub chunk: usize,
    /// Least seconds for the whole context.
    pub floor_s: f64,
}

/// Decode.
#[derive(Clone, Debug, Serialize)]
pub struct DecodeReport {
    /// Least seconds per token at the full context.
    pub floor_s_per_token: f64,
    /// Seconds per token that are expected there.
    pub expected_s_per_token: f64,
}

/// Weights.
#[derive(Clone, Debug, Serialize)]
pub struct WeightsReport {
    /// `in place`, `resident` or `streamed`.
    pub place: &'static str,
    /// Layers that stay on the device while others stream.
    pub kept_layers: usize,
    /// All of them.
    pub bytes: u64,
}

impl Plan {
    /// The plan as data.
    pub fn report(&self) -> PlanReport {
        let k = self.knobs();
        let last = Step { past: k.context - 1, rows: 1, logit_rows: 1 };
        PlanReport {
            fits: true,
            context: k.context,
            device: self.memory(Memory::Device),
            host: self.memory(Memory::Host),
            kv: KvReport {
                bytes_per_token: self.kv_bytes_per_token(),
                bytes: self.kv_bytes_per_token() * k.context as u64,
                format: self.format().name(),
                lossy: self.format().quantised().is_some(),
                ratio: self.format().ratio(self.spec.head_dim),
                tile_tokens: k.tile,
                heads_per_group: k.heads_per_group,
                ring_slots: k.ring_slots,
                resident_heads: k.resident_heads,
                host_heads: self.host_attended_heads(&last),
                heads: self.spec.layers * self.spec.kv_heads,
            },
            prefill: PrefillReport { chunk: k.chunk, floor_s: self.prefill_floor_s(k.context) },
            decode: DecodeReport {
                floor_s_per_token: self.decode_floor_s(k.context - 1),
                expected_s_per_token: decode_s(self, last.past),
            },
            weights: WeightsReport {
                place: match k.weights {
                    WeightPlace::InPlace => "in place",
                    WeightPlace::Resident => "resident",
                    WeightPlace::Streamed { .. } => "streamed",
                },
                kept_layers: k.weights.kept(),
                bytes: self.spec.parameters() * self.spec.dtype.bytes() as u64,
            },
            machine: self.request.machine.source.clone(),
        }
    }

    /// What K and V on the host are.
    fn format(&self) -> KvFormat {
        if self.coded() { self.knobs().kv } else { KvFormat::Bf16 }
    }

    fn memory(&self, memory: Memory) -> MemoryReport {
        let regions = self.layout().regions().iter().filter(|r| r.span.memory == memory);
        let mut regions: Vec<_> =
            regions.map(|r| RegionReport { name: r.name.into(), bytes: r.span.bytes }).collect();
        let overhead = self.request.machine.device_overhead;
        let (bytes, budget) = match memory {
            Memory::Device => (self.device_bytes(), self.request.device_budget),
            Memory::Host => {
                let beside = self.store_bytes() + self.guess_bytes();
                (self.host_bytes() + beside, self.request.host_budget)
            }
        };
        if memory == Memory::Host && self.store_bytes() > 0 {
            regions.push(RegionReport { name: "session store".into(), bytes: self.store_bytes() });
        }
        if memory == Memory::Host && self.guess_bytes() > 0 {
            regions.push(RegionReport { name: "index of guesses".into(), bytes: self.guess_bytes() });
        }
        if memory == Memory::Device && overhead > 0 {
            regions.push(RegionReport { name: "driver context".into(), bytes: overhead });
        }
        MemoryReport { bytes, budget, regions }
    }
}

impl PlanReport {
    /// The plan as a table.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (name, memory) in [("device", &self.device), ("host", &self.host)] {
            line(&mut out, format_args!("{name}: {} of {}", Bytes(memory.bytes), Bytes(memory.budget)));
            let mut regions = memory.regions.clone();
            regions.sort_by_key(|r| std::cmp::Reverse(r.bytes));
            for region in regions {
                line(&mut out, format_args!("  {:<26} {:>10}", region.name, Bytes(region.bytes).to_string()));
            }
        }
        let (kv, context) = (&self.kv, self.context);
        line(&mut out, format_args!("weights: {} {}", Bytes(self.weights.bytes), self.weights.place));
        if self.weights.kept_layers > 0 {
            line(&mut out, format_args!("  {} layers stay on the device", self.weights.kept_layers));
        }
        let whole = Bytes(kv.bytes);
        line(&mut out, format_args!("kv: {} B per token, {whole} at {context} tokens", kv.bytes_per_token));
        let (resident, heads) = (kv.resident_heads, kv.heads);
        line(&mut out, format_args!("  {resident} of {heads} (layer, KV head) pairs stay on the device"));
        if resident < heads {
            let (tile, group, slots) = (kv.tile_tokens, kv.heads_per_group, kv.ring_slots);
            line(
                &mut out,
                format_args!(
                    "  the rest streams in tiles of {tile} tokens, {group} head(s) a group, {slots} slots"
                ),
            );
        }
        if kv.ratio > 1.0 {
            let lossy = if kv.lossy { ", lossy: the output is not the exact one" } else { "" };
            line(&mut out, format_args!("  on the host KV {} ({:.2} × smaller{lossy})", kv.format, kv.ratio));
        }
        if kv.host_heads > 0 {
            let n = kv.host_heads;
            line(
                &mut out,
                format_args!("  in decode the CPU attends to {n} of them where they lie, not the GPU"),
            );
        }
        let (chunk, floor) = (self.prefill.chunk, self.prefill.floor_s);
        line(&mut out, format_args!("prefill: chunks of {chunk}, at least {}", seconds(floor)));
        let DecodeReport { floor_s_per_token, expected_s_per_token } = self.decode;
        let (least, expected) = (seconds(floor_s_per_token), seconds(expected_s_per_token));
        line(&mut out, format_args!("decode: about {expected} per token at {context}, at least {least}"));
        line(&mut out, format_args!("rates: {}", self.machine));
        out
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

/// A duration in the unit that reads best.
pub fn seconds(s: f64) -> String {
    match s {
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.1} min", s / 60.0),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}
