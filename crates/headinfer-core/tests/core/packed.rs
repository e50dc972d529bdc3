//! A packed store: the same bits, fewer bytes, and a clear word where it cannot be.

use std::ops::ControlFlow;
use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{
    DeviceKind, KvFormat, Memory, Op, Overrides, PlacementMode, Plan, RegionId, Request, Step, UNIT, hazard,
};
use headinfer_core::trace::Trace;
use headinfer_core::units::{GIB, MIB};

use crate::placement::{Case, bounded, cases, random_request};
use crate::run::{logits, open};
use crate::support::{Draw, llama_3_8b, request, tiny};

/// `request` with the store packed, or not, and a budget that was enough for either.
fn with(request: &Request, kv: KvFormat) -> Request {
    let device_budget = request.device_budget + MIB;
    Request { device_budget, overrides: Overrides { kv, ..request.overrides.clone() }, ..request.clone() }
}

fn kv_of(session: &mut Session) -> Vec<u8> {
    let tokens = session.tokens().len();
    let mut kv = vec![0; tokens * session.plan().kv_bytes_per_token() as usize];
    session.read_rows(0..tokens, &mut kv).unwrap();
    kv
}

fn session(case: &Case, request: &Request) -> Session {
    open(&case.spec, &case.weights, request, &CpuOptions::default())
}

#[test]
fn rows_go_between_packed_and_plain_plans() {
    let mut draw = Draw(51);
    for case in cases() {
        let mut plain = session(&case, &bounded(&case, Overrides::default()));
        let given = case.chunk * (1 + draw.below(case.ids.len() / case.chunk));
        logits(&mut plain, &case.ids[..given], 1);
        let kv = kv_of(&mut plain);
        let expected = logits(&mut plain, &case.ids[..50], 5);
        for _ in 0..4 {
            let request = with(&random_request(&case, &mut draw), KvFormat::Bf16Packed);
            let mut taker = session(&case, &request);
            // In two parts, the second from within a unit.
            let row = taker.plan().kv_bytes_per_token() as usize;
            let first = case.chunk * draw.below(given / case.chunk + 1);
            for part in [0..first, first..given].into_iter().filter(|part| !part.is_empty()) {
                let mut rows = vec![0; part.len() * row];
                plain.read_rows(part.clone(), &mut rows).unwrap();
                taker.adopt(&case.ids[part], &rows).unwrap();
            }
            assert!(kv_of(&mut taker) == kv, "{:?}", taker.plan().knobs());
            assert!(logits(&mut taker, &case.ids[..50], 5) == expected, "{:?}", taker.plan().knobs());
            // Some rows from the middle, after a rewind into another unit.
            let left = 1 + draw.below(given);
            taker.rewind(left);
            let start = draw.below(left);
            let mut rows = vec![0; (left - start) * row];
            taker.read_rows(start..left, &mut rows).unwrap();
            let mut same = vec![0; rows.len()];
            plain.read_rows(start..left, &mut same).unwrap();
            assert!(rows == same, "{start}..{left} of {given}");
        }
    }
}

#[test]
fn a_synthetic_past_is_the_same_packed() {
    let mut draw = Draw(52);
    for case in cases().iter().take(4) {
        let past = 300 + draw.below(700);
        let after = |request: &Request| {
            // The wrapper of checks makes no past.
            let plan = Arc::new(Plan::new(&case.spec, request).unwrap());
            let cpu = Cpu::open(plan.clone(), case.weights.clone(), &CpuOptions::default()).unwrap();
            let mut session = Session::new(plan, Box::new(cpu));
            session.assume_past(past, 3).unwrap();
            let kv = kv_of(&mut session);
            (kv, session.step(&[1, 2, 3], 3).unwrap().to_vec())
        };
        let request = random_request(case, &mut draw);
        assert!(after(&with(&request, KvFormat::Bf16)) == after(&with(&request, KvFormat::Bf16Packed)));
    }
}

