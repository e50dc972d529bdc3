//! Placement never changes the answer, and what orders lanes is enough.

use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::cpu::{Cpu, CpuOptions, LaneOrder};
use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{
    DeviceKind, KvFormat, Overrides, Plan, Request, Schedule, Step, UNIT, WeightsMode, hazard,
};

use crate::plan::{waits, without};
use crate::run::{logits, open, relative_error};
use crate::support::{Draw, request, tiny};

const CONTEXT: usize = 1200;

/// A model, its weights, a text, and the chunk that all runs of it share.
pub(crate) struct Case {
    pub(crate) spec: ModelSpec,
    pub(crate) weights: Arc<Weights>,
    pub(crate) ids: Vec<u32>,
    pub(crate) chunk: usize,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut draw = Draw(11);
    (0..10)
        .map(|seed| {
            let (layers, kv_heads) = (1 + draw.below(3), 1 + draw.below(4));
            let mut spec = tiny(layers, kv_heads * (1 + draw.below(3)), kv_heads, draw.of(&[16, 24, 32]));
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

pub(crate) fn bounded(case: &Case, overrides: Overrides) -> Request {
    let overrides = Overrides { chunk: Some(case.chunk), ..overrides };
    Request { overrides, ..request(DeviceKind::Cpu, CONTEXT) }
}

pub(crate) fn random_request(case: &Case, draw: &mut Draw) -> Request {
    let all = case.spec.layers * case.spec.kv_heads;
    let resident = draw.below(all + 1);
    let mut request = bounded(
        case,
        Overrides {
            tile: Some(256 * (1 + draw.below(5))),
            heads_per_group: Some(1 + draw.below(case.spec.kv_heads)),
            ring_slots: Some(1 + draw.below(4)),
            resident_heads: Some(resident),
            host_heads: Some(draw.below(all - resident + 1)),
            kept_layers: Some(draw.below(case.spec.layers)),
            kv: draw.of(&KvFormat::EXACT),
            ..Overrides::default()
        },
    );
    if draw.below(4) == 0 {
        // What a budget alone decides.
        let kv = request.overrides.kv;
        request.overrides = Overrides { chunk: Some(case.chunk), kv, ..Overrides::default() };
        let least = (1..).map(|i| i << 16).find(|b| Plan::new(&case.spec, &budget(&request, *b)).is_ok());
        let least = least.expect("some budget fits");
        request = budget(&request, least + (draw.below(1 << 20) as u64));
    }
    request.weights = draw.of(&[WeightsMode::Auto, WeightsMode::Resident, WeightsMode::Stream]);
    if Plan::new(&case.spec, &request).is_err() {
        request.weights = WeightsMode::Auto;
    }
    request
}

fn budget(request: &Request, bytes: u64) -> Request {
    Request { device_budget: bytes, ..request.clone() }
}

/// Prefill, three single steps, a step of three rows, then rewinds and steps, within units of a coded store, to their
/// ends, and across: all logits, bit by bit.
fn walk(session: &mut Session, ids: &[u32]) -> Vec<u32> {
    let mut all = logits(session, ids, 5);
    for id in [3, 1, 4] {
        all.extend_from_slice(session.step(&[id], 1).unwrap());
    }
    all.extend_from_slice(session.step(&[1, 5, 9], 3).unwrap());
    session.rewind(ids.len() - 20);
    all.extend_from_slice(session.step(&[2, 6], 2).unwrap());
    for (left, rows) in [(2 * UNIT - 7, 13), (2 * UNIT, 1), (2 * UNIT - 5, 4), (UNIT + 9, 30), (UNIT - 1, 16)]
    {
        session.rewind(left);
        let text: Vec<u32> = (0..rows as u32).map(|i| (7 * i + left as u32) % 97).collect();
        all.extend_from_slice(session.step(&text, rows.min(5)).unwrap());
        all.extend_from_slice(session.step(&[3], 1).unwrap());
    }
    assert!(all.iter().all(|x| x.is_finite()), "something read what nothing wrote");
    all.into_iter().map(f32::to_bits).collect()
}

#[test]
fn placement_never_changes_the_answer() {
    let mut draw = Draw(12);
    for case in cases() {
        let plain = bounded(&case, Overrides::default());
        let mut session = open(&case.spec, &case.weights, &plain, &CpuOptions::default());
        assert_eq!(session.plan().knobs().resident_heads, case.spec.layers * case.spec.kv_heads);
        let expected = walk(&mut session, &case.ids);
        for _ in 0..55 {
            let request = random_request(&case, &mut draw);
            let order = match draw.below(2) {
                0 => LaneOrder::Threads,
                _ => LaneOrder::Interleaved(draw.below(1 << 30) as u64),
            };
            let options = CpuOptions { order, threads: 1 + draw.below(2), ..CpuOptions::default() };
            let mut session = open(&case.spec, &case.weights, &request, &options);
            let got = walk(&mut session, &case.ids);
            assert!(got == expected, "{:?} {options:?}", session.plan().knobs());
        }
    }
}

#[test]
fn chunks_change_the_answer_by_rounding_only() {
    for case in cases() {
        let run = |chunk| {
            let case =
                Case { chunk, spec: case.spec.clone(), weights: case.weights.clone(), ids: Vec::new() };
            open(&case.spec, &case.weights, &bounded(&case, Overrides::default()), &CpuOptions::default())
        };
        let whole = logits(&mut run(CONTEXT), &case.ids, 5);
        for chunk in [1, 7, 64, 100, 512] {
            // One bf16 rounding of a K or V row may fall the other way: 2^-8 of that row.
            let error = relative_error(&logits(&mut run(chunk), &case.ids, 5), &whole);
            assert!(error < 1.0 / 256.0, "chunk {chunk}: {error}");
        }
    }
}

/// A backend that has taken in the first `past` tokens, and will run its next step in a random order.
fn after_past(case: &Case, plan: &Arc<Plan>, past: usize, seed: u64) -> Cpu {
    let options = CpuOptions { order: LaneOrder::Interleaved(seed), poison: true, ..CpuOptions::default() };
    let mut cpu = Cpu::open(plan.clone(), case.weights.clone(), &options).unwrap();
    for start in (0..past).step_by(case.chunk) {
        let rows = case.chunk.min(past - start);
        let schedule = plan.schedule(Step { past: start, rows, logit_rows: 0 });
        cpu.submit(&schedule, &case.ids[start..start + rows]).unwrap();
    }
    cpu
}

fn last_logits(mut cpu: Cpu, schedule: &Schedule) -> Vec<u32> {
    cpu.submit(schedule, &[1, 2]).unwrap();
    cpu.logits().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// A wait is flagged when removed, or its removal changes nothing in any order tried; and of those flagged,
/// some really do change the answer.
#[test]
fn a_run_never_differs_where_no_hazard_was_flagged() {
    let mut draw = Draw(13);
    let (mut unflagged, mut broken) = (0, 0);
    let step = Step { past: 600, rows: 2, logit_rows: 1 };
    for case in cases().iter().take(5) {
        let request = random_request(case, &mut draw);
        let plan = Arc::new(Plan::new(&case.spec, &request).unwrap());
        let honest = plan.schedule(step);
        let run = |schedule: &Schedule, seed| last_logits(after_past(case, &plan, step.past, seed), schedule);
        let expected = run(&honest, 0);
        for (command, wait) in waits(&honest) {
            let mutant = without(&honest, command, wait);
            let flagged = !hazard::check(&plan, &mutant).is_empty();
            unflagged += usize::from(!flagged);
            for seed in 0..4 {
                let same = run(&mutant, seed) == expected;
                assert!(same || flagged, "unflagged, and different: {:?}", honest.commands[command]);
                broken += usize::from(!same);
            }
        }
    }
    assert!(broken > 20, "only {broken} runs of flagged schedules differed: the test sees nothing");
    eprintln!(
        "{broken} runs of flagged schedules differed; {unflagged} removed waits were implied by others"
    );
}
