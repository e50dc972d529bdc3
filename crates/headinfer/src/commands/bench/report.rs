//! What `bench prefill` and `bench decode` print.

use std::sync::Arc;

use headinfer_core::backend::Stats;
use headinfer_core::plan::report::seconds;
use headinfer_core::plan::{Plan, Step, WeightPlace};
use headinfer_core::units::Bytes;
use serde::Serialize;

use super::ceilings::{Ceilings, Floor};
use super::profile::Shown;
use super::steps::{Decoded, Measured};
use crate::measure::cuda;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) context: usize,
    /// That `seconds` is for.
    pub(super) tokens: usize,
    pub(super) seconds: f64,
    /// Of the repetitions that `seconds` is the median of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repetitions: Option<Spread>,
    /// Making the past that the tokens come after; absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) past_s: Option<f64>,
    /// Greedy tokens after a prefill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decoded: Option<Decoded>,
    pub(super) tokens_per_s: f64,
    pub(super) floor_s: f64,
    pub(super) ratio_to_floor: f64,
    /// What the floor is made of.
    pub(super) floor: Floor,
    /// What the planner expected by the figures that `doctor` kept, and `seconds` over it; of decoded tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predicted_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predicted_ratio: Option<f64>,
    /// Whose rates the floor uses.
    pub(super) machine: String,
    pub(super) attention_tflops: f64,
    /// Of the multiply-add peak on the CPU, of what the kernel reaches alone on a GPU; both measured in this run.
    pub(super) attention_of_peak: f64,
    #[serde(flatten)]
    pub(super) peaks: Peaks,
    /// K and V read by attention while it ran.
    pub(super) kv_read_gb_s: f64,
    /// Of them, those the CPU read from the host's memory.
    pub(super) host_gb_s: f64,
    /// Attended to by the CPU where it lies, for `tokens`.
    pub(super) bytes_by_cpu: u64,
    /// Share of the time in attention.
    pub(super) attention_fraction: f64,
    /// Copies to the device while they ran, or from it where none went there; 0 when nothing was copied.
    pub(super) link_gb_s: f64,
    pub(super) copy_hidden_fraction: f64,
    /// Copied to the device and from it, for `tokens`.
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) device_peak_bytes: u64,
    pub(super) plan_device_bytes: u64,
    pub(super) host_bytes: u64,
    pub(super) plan_host_bytes: u64,
    pub(super) knobs: Knobs,
    pub(super) logits_hash: String,
    /// Of a prefill, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile: Option<Shown>,
}

/// Least and greatest of some repetitions.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) count: usize,
    pub(super) least_s: f64,
    pub(super) most_s: f64,
}

impl Spread {
    pub(super) fn of(times: &[f64]) -> Self {
        let least_s = times.iter().copied().fold(f64::INFINITY, f64::min);
        Self { count: times.len(), least_s, most_s: times.iter().copied().fold(0.0, f64::max) }
    }
}

/// Ceilings of the device's kind.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Peaks {
    Cpu {
        /// f32 multiply-add peak of all threads: the median of what was measured before, between and after the steps.
        fma_peak_tflops: f64,
        /// Least and largest of the steps.
        attention_of_peak_spread: (f64, f64),
        /// Memory read by all threads, measured as the peak above.
        read_peak_gb_s: f64,
        /// K and V that attention read, median of the steps, least and largest.
        read_of_peak: f64,
        read_of_peak_spread: (f64, f64),
        /// K, V and weights over the time of the whole step.
        step_read_of_peak: f64,
    },
    Cuda {
        ceilings: cuda::Shown,
        /// Copies to the device against copies of a tile alone.
        link_of_peak: f64,
    },
}

/// Decisions of the plan that times depend on.
#[derive(Serialize)]
pub(super) struct Knobs {
    chunk: usize,
    tile: usize,
    heads_per_group: usize,
    ring_slots: usize,
    resident_heads: usize,
    /// Attended to by the CPU in decode.
    host_heads: usize,
    /// Of the model: (layer, KV head) pairs.
    heads: usize,
    /// What K and V on the host are.
    kv_dtype: &'static str,
    weights_streamed: bool,
    kept_layers: usize,
}

