//! What the cost model says of the order of commands: whether copies hide behind arithmetic, with no device.

use headinfer_core::backend::copy_overlap;
use headinfer_core::plan::{DeviceKind, Machine, Overrides, PlacementMode, Plan, Request, Step, WeightsMode};
use headinfer_core::simulate;
use headinfer_core::units::GIB;

use crate::support::{llama_3_8b, request};

/// An H100 on PCIe 5, of which products, attention and copies reach this.
fn h100() -> Machine {
    Machine {
        source: "an H100".into(),
        gemm_flops: 650e12,
        attention_flops: 340e12,
        device_bytes_s: 2.8e12,
        link_bytes_s: 51e9,
        host_bytes_s: 100e9,
        ..Machine::default_cuda()
    }
}

fn llama(context: usize, weights: WeightsMode, budget: u64, chunk: Option<usize>) -> Plan {
    let overrides = Overrides { chunk, ..Overrides::default() };
    let placement = PlacementMode::Offload;
    let request = Request {
        weights,
        placement,
        overrides,
        device_budget: budget,
        machine: h100(),
        ..request(DeviceKind::Cuda, context)
    };
    Plan::new(&llama_3_8b(), &request).expect("the plan fits")
}

/// Seconds of a prefill of `tokens`, and the share of copy time that arithmetic hides.
fn prefill(plan: &Plan, tokens: usize) -> (f64, f64) {
    let chunk = plan.knobs().chunk;
    let (mut seconds, mut copied, mut hidden) = (0.0, 0.0, 0.0);
    for past in (0..tokens).step_by(chunk) {
        let rows = chunk.min(tokens - past);
        let step = Step { past, rows, logit_rows: usize::from(past + rows == tokens) };
        let timed = simulate::timeline(plan, &plan.schedule(step));
        seconds += timed.iter().map(|t| t.end).max().unwrap_or_default().as_secs_f64();
        let (copy, overlap) = copy_overlap(&timed);
        copied += copy.as_secs_f64();
        hidden += overlap.as_secs_f64();
    }
    (seconds, hidden / copied)
}

#[test]
fn streaming_the_weights_costs_a_prefill_three_percent_at_most() {
    // By the chunk that both choose, and by longer ones, which a short text needs for as little.
    for (tokens, chunk, most) in [
        (32 << 10, None, 0.05),
        (128 << 10, None, 0.015),
        (32 << 10, Some(16384), 0.02),
        (128 << 10, Some(16384), 0.01),
    ] {
        let resident = llama(tokens, WeightsMode::Resident, 33 * GIB / 2, chunk);
        let streamed = llama(tokens, WeightsMode::Stream, 4 * GIB, chunk);
        assert_eq!(resident.knobs().chunk, streamed.knobs().chunk);
        let ((plain, _), (time, hidden)) = (prefill(&resident, tokens), prefill(&streamed, tokens));
        let cost = time / plain - 1.0;
        eprintln!(
            "{tokens} tokens, chunks of {}: {plain:.3} s resident, {time:.3} s streamed: {:.2} % more; {:.2} % hidden",
            streamed.knobs().chunk,
            100.0 * cost,
            100.0 * hidden
        );
        assert!(cost <= most, "{cost} > {most}");
    }
}

#[test]
fn copies_of_kv_hide_behind_arithmetic() {
    let tokens = 128 << 10;
    let (seconds, hidden) = prefill(&llama(tokens, WeightsMode::Resident, 33 * GIB / 2, None), tokens);
    eprintln!("{seconds:.3} s, {:.3} % hidden", 100.0 * hidden);
    // The first tile of a step is longer on its way than the first projection takes.
    assert!(hidden > 0.995, "{hidden}");
}

#[test]
fn a_decoded_token_keeps_the_link_busy() {
    let tokens = 128 << 10;
    let step = Step { past: tokens - 1, rows: 1, logit_rows: 1 };
    for (weights, budget) in [(WeightsMode::Resident, 33 * GIB / 2), (WeightsMode::Stream, 4 * GIB)] {
        let plan = llama(tokens, weights, budget, None);
        let timed = simulate::timeline(&plan, &plan.schedule(step));
        let seconds = timed.iter().map(|t| t.end).max().unwrap_or_default().as_secs_f64();
        let ratio = seconds / plan.decode_floor_s(tokens - 1);
        eprintln!("weights {weights:?}: {:.1} ms, {ratio:.3} of the floor", 1e3 * seconds);
        assert!(ratio < 1.04, "{ratio}");
    }
}