/// One layer, whose KV heads all live on the host, packed: a unit has two planes.
fn noisy(kv_heads: usize) -> (ModelSpec, Request) {
    let spec = tiny(1, kv_heads, kv_heads, 32);
    let overrides = Overrides { kv: KvFormat::Bf16Packed, ..Overrides::default() };
    let request = Request { placement: PlacementMode::Offload, overrides, ..request(DeviceKind::Cpu, 1000) };
    (spec, request)
}

/// K and V of `rows` tokens, of which the first `wide` halves have every exponent, NaN and infinity, and the rest a
/// few.
fn noise(spec: &ModelSpec, rows: usize, wide: usize) -> Vec<u8> {
    let mut draw = Draw(53);
    let halves = 2 * spec.layers * spec.kv_heads;
    let value = |half: usize, draw: &mut Draw| match half < wide {
        true => draw.below(1 << 16) as u16,
        false => 0x3f80 | draw.below(128) as u16,
    };
    let values = (0..halves).flat_map(|half| vec![half; rows * spec.head_dim]);
    values.map(|half| value(half, &mut draw)).flat_map(u16::to_le_bytes).collect()
}

#[test]
fn halves_that_do_not_shrink_have_planes_until_there_is_none_left() {
    let (spec, request) = noisy(4);
    let weights = Arc::new(random_weights(&spec, 1));
    let open = || {
        let plan = Arc::new(Plan::new(&spec, &request).unwrap());
        assert_eq!(plan.layout().planes(&spec), 2);
        Cpu::open(plan, weights.clone(), &CpuOptions { poison: true, ..CpuOptions::default() }).unwrap()
    };
    for wide in 0..5 {
        let kv = noise(&spec, 2 * UNIT, wide);
        let mut cpu = open();
        let written = cpu.write_rows(0..2 * UNIT, &kv);
        if wide <= 2 {
            written.unwrap();
            // Written anew, a unit has all its planes again.
            let mut back = vec![0; kv.len()];
            cpu.write_rows(0..2 * UNIT, &kv).unwrap();
            cpu.read_rows(0..2 * UNIT, 2 * UNIT, &mut back).unwrap();
            assert!(back == kv, "{wide} halves");
        } else {
            let error = written.unwrap_err().to_string();
            assert!(error.contains("tokens 0..256") && error.contains("--kv-dtype bf16"), "{error}");
        }
    }
}

#[test]
fn a_step_that_completes_a_unit_without_planes_fails_and_says_what_to_do() {
    let (spec, request) = noisy(4);
    let weights = Arc::new(random_weights(&spec, 1));
    let plan = Arc::new(Plan::new(&spec, &request).unwrap());
    for wide in [2, 3] {
        let mut cpu = Cpu::open(plan.clone(), weights.clone(), &CpuOptions::default()).unwrap();
        // Finite, so that logits are.
        let mut kv = noise(&spec, UNIT - 1, wide);
        kv.chunks_exact_mut(2).for_each(|value| value[1] &= 0x3f);
        cpu.write_rows(0..UNIT - 1, &kv).unwrap();
        let mut step = |past| {
            let schedule = plan.schedule(Step { past, rows: 1, logit_rows: 1 });
            cpu.submit(&schedule, &[1]).map(|()| cpu.logits().unwrap()[0].is_finite())
        };
        let done = step(UNIT - 1);
        if wide == 2 {
            assert!(done.unwrap() && step(UNIT).unwrap());
        } else {
            let error = done.unwrap_err().to_string();
            assert!(error.contains("tokens 0..256") && error.contains("--kv-dtype bf16"), "{error}");
            // What the store then lacks, nothing is computed with.
            assert_eq!(step(UNIT).unwrap_err().to_string(), error);
        }
    }
}

