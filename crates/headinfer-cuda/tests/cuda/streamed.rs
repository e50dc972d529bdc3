//! Llama-3-8B's shape with its weights streamed: run with `--ignored`. Prints times as it goes.

use headinfer_core::engine::Session;
use headinfer_core::plan::{DeviceKind, Machine, PlacementMode, Request, WeightsMode};
use headinfer_core::units::{Bytes, GIB};

use crate::large::llama;
use crate::run::{has_gpu, logits};
use crate::support::{Draw, request};

/// Seconds of a prefill from nothing, with the bits of its last logits.
fn timed_prefill(session: &mut Session, ids: &[u32]) -> (f64, Vec<u32>) {
    session.rewind(0);
    let begun = std::time::Instant::now();
    let logits = logits(session, ids, 1);
    (begun.elapsed().as_secs_f64(), logits.into_iter().map(f32::to_bits).collect())
}

/// Everything offloaded, weights resident or streamed within 4 GiB: the plan chooses the same chunk, which gives the same
/// bits in nearly the same time.
#[test]
#[ignore = "takes 17 GiB of device memory, 32 GiB pinned, and two minutes"]
fn llama_3_8b_streams_its_weights_at_three_percent() {
    if !has_gpu() {
        return;
    }
    let (short, long) = (32 << 10, 128 << 10);
    let mut draw = Draw(54);
    let ids: Vec<u32> = (0..long).map(|_| draw.below(128_256) as u32).collect();
    let base = request(DeviceKind::Cuda, long + 64);
    // Rates of an H100: the chunk that hides the weights follows from them.
    let machine = Machine { gemm_flops: 650e12, link_bytes_s: 51e9, ..base.machine.clone() };
    let base = Request { placement: PlacementMode::Offload, machine, ..base };
    let with = |weights, device_budget| Request { weights, device_budget, ..base.clone() };
    let requests = [with(WeightsMode::Resident, 33 * GIB / 2), with(WeightsMode::Stream, 4 * GIB)];
    let mut first: Option<[(f64, Vec<u32>); 2]> = None;
    for request in &requests {
        let begun = std::time::Instant::now();
        let mut session = llama(request);
        let opened = begun.elapsed().as_secs_f64();
        // The first steps load cuBLASLt's kernels.
        timed_prefill(&mut session, &ids[..short]);
        let runs = [timed_prefill(&mut session, &ids[..short]), timed_prefill(&mut session, &ids)];
        let (plan, chunk) = (session.plan().device_bytes(), session.plan().knobs().chunk);
        let plain = first.get_or_insert_with(|| runs.clone());
        let over = [0, 1].map(|i| 100.0 * (runs[i].0 / plain[i].0 - 1.0));
        eprintln!(
            "measure: llama-3-8b offloaded, weights {:?}, chunk {chunk}: opened in {opened:.1} s; 32K {:.3} s ({:+.1} %), \
             128K {:.3} s ({:+.1} %); device {} of {} planned, {} of it context",
            request.weights,
            runs[0].0,
            over[0],
            runs[1].0,
            over[1],
            Bytes(session.backend().stats().device_bytes),
            Bytes(plan),
            Bytes(base.machine.device_overhead),
        );
        assert!([0, 1].iter().all(|i| runs[*i].1 == plain[*i].1), "streamed weights give other bits");
        assert!(over[1] <= 3.0, "{} % more", over[1]);
    }
}