impl Report {
    /// Of what was observed, once the backend has ended with `stats`; `floor` is of the steps that `observed.tokens` are.
    pub(super) fn new(
        (plan, stats, ceilings): (Arc<Plan>, Stats, Ceilings),
        observed: &Measured,
        floor: Floor,
    ) -> Self {
        let rate = |amount: f64, s: f64| if s > 0.0 { amount / s } else { 0.0 };
        let (m, k) = (observed, plan.knobs());
        let last = Step { past: k.context - 1, rows: 1, logit_rows: 1 };
        let (flops, read) = (rate(m.attention_flop, m.attention_s), rate(m.host_bytes, m.host_s));
        let peaks = match &ceilings {
            Ceilings::Cpu { attention, kv, step, .. } => Peaks::Cpu {
                fma_peak_tflops: attention.ceiling / 1e12,
                attention_of_peak_spread: attention.spread,
                read_peak_gb_s: kv.ceiling / 1e9,
                read_of_peak: kv.ratio,
                read_of_peak_spread: kv.spread,
                step_read_of_peak: step.ratio,
            },
            Ceilings::Cuda(rates) => Peaks::Cuda {
                ceilings: cuda::Shown::from(rates),
                link_of_peak: rate(m.link_bytes_s(), rates.link_in_bytes_s),
            },
        };
        Self {
            model: plan.spec.name.clone(),
            context: k.context,
            tokens: m.tokens,
            seconds: m.seconds,
            repetitions: None,
            past_s: None,
            decoded: None,
            tokens_per_s: rate(m.tokens as f64, m.seconds),
            floor_s: floor.total_s,
            ratio_to_floor: rate(m.seconds, floor.total_s),
            floor,
            predicted_s: None,
            predicted_ratio: None,
            machine: ceilings.source(),
            attention_tflops: flops / 1e12,
            attention_of_peak: ceilings.attention_share(flops),
            peaks,
            kv_read_gb_s: rate(m.kv_bytes, m.attention_s) / 1e9,
            host_gb_s: read / 1e9,
            bytes_by_cpu: m.host_bytes as u64,
            attention_fraction: rate(m.attention_s, m.seconds),
            link_gb_s: m.link_bytes_s() / 1e9,
            copy_hidden_fraction: m.hidden(),
            bytes_in: m.to_device.bytes,
            bytes_out: m.to_host.bytes,
            device_peak_bytes: stats.device_bytes,
            plan_device_bytes: plan.device_bytes(),
            host_bytes: stats.host_bytes,
            plan_host_bytes: plan.host_bytes(),
            knobs: Knobs {
                chunk: k.chunk,
                tile: k.tile,
                heads_per_group: k.heads_per_group,
                ring_slots: k.ring_slots,
                resident_heads: k.resident_heads,
                host_heads: plan.host_attended_heads(&last),
                heads: plan.spec.layers * plan.spec.kv_heads,
                kv_dtype: k.kv.name(),
                weights_streamed: matches!(k.weights, WeightPlace::Streamed { .. }),
                kept_layers: k.weights.kept(),
            },
            logits_hash: m.logits_hash.clone(),
            profile: None,
        }
    }

    /// With `tokens` in `seconds`, the median of repetitions that were not observed.
    pub(super) fn timed(self, tokens: usize, seconds: f64, repetitions: Spread) -> Self {
        let floor = self.floor_s;
        Self {
            tokens,
            seconds,
            repetitions: Some(repetitions),
            tokens_per_s: tokens as f64 / seconds,
            ratio_to_floor: if floor > 0.0 { seconds / floor } else { 0.0 },
            ..self
        }
    }

    /// With what the planner expected of `seconds`.
    pub(super) fn predicted(self, seconds: f64) -> Self {
        let predicted_ratio = Some(self.seconds / seconds).filter(|ratio| ratio.is_finite());
        Self { predicted_s: Some(seconds), predicted_ratio, ..self }
    }

