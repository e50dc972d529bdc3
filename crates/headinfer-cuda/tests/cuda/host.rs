//! Heads that the CPU attends to: right by the rule of tolerance, and the same bits however the rest is placed and
//! whichever lane is late.

use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{DeviceKind, KvFormat, Lane, Op, Overrides, Plan, Request, Step, WeightsMode};
use headinfer_cuda::CudaOptions;

use crate::reference::{Reference, Rounding};
use crate::run::{has_gpu, logits, open, open_plan, options, relative_error, wide};
use crate::support::{Draw, request, tiny};

/// Steps after the prefill: decode, and verification of up to sixteen tokens.
const STEPS: [usize; 5] = [1, 2, 16, 7, 1];
const PREFILL: usize = 600;

struct Case {
    spec: ModelSpec,
    weights: Arc<Weights>,
    ids: Vec<u32>,
}

fn case(draw: &mut Draw, seed: u64) -> Case {
    let (layers, kv_heads) = (1 + draw.below(3), 2 + draw.below(3));
    let head_dim = draw.of(&[16, 64, 96, 128, 256]);
    let mut spec = tiny(layers, kv_heads * (1 + draw.below(4)), kv_heads, head_dim);
    spec.windows[0] = draw.of(&[None, None, Some(70), Some(400)]);
    spec.qk_norm = draw.below(2) == 0;
    let ids = (0..PREFILL + STEPS.iter().sum::<usize>()).map(|_| draw.below(spec.vocab) as u32).collect();
    Case { weights: Arc::new(random_weights(&spec, seed)), spec, ids }
}

fn placed(overrides: Overrides) -> Request {
    let overrides = Overrides { chunk: Some(200), ..overrides };
    Request { overrides, ..request(DeviceKind::Cuda, 1000) }
}

/// Logits of all rows of [`STEPS`].
fn walk(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    let mut all = logits(session, &ids[..PREFILL], 1);
    all.clear();
    let mut at = PREFILL;
    for rows in STEPS {
        all.extend_from_slice(session.step(&ids[at..at + rows], rows).unwrap());
        at += rows;
    }
    assert!(all.iter().all(|x| x.is_finite()), "something read what nothing wrote");
    all
}

#[test]
fn heads_of_the_cpu_are_as_exact_as_bf16_allows_and_no_delay_changes_a_bit() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(71);
    for seed in 0..8 {
        let case = case(&mut draw, seed);
        let of = |rounding| {
            Reference::new(&case.spec, &case.weights, rounding).logits(&case.ids, STEPS.iter().sum())
        };
        let exact = of(Rounding::Exact);
        let allowed = 2.0 * relative_error(&of(Rounding::Plain), &exact) + 1.0 / 512.0;
        let all = case.spec.layers * case.spec.kv_heads;
        for (host, kv) in [1, all / 2, all].into_iter().flat_map(|host| KvFormat::EXACT.map(|kv| (host, kv)))
        {
            let mut first: Option<Vec<f32>> = None;
            for round in 0..4 {
                let overrides = Overrides {
                    tile: Some(256 * (1 + draw.below(3))),
                    heads_per_group: Some(1 + draw.below(case.spec.kv_heads)),
                    ring_slots: Some(1 + draw.below(3)),
                    resident_heads: Some(0),
                    host_heads: Some(host),
                    kv,
                    ..Overrides::default()
                };
                let weights = draw.of(&[WeightsMode::Resident, WeightsMode::Stream]);
                let request = Request { weights, ..placed(overrides) };
                let delays = (round > 0).then(|| draw.below(1 << 30) as u64);
                let options = CudaOptions { delays, host_threads: 1 + draw.below(3), ..options() };
                let mut session = open(&case.spec, &case.weights, &request, &options);
                let got = walk(&mut session, &case.ids);
                let error = relative_error(&wide(&got), &exact);
                let what = format!("{:?} {options:?} {:?}", session.plan().knobs(), case.spec);
                assert!(error <= allowed, "{error} > {allowed}: {what}");
                let same = first.get_or_insert_with(|| got.clone()) == &got;
                assert!(same, "another placement of the rest, or a delay, changed a bit: {what}");
            }
        }
    }
}

#[test]
fn resident_streamed_and_attended_by_the_cpu_in_one_layer() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(72);
    for seed in 0..12 {
        let case = case(&mut draw, seed);
        let all = case.spec.layers * case.spec.kv_heads;
        let of = |overrides, delays| {
            let options = CudaOptions { delays, ..options() };
            walk(&mut open(&case.spec, &case.weights, &placed(overrides), &options), &case.ids)
        };
        let plain = of(Overrides::default(), None);
        let none = Overrides { resident_heads: Some(0), host_heads: Some(0), ..Overrides::default() };
        assert!(of(none, None) == plain, "no head for the CPU, and another bit");
        let resident = draw.below(all);
        let overrides = Overrides {
            tile: Some(256),
            heads_per_group: Some(1 + draw.below(case.spec.kv_heads)),
            resident_heads: Some(resident),
            host_heads: Some(1 + draw.below(all - resident)),
            ..Overrides::default()
        };
        let got = of(overrides.clone(), Some(seed));
        // Both have roundings of bf16 from the same K and V on.
        let error = relative_error(&wide(&got), &wide(&plain));
        assert!(error < 1.0 / 64.0, "{error} {overrides:?} {:?}", case.spec);
    }
}

#[test]
fn the_lane_of_the_cpu_is_seen_at_work_between_projection_and_merge() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(2, 8, 4, 64);
    let weights = Arc::new(random_weights(&spec, 1));
    let overrides = Overrides { resident_heads: Some(0), host_heads: Some(4), ..Overrides::default() };
    let plan = Arc::new(Plan::new(&spec, &placed(overrides)).unwrap());
    let mut cuda = open_plan(&plan, &weights, &options());
    cuda.fill_past(900, 3).unwrap();
    cuda.record_timeline(true);
    for past in [900, 901] {
        let schedule = plan.schedule(Step { past, rows: 1, logit_rows: 1 });
        cuda.submit(&schedule, &[3]).unwrap();
        let timed = cuda.timeline().to_vec();
        assert_eq!(timed.len(), schedule.commands.len());
        let of = |layer: usize, pick: fn(&Op) -> Option<usize>| {
            timed.iter().find(|t| pick(&schedule.commands[t.command].op) == Some(layer)).unwrap().clone()
        };
        for layer in 0..spec.layers {
            let project = of(layer, |op| if let Op::Project { layer } = op { Some(*layer) } else { None });
            let host =
                of(layer, |op| if let Op::AttendHost { layer, .. } = op { Some(*layer) } else { None });
            let merge = of(layer, |op| if let Op::Merge { layer, .. } = op { Some(*layer) } else { None });
            assert_eq!(host.lane, Lane::Host);
            assert!(project.end <= host.start && host.start < host.end, "{project:?} {host:?}");
            assert!(host.end < merge.end, "{host:?} {merge:?}");
        }
    }
    assert!(cuda.stats().busy[Lane::Host.index()].as_nanos() > 0);
    assert!(cuda.stats().bytes[Lane::Host.index()] > 0);
}