#[test]
fn a_million_tokens_of_llama_3_8b_take_three_quarters_of_the_memory_and_of_the_link() {
    let spec = llama_3_8b();
    let plan = |kv| {
        let offload = Request {
            device_budget: 24 * GIB,
            placement: PlacementMode::Offload,
            ..with(&request(DeviceKind::Cuda, 1 << 20), kv)
        };
        Arc::new(Plan::new(&spec, &offload).unwrap())
    };
    let [plain, packed] = KvFormat::EXACT.map(plan);
    let store = |plan: &Plan| plan.layout().region_bytes(RegionId::HostKv);
    // A unit's half is 50112 bytes instead of 65536; planes take 32 of 16 KiB of each 512 halves.
    assert_eq!(store(&plain), 128 * GIB);
    assert_eq!(store(&packed), 4096 * (512 * 50_112 + 32 * 16_384));
    assert!(packed.host_bytes() < 101 * GIB, "{}", packed.host_bytes());
    assert!(packed.device_bytes() < plain.device_bytes() + 128 * MIB, "{}", packed.device_bytes());
    let report = packed.report().text();
    assert!(report.contains("bf16-packed (1.31 × smaller)"), "{report}");
    assert!(packed.why().iter().any(|line| line.contains("32 planes")), "{:?}", packed.why());
    let step = Step { past: (1 << 20) - 1, rows: 1, logit_rows: 1 };
    let (full, cost) = (plain.step_cost(&step), packed.step_cost(&step));
    let ratio = full.in_bytes / cost.in_bytes;
    assert!((1.30..1.32).contains(&ratio), "{ratio}");
    assert!(packed.decode_floor_s(step.past) < plain.decode_floor_s(step.past) / 1.3);
    // 255 of 256 steps send nothing back.
    assert!(cost.out_bytes > 0.0 && packed.step_cost(&Step { past: step.past - 1, ..step }).out_bytes == 0.0);
    let mut trace = Trace::open(packed.clone());
    trace.submit(&packed.schedule(step), &[0]).unwrap();
    assert_eq!(trace.stats().bytes[1] as f64, cost.in_bytes);
}

#[test]
fn heads_that_all_stay_on_the_device_are_not_packed() {
    let case = &cases()[0];
    let all = case.spec.layers * case.spec.kv_heads;
    let overrides = |kv| Overrides { resident_heads: Some(all), kv, ..Overrides::default() };
    let plan = |kv| Plan::new(&case.spec, &bounded(case, overrides(kv))).unwrap();
    let [plain, packed] = KvFormat::EXACT.map(plan);
    assert!(!packed.coded());
    for memory in [Memory::Device, Memory::Host] {
        assert_eq!(plain.layout().bytes(memory), packed.layout().bytes(memory));
    }
    let step = Step { past: 700, rows: 2, logit_rows: 1 };
    assert_eq!(plain.schedule(step).commands, packed.schedule(step).commands);
}

#[test]
fn units_are_packed_once_and_open_rows_stay() {
    let (spec, request) = noisy(2);
    let plan = Plan::new(&spec, &request).unwrap();
    for (past, rows, units) in [(0, 255, 0), (0, 256, 1), (255, 1, 1), (256, 255, 0), (300, 500, 2)] {
        let step = Step { past, rows, logit_rows: 0 };
        assert_eq!(plan.new_units(&step).len(), units, "{step:?}");
        let schedule = plan.schedule(step);
        assert_eq!(hazard::check(&plan, &schedule), []);
        let evicts = schedule.commands.iter().filter(|c| matches!(c.op, Op::Evict { .. })).count();
        assert_eq!(evicts, usize::from(units > 0), "{step:?}");
    }
}

#[test]
fn a_packed_prefill_can_be_cancelled_and_go_on() {
    let case = &cases()[1];
    let request = bounded(case, Overrides { resident_heads: Some(0), ..Overrides::default() });
    let run = |kv| {
        let mut session = session(case, &with(&request, kv));
        let mut chunks = 0;
        let stopped = session.prefill(&case.ids, &mut |_| {
            chunks += 1;
            if chunks == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(stopped.is_err());
        let done = session.tokens().len();
        logits(&mut session, &case.ids[done..], 3)
    };
    assert!(run(KvFormat::Bf16) == run(KvFormat::Bf16Packed));
}
