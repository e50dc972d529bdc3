//! Steps of a few rows: each row has the bits that it would have alone, so guesses change nothing.

use std::ops::ControlFlow;
use std::sync::Arc;

use headinfer_core::engine::Decoder;
use headinfer_core::engine::generate::{Limits, generate};
use headinfer_core::engine::guess::Speculation;
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{
    DECODE_ROWS, DeviceKind, KvFormat, Overrides, Plan, Request, SPLIT, Step, WeightsMode,
};

use crate::run::{has_gpu, logits, open, options};
use crate::support::{Draw, request, slow_link, stepwise, tiny};

#[test]
fn a_row_has_the_same_bits_in_any_company() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(51);
    for round in 0..24 {
        let (layers, kv_heads) = (1 + draw.below(2), 1 + draw.below(3));
        let head_dim = draw.of(&[16, 24, 64, 96, 128, 256]);
        let mut spec = tiny(layers, kv_heads * (1 + draw.below(8)), kv_heads, head_dim);
        spec.windows[0] = draw.of(&[None, None, Some(1), Some(50), Some(400)]);
        (spec.qk_norm, spec.qkv_bias) = (draw.below(2) == 0, draw.below(2) == 0);
        (spec.hidden, spec.intermediate) = (8 * (1 + draw.below(300)), 8 * (1 + draw.below(300)));
        let weights = Arc::new(random_weights(&spec, round));
        let overrides = Overrides {
            chunk: Some(100),
            tile: Some(256 * (1 + draw.below(3))),
            heads_per_group: Some(1 + draw.below(kv_heads)),
            resident_heads: Some(draw.below(layers * kv_heads + 1)),
            kv: draw.of(&KvFormat::EXACT),
            ..Overrides::default()
        };
        let mode = draw.of(&[WeightsMode::Resident, WeightsMode::Stream]);
        let request = Request { overrides, weights: mode, ..request(DeviceKind::Cuda, 900) };
        let seam = SPLIT * (1 + draw.below(3));
        let past = [0, seam - 100, seam - draw.below(30), seam][round as usize % 4];
        let ids: Vec<u32> = (0..past + 60).map(|_| draw.below(spec.vocab) as u32).collect();
        let run = |rows: &mut dyn FnMut() -> usize| {
            let mut session = open(&spec, &weights, &request, &options());
            assert_eq!(session.backend().rows_alike(), DECODE_ROWS);
            if past > 0 {
                logits(&mut session, &ids[..past], 1);
            }
            stepwise(&mut session, &ids[past..], rows)
        };
        let alone = run(&mut || 1);
        let together = run(&mut || 1 + draw.below(DECODE_ROWS));
        assert!(alone == together, "past {past} {spec:?} {request:?}");
    }
}

#[test]
fn guesses_never_change_what_is_generated() {
    if !has_gpu() {
        return;
    }
    // Coded, so that guesses which were none are also taken back from units that were whole.
    let overrides = Overrides {
        chunk: Some(64),
        resident_heads: Some(1),
        kv: KvFormat::Bf16Packed,
        ..Overrides::default()
    };
    guess(&tiny(2, 4, 2, 64), Request { overrides, ..request(DeviceKind::Cuda, 700) });
}

#[test]
fn guesses_change_nothing_where_the_cpus_share_of_heads_grows() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(2, 8, 8, 64);
    let overrides =
        Overrides { chunk: Some(64), resident_heads: Some(0), balance_host: true, ..Overrides::default() };
    let request =
        Request { overrides, machine: slow_link(DeviceKind::Cuda), ..request(DeviceKind::Cuda, 800) };
    let plan = Plan::new(&spec, &request).unwrap();
    let share = |past| plan.host_attended_heads(&Step { past, rows: 1, logit_rows: 1 });
    assert!(share(500) < share(600), "{} and {}", share(500), share(600));
    guess(&spec, request);
}

/// Generates 200 tokens after 480 that repeat themselves, with guesses and without.
fn guess(spec: &ModelSpec, request: Request) {
    let mut draw = Draw(52);
    let weights = Arc::new(random_weights(spec, 5));
    let mut session = open(spec, &weights, &request, &options());
    let piece: Vec<u32> = (0..50).map(|_| draw.below(97) as u32).collect();
    let prompt: Vec<u32> = piece.iter().cycle().take(480).copied().collect();
    let first = logits(&mut session, &prompt, 1);
    for temperature in [0.0, 0.8] {
        let mut run = |speculation| {
            session.rewind(prompt.len());
            let mut decoder = Decoder::new(&session, &first, speculation);
            let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::default() }, first.len());
            let limits = Limits { max_tokens: 200, stop_tokens: Vec::new() };
            let mut made = Vec::new();
            let mut sink = |id| {
                made.push(id);
                ControlFlow::Continue(())
            };
            generate(&mut session, &mut decoder, &mut sampler, &limits, &mut sink).unwrap();
            (made, decoder.logits().to_vec(), session.tokens().to_vec())
        };
        let plain = run(Speculation::Off);
        for speculation in [Speculation::Fixed(15), Speculation::Fixed(3), Speculation::Auto] {
            assert!(run(speculation) == plain, "{speculation:?} at {temperature}");
        }
    }
}
