//! Why a plan is as it is: one sentence per decision, with the numbers it follows from.

use super::choose::{KEPT_OF, WeightsMode};
use super::format::{KvFormat, UNIT};
use super::layout::WeightPlace;
use super::op::Step;
use super::region::RegionId;
use super::{DeviceKind, Plan};
use crate::units::Bytes;

/// The sentences, in the order of the report.
pub(super) fn why(plan: &Plan) -> Vec<String> {
    let mut lines = vec![weights(plan), placement(plan), chunk(plan)];
    if plan.knobs().resident_heads < pairs(plan) {
        lines.extend(ring(plan));
        lines.extend(host(plan));
        lines.extend(coded(plan));
    }
    lines
}

fn pairs(plan: &Plan) -> usize {
    plan.spec.layers * plan.spec.kv_heads
}

fn weights(plan: &Plan) -> String {
    let bytes = Bytes(plan.spec.parameters() * plan.spec.dtype.bytes() as u64);
    match plan.knobs().weights {
        WeightPlace::InPlace => "weights are read where they are: the CPU computes from host memory".into(),
        WeightPlace::Resident => format!("weights stay on the device: {bytes} fit beside what a step needs"),
        WeightPlace::Streamed { slots, kept } => {
            let (layer, layers) = (Bytes(plan.layout().layer_weight_bytes()), plan.spec.layers);
            format!(
                "weights stream, {layer} a layer and the output head in {} blocks through {slots} slots, the embedding \
                 is read from the host: all {bytes} do not fit, or --weights says so; {kept} of {layers} layers stay, \
                 as many as the device has room for{}",
                plan.layout().head_blocks().count(),
                most_kept(plan)
            )
        }
    }
}

/// What bounds the layers that stay, besides room.
fn most_kept(plan: &Plan) -> String {
    match plan.request.weights {
        WeightsMode::Stream => format!(", at most one of {KEPT_OF} where streaming is asked for"),
        WeightsMode::Auto | WeightsMode::Resident => String::new(),
    }
}

fn placement(plan: &Plan) -> String {
    let (kept, all) = (plan.knobs().resident_heads, pairs(plan));
    let whole = Bytes(plan.kv_bytes_per_token() * plan.knobs().context as u64);
    let head = Bytes(plan.layout().resident_rows() * 4 * plan.spec.head_dim as u64);
    let budget = plan.request.device_budget;
    let left = Bytes(budget.saturating_sub(plan.device_bytes()));
    match kept {
        _ if kept == all => format!("every KV head stays on the device: the whole KV of {whole} fits"),
        0 => format!("every KV head lives on the host: {left} of the device are left, one head takes {head}"),
        _ => format!("{kept} of {all} KV heads stay on the device at {head} each, which leaves {left} of it"),
    }
}

fn chunk(plan: &Plan) -> String {
    let (chunk, request) = (plan.knobs().chunk, &plan.request);
    if request.overrides.chunk.is_some() {
        return format!("chunks of {chunk} tokens: as given");
    }
    match request.device {
        DeviceKind::Cpu => format!("chunks of {chunk} tokens: 512 unless memory or the context is short"),
        DeviceKind::Cuda => {
            let (machine, group) = (&request.machine, plan.spec.group());
            let (kv, weights) = (machine.kv_hiding_rows(&plan.spec), machine.weight_hiding_rows(&plan.spec));
            format!(
                "chunks of {chunk} tokens, the same wherever weights and KV lie: from {kv:.0} on, attention ({group} query \
                 heads a KV head) hides the copies of KV, from {weights:.0} on, matrix products those of streamed weights"
            )
        }
    }
}

/// Who attends to what lives on the host, in decode.
fn host(plan: &Plan) -> Option<String> {
    let overrides = &plan.request.overrides;
    if overrides.host_heads.unwrap_or(0) == 0 && !overrides.balance_host {
        return None;
    }
    let on_host = pairs(plan) - plan.knobs().resident_heads;
    let most = plan.layout().host_attended_total();
    let full = plan.host_attended_heads(&Step { past: plan.knobs().context - 1, rows: 1, logit_rows: 1 });
    Some(match overrides.host_heads {
        Some(_) => {
            format!("in decode the CPU attends to {most} of the {on_host} heads on the host: as given")
        }
        None => format!(
            "in decode the CPU attends to {full} of the {on_host} heads on the host at the full context, as long as the \
             link takes for the others"
        ),
    })
}

/// What a coded store keeps, and where the rest is.
fn coded(plan: &Plan) -> Option<String> {
    let (kv, d) = (plan.knobs().kv, plan.spec.head_dim);
    plan.coded().then(|| {
        let planes = match kv.quantised() {
            None => format!("{} planes for halves that do not shrink so far", plan.layout().planes(&plan.spec)),
            Some(_) => "not all of what was computed".into(),
        };
        format!(
            "K and V on the host are {}, {} instead of {} a head's {UNIT} tokens, and {planes}; tokens after the last \
             {UNIT} wait on the device, {} in all",
            kv.name(),
            Bytes(2 * kv.half_bytes(d) as u64),
            Bytes(2 * KvFormat::Bf16.half_bytes(d) as u64),
            Bytes(plan.layout().region_bytes(RegionId::OpenKv)),
        )
    })
}

fn ring(plan: &Plan) -> [String; 2] {
    let k = plan.knobs();
    let ring = plan.layout().region_bytes(RegionId::Ring);
    let (slot, ring, slots) = (Bytes(ring / k.ring_slots.max(1) as u64), Bytes(ring), k.ring_slots);
    [
        format!("a copy moves {} tokens of {} KV head(s), {slot} at once", k.tile, k.heads_per_group),
        format!(
            "{slots} ring slots, {ring} whatever the context: one is attended to while others are filled"
        ),
    ]
}