    /// The lines after the first.
    pub(super) fn text(&self) -> String {
        let percent = |share: f64| 100.0 * share;
        let mut lines = Vec::new();
        if let Some(Spread { count, least_s, most_s }) = self.repetitions {
            lines.push(("median of", format!("{count}, {} to {}", seconds(least_s), seconds(most_s))));
        }
        lines.push(("floor", self.floor_text()));
        if let (Some(predicted_s), Some(ratio)) = (self.predicted_s, self.predicted_ratio) {
            lines.push(("predicted", format!("{}, ratio {ratio:.3}", seconds(predicted_s))));
        }
        lines.push(("attention", self.attention_text()));
        if let Peaks::Cpu { read_peak_gb_s, read_of_peak, step_read_of_peak, .. } = &self.peaks {
            let (share, of_step) = (percent(*read_of_peak), percent(*step_read_of_peak));
            let text = format!(
                "{:.2} GB/s, {share:.0} % of the read bandwidth of {read_peak_gb_s:.1}; with weights, over the step, \
                 {of_step:.0} %",
                self.host_gb_s
            );
            lines.push(("KV read", text));
        } else {
            lines.push(("KV read", self.read_text()));
        }
        lines.push(("copies", self.copies_text()));
        let of = |bytes, planned| format!("{} of {} planned", Bytes(bytes), Bytes(planned));
        lines.push(("device", of(self.device_peak_bytes, self.plan_device_bytes)));
        lines.push(("host", of(self.host_bytes, self.plan_host_bytes)));
        lines.push(("logits", self.logits_hash.clone()));
        if let Some(Decoded { seconds: time, spread: Spread { count, least_s, most_s }, .. }) = &self.decoded
        {
            let spread = format!("{} to {}", seconds(*least_s), seconds(*most_s));
            lines.push((
                "decode",
                format!("{} a token, median of {count} after it, {spread}", seconds(*time)),
            ));
        }
        let lines = lines.iter().map(|(name, text)| format!("  {name:<12}{text}\n"));
        lines.chain(self.profile.iter().map(Shown::text)).collect()
    }

    fn floor_text(&self) -> String {
        let Floor { attention_s, gemm_s, link_s, device_s, .. } = &self.floor;
        format!(
            "{}, ratio {:.3}: attention {} and products {}, link {}, device memory {} ({})",
            seconds(self.floor_s),
            self.ratio_to_floor,
            seconds(*attention_s),
            seconds(*gemm_s),
            seconds(*link_s),
            seconds(*device_s),
            self.machine
        )
    }

    fn read_text(&self) -> String {
        let all = format!("{:.1} GB/s", self.kv_read_gb_s);
        match self.bytes_by_cpu {
            0 => all + " on the device",
            bytes => format!(
                "{all}, of it {} of {} (layer, KV head) pairs by the CPU: {}, {:.1} GB/s while it did",
                self.knobs.host_heads,
                self.knobs.heads,
                Bytes(bytes),
                self.host_gb_s
            ),
        }
    }

    fn attention_text(&self) -> String {
        let peak = match &self.peaks {
            Peaks::Cpu { fma_peak_tflops, .. } => format!("the FMA peak of {:.1}", 1e3 * fma_peak_tflops),
            Peaks::Cuda { ceilings, .. } => {
                format!("the kernel's own {:.0}", 1e3 * ceilings.attention_tflops)
            }
        };
        format!(
            "{:.1} GFLOP/s, {:.0} % of {peak}; {:.0} % of the time",
            1e3 * self.attention_tflops,
            100.0 * self.attention_of_peak,
            100.0 * self.attention_fraction
        )
    }

    fn copies_text(&self) -> String {
        if self.bytes_in + self.bytes_out == 0 {
            return "nothing was copied".to_owned();
        }
        let of_peak = match &self.peaks {
            Peaks::Cuda { ceilings, link_of_peak } => {
                format!(" ({:.0} % of {:.1} alone)", 100.0 * link_of_peak, ceilings.link_in_gb_s)
            }
            Peaks::Cpu { .. } => String::new(),
        };
        format!(
            "{:.1} GB/s{of_peak}, {:.1} % hidden; {} in, {} out",
            self.link_gb_s,
            100.0 * self.copy_hidden_fraction,
            Bytes(self.bytes_in),
            Bytes(self.bytes_out)
        )
    }
}
