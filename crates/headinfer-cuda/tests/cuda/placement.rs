//! Placement never changes the answer, on the GPU: all logits, bit by bit.

use std::sync::Arc;

use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{DeviceKind, KvFormat, Overrides, Plan, Request, WeightsMode};
use headinfer_cuda::CudaOptions;

use crate::run::{has_gpu, logits, open, options, options_by_kernel, relative_error};
use crate::support::{Draw, request, tiny};

const CONTEXT: usize = 1200;

/// A model, its weights, a text, and the chunk that all runs of it share.
struct Case {
    spec: ModelSpec,
    weights: Arc<Weights>,
    ids: Vec<u32>,
    chunk: usize,
}

fn cases() -> Vec<Case> {
    let mut draw = Draw(31);
    (0..8)
        .map(|seed| {
            let (layers, kv_heads) = (1 + draw.below(3), 1 + draw.below(4));
            let head_dim = draw.of(&[16, 24, 64, 128, 256]);
            let mut spec = tiny(layers, kv_heads * (1 + draw.below(3)), kv_heads, head_dim);
            spec.windows[0] = draw.of(&[None, None, Some(70), Some(400)]);
            spec.qk_norm = draw.below(2) == 0;
            spec.qkv_bias = draw.below(2) == 0;
            // The output head in one block or in several.
            spec.vocab = draw.of(&[97, 97, 1500]);
            spec.tied = draw.below(3) == 0;
            let weights = Arc::new(random_weights(&spec, seed));
            let ids = (0..700 + draw.below(400)).map(|_| draw.below(spec.vocab) as u32).collect();
            Case { spec, weights, ids, chunk: 40 + draw.below(300) }
        })
        .collect()
}

fn bounded(case: &Case, overrides: Overrides) -> Request {
    let overrides = Overrides { chunk: Some(case.chunk), ..overrides };
    Request { overrides, ..request(DeviceKind::Cuda, CONTEXT) }
}

fn random_request(case: &Case, draw: &mut Draw) -> Request {
    let all = case.spec.layers * case.spec.kv_heads;
    let overrides = Overrides {
        tile: Some(256 * (1 + draw.below(5))),
        heads_per_group: Some(1 + draw.below(case.spec.kv_heads)),
        ring_slots: Some(1 + draw.below(4)),
        resident_heads: Some(draw.below(all + 1)),
        kv: draw.of(&KvFormat::EXACT),
        ..Overrides::default()
    };
    let mut request = bounded(case, overrides);
    request.weights = draw.of(&[WeightsMode::Auto, WeightsMode::Resident, WeightsMode::Stream]);
    if Plan::new(&case.spec, &request).is_err() {
        request.weights = WeightsMode::Auto;
    }
    request
}

/// Prefill, three single steps, a step of three rows, a rewind and another step: all logits, bit by bit.
fn walk(session: &mut Session, ids: &[u32]) -> Vec<u32> {
    let mut all = logits(session, ids, 5);
    for id in [3, 1, 4] {
        all.extend_from_slice(session.step(&[id], 1).unwrap());
    }
    all.extend_from_slice(session.step(&[1, 5, 9], 3).unwrap());
    session.rewind(ids.len() - 20);
    all.extend_from_slice(session.step(&[2, 6], 2).unwrap());
    assert!(all.iter().all(|x| x.is_finite()), "something read what nothing wrote");
    all.into_iter().map(f32::to_bits).collect()
}

#[test]
fn placement_and_delays_never_change_the_answer() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(32);
    for case in cases() {
        for options in options_by_kernel(case.spec.head_dim) {
            let plain = bounded(&case, Overrides::default());
            let mut session = open(&case.spec, &case.weights, &plain, &options);
            assert_eq!(session.plan().knobs().resident_heads, case.spec.layers * case.spec.kv_heads);
            let expected = walk(&mut session, &case.ids);
            assert!(walk(&mut open(&case.spec, &case.weights, &plain, &options), &case.ids) == expected);
            for round in 0..20 {
                let request = random_request(&case, &mut draw);
                let delays = (round % 3 == 0).then(|| draw.below(1 << 30) as u64);
                let options = CudaOptions { delays, ..options.clone() };
                let mut session = open(&case.spec, &case.weights, &request, &options);
                let got = walk(&mut session, &case.ids);
                assert!(got == expected, "{:?} {options:?} {:?}", session.plan().knobs(), case.spec);
            }
        }
    }
}

