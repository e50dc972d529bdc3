//! Whole small models against an f64 forward pass and against the CPU backend.

use std::sync::Arc;

use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{DeviceKind, Overrides, PlacementMode, Plan, Request, WeightsMode};
use headinfer_cuda::{Cuda, CudaWeights};

use crate::reference::{Reference, Rounding};
use crate::run::{has_gpu, logits, open, options, relative_error, wide};
use crate::support::{Draw, request, tiny};

fn random_spec(draw: &mut Draw) -> ModelSpec {
    let (layers, kv_heads) = (1 + draw.below(3), 1 + draw.below(3));
    let head_dim = draw.of(&[16, 24, 64, 96, 128, 256]);
    let mut spec = tiny(layers, kv_heads * (1 + draw.below(4)), kv_heads, head_dim);
    spec.windows[0] = draw.of(&[None, None, Some(50), Some(200)]);
    spec.qk_norm = draw.below(2) == 0;
    spec.qkv_bias = draw.below(2) == 0;
    spec.o_bias = draw.below(3) == 0;
    spec.mlp_bias = draw.below(3) == 0;
    spec.tied = draw.below(3) == 0;
    spec
}

#[test]
fn logits_are_as_exact_as_bf16_allows() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(21);
    for seed in 0..12 {
        let spec = random_spec(&mut draw);
        let weights = Arc::new(random_weights(&spec, seed));
        let ids: Vec<u32> = (0..100 + draw.below(250)).map(|_| draw.below(spec.vocab) as u32).collect();
        let exact = Reference::new(&spec, &weights, Rounding::Exact).logits(&ids, 4);
        let plain = Reference::new(&spec, &weights, Rounding::Plain).logits(&ids, 4);
        let allowed = 2.0 * relative_error(&plain, &exact) + 1.0 / 512.0;
        let overrides = Overrides { chunk: Some(30 + draw.below(200)), ..Overrides::default() };
        let request = Request { overrides, ..request(DeviceKind::Cuda, 400) };
        let got = wide(&logits(&mut open(&spec, &weights, &request, &options()), &ids, 4));
        let error = relative_error(&got, &exact);
        eprintln!("{spec:?}: error {error:.2e}, allowed {allowed:.2e}");
        assert!(error <= allowed, "{error} > {allowed}: {spec:?}");
        let cpu = Request { device: DeviceKind::Cpu, ..request };
        let plan = Arc::new(Plan::new(&spec, &cpu).unwrap());
        let cpu = Cpu::open(plan.clone(), weights.clone(), &CpuOptions::default()).unwrap();
        let twin = wide(&logits(&mut Session::new(plan, Box::new(cpu)), &ids, 4));
        let error = relative_error(&got, &twin);
        assert!(error <= allowed, "against the CPU: {error} > {allowed}: {spec:?}");
    }
}

#[test]
fn decoding_token_by_token_agrees_with_prefill() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(22);
    for seed in 0..6 {
        let spec = random_spec(&mut draw);
        let weights = Arc::new(random_weights(&spec, seed));
        let ids: Vec<u32> = (0..300).map(|_| draw.below(spec.vocab) as u32).collect();
        let exact = Reference::new(&spec, &weights, Rounding::Exact).logits(&ids, 1);
        let plain = Reference::new(&spec, &weights, Rounding::Plain).logits(&ids, 1);
        let mut session = open(&spec, &weights, &request(DeviceKind::Cuda, 400), &options());
        logits(&mut session, &ids[..270], 1);
        let mut at = 270;
        let mut last = Vec::new();
        while at < ids.len() {
            let rows = (1 + draw.below(16)).min(ids.len() - at);
            last = session.step(&ids[at..at + rows], 1).unwrap().to_vec();
            at += rows;
        }
        let (error, allowed) =
            (relative_error(&wide(&last), &exact), 2.0 * relative_error(&plain, &exact) + 1.0 / 512.0);
        assert!(error <= allowed, "{error} > {allowed}: {spec:?}");
    }
}

#[test]
fn random_weights_are_made_bit_for_bit_on_the_device_and_on_the_host() {
    if !has_gpu() {
        return;
    }
    let mut spec = tiny(2, 4, 2, 64);
    spec.qkv_bias = true;
    spec.qk_norm = true;
    let expected = random_weights(&spec, 7);
    for mode in [WeightsMode::Resident, WeightsMode::Stream] {
        let request = Request { weights: mode, ..request(DeviceKind::Cuda, 256) };
        let plan = Arc::new(Plan::new(&spec, &request).unwrap());
        let cuda = Cuda::open(plan.clone(), CudaWeights::Random { seed: 7 }, &options()).unwrap();
        for (id, _) in spec.tensors() {
            let homes = plan.weight_homes(id);
            assert!(!homes.as_slice().is_empty(), "{id:?} lies nowhere");
            for home in homes.as_slice() {
                let got = cuda.read(home.span).unwrap();
                assert!(got == expected.tensor(id).bytes, "{id:?} {mode:?} {home:?}");
            }
        }
    }
}

#[test]
fn a_timeline_covers_every_command_and_copies_hide() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(2, 4, 2, 64);
    let weights = Arc::new(random_weights(&spec, 1));
    let request = Request { placement: PlacementMode::Offload, ..request(DeviceKind::Cuda, 2048) };
    let mut session = open(&spec, &weights, &request, &options());
    session.backend_mut().record_timeline(true);
    let ids = vec![1; 1500];
    logits(&mut session, &ids, 1);
    session.step(&[5], 1).unwrap();
    let timeline = session.backend().timeline().to_vec();
    let step = headinfer_core::plan::Step { past: 1500, rows: 1, logit_rows: 1 };
    let schedule = session.plan().schedule(step);
    assert_eq!(timeline.len(), schedule.commands.len());
    for (timed, command) in timeline.iter().zip(&schedule.commands) {
        assert_eq!((timed.lane, timed.name), (command.lane, command.op.name()));
        assert!(timed.end >= timed.start, "{timed:?}");
    }
    let stats = session.backend().stats();
    assert!(stats.copy_hidden <= stats.copy && stats.device_bytes > 0, "{stats:?}");
}
