//! Every kernel, product and copy on a few hundred tokens of one KV head: few launches and few bytes, so that a tool
//! which watches each access (compute-sanitizer) gets through all of them.

use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::model::random::random_weights;
use headinfer_core::plan::{DeviceKind, KvFormat, Overrides, Plan, Request, Step, WeightsMode};
use headinfer_cuda::{Cuda, CudaOptions, CudaWeights};

use crate::reference::{Reference, Rounding};
use crate::run::{has_gpu, logits, open, options, options_by_kernel, relative_error, wide};
use crate::support::{Draw, request, tiny};

/// One KV head, tiles of 256 tokens that are fetched one after another, every bias and every norm.
fn one_head(head_dim: usize, kv: KvFormat) -> (headinfer_core::model::spec::ModelSpec, Request) {
    let mut spec = tiny(1, 3, 1, head_dim);
    (spec.qkv_bias, spec.qk_norm, spec.o_bias, spec.mlp_bias) = (true, true, true, true);
    let overrides = Overrides {
        chunk: Some(64),
        tile: Some(256),
        resident_heads: Some(0),
        ring_slots: Some(1),
        kv,
        ..Overrides::default()
    };
    (spec, Request { overrides, ..request(DeviceKind::Cuda, 400) })
}

/// Prefill over no past, one tile of it and two, then decode of one row and of five: for each way that prefill
/// attention is built.
#[test]
fn prefill_and_decode_of_every_head_dim_are_as_exact_as_bf16_allows() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(61);
    for (head_dim, window) in [(64, None), (96, Some(100)), (128, None), (256, None), (24, Some(300))] {
        let (mut spec, request) = one_head(head_dim, KvFormat::Bf16);
        spec.windows[0] = window;
        let weights = Arc::new(random_weights(&spec, 1));
        let ids: Vec<u32> = (0..310).map(|_| draw.below(spec.vocab) as u32).collect();
        let of = |rounding| Reference::new(&spec, &weights, rounding).logits(&ids, 6);
        let (exact, plain) = (of(Rounding::Exact), of(Rounding::Plain));
        let allowed = 2.0 * relative_error(&plain, &exact) + 1.0 / 512.0;
        let runs = options_by_kernel(head_dim).into_iter().map(|options| (options, request.clone()));
        let coded = (options(), one_head(head_dim, KvFormat::Bf16Packed).1);
        for (options, request) in runs.chain([coded]) {
            let mut session = open(&spec, &weights, &request, &options);
            logits(&mut session, &ids[..304], 1);
            let mut got = session.step(&ids[304..305], 1).unwrap().to_vec();
            got.extend_from_slice(session.step(&ids[305..], 5).unwrap());
            let error = relative_error(&wide(&got), &exact);
            assert!(error <= allowed, "d {head_dim} {:?}: {error} > {allowed}", options.prefill);
        }
    }
}

/// Weights and a past made on the device, weights streamed, lanes delayed.
#[test]
fn what_the_device_makes_itself_is_whole() {
    if !has_gpu() {
        return;
    }
    let (spec, request) = one_head(64, KvFormat::Bf16);
    let request = Request { weights: WeightsMode::Stream, ..request };
    let plan = Arc::new(Plan::new(&spec, &request).unwrap());
    let options = CudaOptions { delays: Some(1), ..options() };
    let mut cuda = Cuda::open(plan.clone(), CudaWeights::Random { seed: 1 }, &options).unwrap();
    cuda.fill_past(290, 7).unwrap();
    for (past, rows) in [(290, 64), (354, 2)] {
        let step = Step { past, rows, logit_rows: 1 };
        cuda.submit(&plan.schedule(step), &vec![3; rows]).unwrap();
        assert!(cuda.logits().unwrap().iter().all(|x| x.is_finite()), "{step:?}");
    }
}