#[test]
fn the_kv_of_one_placement_continues_under_another_bit_for_bit() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(33);
    for case in cases() {
        let whole = (case.ids.len() - 1) / case.chunk * case.chunk;
        let rest = |session: &mut Session| {
            let mut all = logits(session, &case.ids[whole..], 1);
            all.extend_from_slice(session.step(&[1, 5, 9], 3).unwrap());
            all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let open = |request: &Request| open(&case.spec, &case.weights, request, &options());
        let mut plain = open(&bounded(&case, Overrides::default()));
        logits(&mut plain, &case.ids[..whole], 1);
        let expected = rest(&mut plain);
        for _ in 0..6 {
            let mut from = open(&random_request(&case, &mut draw));
            logits(&mut from, &case.ids[..whole], 1);
            let mut kv = vec![0; whole * from.plan().kv_bytes_per_token() as usize];
            from.read_rows(0..whole, &mut kv).unwrap();
            let mut to = open(&random_request(&case, &mut draw));
            assert_eq!(from.backend().numerics(), to.backend().numerics());
            to.adopt(&case.ids[..whole], &kv).unwrap();
            assert!(rest(&mut to) == expected, "{:?} {:?}", from.plan().knobs(), to.plan().knobs());
        }
    }
}

#[test]
fn a_lossy_store_gives_one_answer_wherever_the_rest_lies() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(35);
    for case in cases() {
        let all = case.spec.layers * case.spec.kv_heads;
        let exact = walk(
            &mut open(&case.spec, &case.weights, &bounded(&case, Overrides::default()), &options()),
            &case.ids,
        );
        for kv in [KvFormat::Int8, KvFormat::Int4] {
            let resident = draw.below(all);
            let mut first: Option<Vec<u32>> = None;
            for round in 0..4 {
                let mut request = random_request(&case, &mut draw);
                (request.overrides.kv, request.overrides.resident_heads) = (kv, Some(resident));
                let delays = (round > 1).then(|| draw.below(1 << 30) as u64);
                let options = CudaOptions { delays, ..options() };
                let mut session = open(&case.spec, &case.weights, &request, &options);
                let got = walk(&mut session, &case.ids);
                let same = first.get_or_insert_with(|| got.clone()) == &got;
                assert!(same, "{:?} {options:?} {:?}", session.plan().knobs(), case.spec);
            }
            let values =
                |bits: &[u32]| bits.iter().map(|x| f64::from(f32::from_bits(*x))).collect::<Vec<_>>();
            let error = relative_error(&values(&first.expect("it ran")), &values(&exact));
            // A window may see no unit that was coded.
            assert!(
                (error > 0.0 || case.spec.windows[0].is_some()) && error < 0.3,
                "{kv:?}: {error} {:?}",
                case.spec
            );
        }
    }
}

#[test]
fn units_that_do_not_pack_end_the_run_and_say_what_to_do() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(34);
    let spec = tiny(2, 8, 4, 64);
    let weights = Arc::new(random_weights(&spec, 9));
    let overrides = Overrides {
        chunk: Some(128),
        resident_heads: Some(0),
        kv: KvFormat::Bf16Packed,
        ..Overrides::default()
    };
    let request = Request { overrides, ..request(DeviceKind::Cuda, 600) };
    let mut session = open(&spec, &weights, &request, &options());
    // Any bits, but for infinities and NaN: more halves than there are planes.
    let bits = 128 * session.plan().kv_bytes_per_token() as usize / 2;
    let kv: Vec<u16> = (0..bits).map(|_| draw.below(1 << 16) as u16 & 0xbfff).collect();
    let ids: Vec<u32> = (0..128).map(|_| draw.below(spec.vocab) as u32).collect();
    session.adopt(&ids, bytemuck::cast_slice(&kv)).unwrap();
    let error = session.step(&ids, 1).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tokens 0..256") && error.contains("--kv-dtype bf16"), "{error}");
    assert!(session.step(&ids[..1], 1).is_err());
}
