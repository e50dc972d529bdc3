//! What needs a large GPU and some time: run with `--ignored`. Prints rates as it goes.

use std::sync::Arc;
use std::time::Duration;

use headinfer_core::backend::Backend;
use headinfer_core::engine::Session;
use headinfer_core::model::random::random_weights;
use headinfer_core::plan::{
    DeviceKind, Heads, Op, Overrides, Part, PlacementMode, Plan, Request, Role, Span, Step, WeightsMode,
};
use headinfer_core::units::{Bytes, GIB};
use headinfer_cuda::{Cuda, CudaOptions, CudaWeights, PrefillKernel, Tiling};

use crate::run::{bf16_of, bytes_of, has_gpu, logits, open_plan, options, random_bf16, run_op, spans};
use crate::support::{Draw, llama_3_8b, request, tiny};

fn quick() -> CudaOptions {
    CudaOptions { poison: false, ..options() }
}

/// Element indices past 2^31 and byte offsets past 2^32: one head of 17 Mi tokens, all zeros but one key that the
/// queries look for.
#[test]
#[ignore = "takes 9 GiB of device memory"]
fn offsets_pass_two_to_the_31() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(1, 1, 1, 128);
    let context = (1 << 24) + (1 << 20);
    let overrides = Overrides { chunk: Some(32), resident_heads: Some(1), ..Overrides::default() };
    let plan =
        Arc::new(Plan::new(&spec, &Request { overrides, ..request(DeviceKind::Cuda, context) }).unwrap());
    let mut cuda = open_plan(&plan, &Arc::new(random_weights(&spec, 0)), &quick());
    let mut draw = Draw(51);
    let needle = random_bf16(&mut draw, 128, 4.0);
    let value = random_bf16(&mut draw, 128, 1.0);
    let op = Op::Attend {
        layer: 0,
        heads: Heads { start: 0, end: 1 },
        part: Part::Resident,
        first: true,
        last: true,
    };
    let at = (1u64 << 24) + 1000;
    let zero = |cuda: &mut Cuda, all: Span| {
        for offset in (0..all.bytes).step_by(256 << 20) {
            let bytes = (256u64 << 20).min(all.bytes - offset);
            cuda.write(Span { offset: all.offset + offset, bytes, ..all }, &vec![0; bytes as usize]).unwrap();
        }
    };
    for rows in [1, 20] {
        let step = Step { past: context - rows, rows, logit_rows: 0 };
        for role in [Role::OwnKey, Role::OwnValue] {
            zero(&mut cuda, spans(&plan, &step, &op, role)[0]);
        }
        for (role, row) in [(Role::Key, &needle), (Role::Value, &value)] {
            let all = spans(&plan, &step, &op, role)[0];
            zero(&mut cuda, all);
            let place = Span { offset: all.offset + at * 256, bytes: 256, ..all };
            cuda.write(place, &bytes_of(row)).unwrap();
        }
        let query = spans(&plan, &step, &op, Role::Query)[0];
        cuda.write(query, &bytes_of(&needle.repeat(rows))).unwrap();
        run_op(&mut cuda, &plan, step, &op, &vec![0; rows]);
        let out = bf16_of(&cuda.read(spans(&plan, &step, &op, Role::AttnOut)[0]).unwrap());
        let expected = bf16_of(&bytes_of(&value.repeat(rows)));
        let worst = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 0.02, "{rows} rows: {worst}");
    }
}

/// Llama-3-8B's shape with random weights.
pub(crate) fn llama(request: &Request) -> Session {
    let plan = Arc::new(Plan::new(&llama_3_8b(), request).expect("the plan fits"));
    let cuda =
        Cuda::open(plan.clone(), CudaWeights::Random { seed: 1 }, &quick()).expect("the backend opens");
    Session::new(plan, Box::new(cuda))
}

#[test]
#[ignore = "takes 24 GiB of device memory and a minute"]
fn llama_3_8b_gives_the_same_bits_resident_and_offloaded() {
    if !has_gpu() {
        return;
    }
    let tokens = 32 << 10;
    let mut draw = Draw(52);
    let ids: Vec<u32> = (0..tokens).map(|_| draw.below(128_256) as u32).collect();
    let chunk = Some(8192);
    let base = Request { device_budget: 24 * GIB, ..request(DeviceKind::Cuda, tokens + 64) };
    let with = |placement, weights, tile, group| {
        let overrides = Overrides { chunk, tile, heads_per_group: group, ..Overrides::default() };
        Request { placement, weights, overrides, ..base.clone() }
    };
    use PlacementMode::{Offload, Resident};
    let requests = [
        with(Resident, WeightsMode::Resident, None, None),
        with(Offload, WeightsMode::Resident, None, None),
        with(Offload, WeightsMode::Stream, Some(4096), Some(4)),
        with(Offload, WeightsMode::Resident, Some(2048), Some(1)),
    ];
    let mut expected: Option<Vec<u32>> = None;
    for request in &requests {
        let mut session = llama(request);
        let begun = std::time::Instant::now();
        let mut all = logits(&mut session, &ids, 1);
        let prefill = begun.elapsed();
        all.extend_from_slice(session.step(&[7], 1).unwrap());
        let begun = std::time::Instant::now();
        for id in 0..8 {
            all.extend_from_slice(session.step(&[id], 1).unwrap());
        }
        let (decode, stats) = (begun.elapsed() / 8, session.backend().stats());
        let (plan, k) = (session.plan().device_bytes(), session.plan().knobs().clone());
        eprintln!(
            "measure: llama-3-8b {tokens} tokens {:?} weights {:?} tile {} group {}: prefill {:.2} s, decode {:.2} ms, \
             device {} of {} planned with {} for the context",
            request.placement,
            request.weights,
            k.tile,
            k.heads_per_group,
            prefill.as_secs_f64(),
            decode.as_secs_f64() * 1e3,
            Bytes(stats.device_bytes),
            Bytes(plan),
            Bytes(session.plan().request.machine.device_overhead),
        );
        assert!(all.iter().all(|x| x.is_finite()));
        let bits: Vec<u32> = all.into_iter().map(f32::to_bits).collect();
        match &expected {
            None => expected = Some(bits),
            Some(expected) => assert!(*expected == bits, "{k:?}"),
        }
    }
}

/// Median time of the one command of `runs` steps.
fn median_time(cuda: &mut Cuda, plan: &Plan, step: Step, op: &Op, runs: usize) -> Duration {
    cuda.record_timeline(true);
    let ids = vec![0; step.rows];
    let mut times: Vec<Duration> = (0..runs)
        .map(|_| {
            run_op(cuda, plan, step, op, &ids);
            let timed = cuda.timeline()[0].clone();
            timed.end - timed.start
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "measures"]
fn rates_of_attention() {
    if !has_gpu() {
        return;
    }
    for head_dim in [64, 128, 256] {
        let spec = headinfer_core::model::spec::ModelSpec { hidden: 1024, ..tiny(1, 4, 1, head_dim) };
        let overrides = Overrides {
            chunk: Some(8192),
            tile: Some(32 << 10),
            resident_heads: Some(0),
            ring_slots: Some(1),
            ..Overrides::default()
        };
        let plan = Plan::new(&spec, &Request { overrides, ..request(DeviceKind::Cuda, 128 << 10) });
        let plan = Arc::new(plan.unwrap());
        let mut cuda = open_plan(&plan, &Arc::new(random_weights(&spec, 0)), &quick());
        let heads = Heads { start: 0, end: 1 };
        let slot = Part::Slot { tile: 1, slot: 0, own: false };
        for (name, rows, part) in [("past", 8192, slot), ("own", 8192, Part::Own), ("decode", 1, slot)] {
            let step = Step { past: 64 << 10, rows, logit_rows: 0 };
            let op = Op::Attend { layer: 0, heads, part, first: true, last: part == Part::Own };
            let mut draw = Draw(53);
            for role in [Role::Query, Role::Key, Role::Value, Role::OwnKey, Role::OwnValue] {
                for span in spans(&plan, &step, &op, role) {
                    let values = random_bf16(&mut draw, span.bytes as usize / 2, 1.0);
                    cuda.write(span, &bytes_of(&values)).unwrap();
                }
            }
            let time = median_time(&mut cuda, &plan, step, &op, 9).as_secs_f64();
            let cost = plan.command_cost(&step, &op);
            eprintln!(
                "measure: attention d {head_dim} {name}: {:.3} ms, {:.0} TFLOP/s, {:.0} GB/s",
                time * 1e3,
                cost.attention_flop / time / 1e12,
                cost.device_bytes / time / 1e9,
            );
            assert!(time > 0.0);
        }
    }
}

/// KV heads of four query heads each, rows, and past; without past, rows see one another.
const PREFILLS: [(usize, usize, usize); 13] = [
    (8, 8 << 10, 0),
    (8, 16 << 10, 0),
    (8, 32 << 10, 0),
    (1, 8 << 10, 0),
    (1, 4 << 10, 32 << 10),
    (1, 8 << 10, 128 << 10),
    (1, 8 << 10, 256 << 10),
    (1, 8 << 10, 512 << 10),
    (1, 8 << 10, 1 << 20),
    (1, 16 << 10, 128 << 10),
    (1, 16 << 10, 256 << 10),
    (1, 16 << 10, 512 << 10),
    (1, 16 << 10, 1 << 20),
];

/// What devices get, and what was tried beside it.
fn tilings(head_dim: usize) -> Vec<Tiling> {
    let tiling = |warps, row_tiles, stages, query_shared, blocks| Tiling {
        warps,
        row_tiles,
        stages,
        query_shared,
        blocks,
    };
    let more = match head_dim {
        64 => vec![tiling(4, 2, 1, false, 2), tiling(8, 2, 3, false, 1)],
        96 => vec![tiling(8, 2, 2, true, 1)],
        128 => vec![tiling(8, 2, 2, true, 1)],
        _ => Vec::new(),
    };
    let mut all = Tiling::candidates(head_dim).to_vec();
    all.extend(more);
    all.retain(|t| t.fits(head_dim, headinfer_cuda::probe(0).unwrap().shared_bytes));
    all
}

/// Prefill attention of one head dimension, built in one way.
struct Prefill {
    tiling: Tiling,
    plan: Arc<Plan>,
    cuda: Cuda,
}

impl Prefill {
    fn open(tiling: Tiling, head_dim: usize, kv_heads: usize, random: &[Vec<u8>; 3]) -> Self {
        let shapes = || PREFILLS.iter().filter(|(heads, ..)| *heads == kv_heads);
        let (rows, past) = (shapes().map(|s| s.1).max().unwrap(), shapes().map(|s| s.2).max().unwrap());
        let spec = tiny(1, 4 * kv_heads, kv_heads, head_dim);
        let overrides = Overrides {
            chunk: Some(rows),
            tile: Some(past.max(rows)),
            resident_heads: Some(0),
            heads_per_group: Some(kv_heads),
            ring_slots: Some(1),
            ..Overrides::default()
        };
        let request = Request { overrides, ..request(DeviceKind::Cuda, past + rows) };
        let plan = Arc::new(Plan::new(&spec, &request).unwrap());
        let options = CudaOptions { prefill: Some(PrefillKernel::Portable(tiling)), ..quick() };
        let cuda = open_plan(&plan, &Arc::new(random_weights(&spec, 0)), &options);
        let mut this = Self { tiling, plan, cuda };
        for past in [0, past] {
            let (step, op) = this.command(rows, past);
            let roles = [Role::Query, Role::Key, Role::Value, Role::OwnKey, Role::OwnValue];
            for (role, random) in roles.into_iter().zip([0, 1, 2, 1, 2].map(|i| &random[i])) {
                for span in spans(&this.plan, &step, &op, role) {
                    this.fill(span, random);
                }
            }
        }
        this
    }

    fn command(&self, rows: usize, past: usize) -> (Step, Op) {
        let heads = Heads { start: 0, end: self.plan.spec.kv_heads };
        let part = if past > 0 { Part::Slot { tile: 0, slot: 0, own: false } } else { Part::Own };
        (
            Step { past, rows, logit_rows: 0 },
            Op::Attend { layer: 0, heads, part, first: true, last: past == 0 },
        )
    }

    fn fill(&mut self, span: Span, random: &[u8]) {
        for offset in (0..span.bytes).step_by(random.len()) {
            let bytes = (random.len() as u64).min(span.bytes - offset);
            let part = Span { offset: span.offset + offset, bytes, ..span };
            self.cuda.write(part, &random[..bytes as usize]).unwrap();
        }
    }

    /// FLOP a second.
    fn rate(&mut self, rows: usize, past: usize) -> f64 {
        let (step, op) = self.command(rows, past);
        let time = median_time(&mut self.cuda, &self.plan, step, &op, 3).as_secs_f64();
        self.plan.command_cost(&step, &op).attention_flop / time
    }

    fn result(&self, rows: usize, past: usize) -> Vec<u8> {
        let (step, op) = self.command(rows, past);
        let role = if past > 0 { Role::StateAcc } else { Role::AttnOut };
        self.cuda.read(spans(&self.plan, &step, &op, role)[0]).unwrap()
    }
}

/// The shapes in rounds, every tiling once a round; all tilings give the same bits.
#[test]
#[ignore = "takes 24 GiB of device memory; measures"]
fn rates_of_tilings() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(54);
    let random = [(); 3].map(|()| bytes_of(&random_bf16(&mut draw, 1 << 22, 1.0)));
    for head_dim in [64, 96, 128, 256] {
        for kv_heads in [1, 8] {
            let mut all: Vec<Prefill> =
                tilings(head_dim).iter().map(|t| Prefill::open(*t, head_dim, kv_heads, &random)).collect();
            for (_, rows, past) in PREFILLS.into_iter().filter(|(heads, ..)| *heads == kv_heads) {
                let mut rates = vec![Vec::new(); all.len()];
                for _ in 0..3 {
                    all.iter_mut().zip(&mut rates).for_each(|(one, rates)| rates.push(one.rate(rows, past)));
                }
                let expected = all[0].result(rows, past);
                for (one, rates) in all.iter().zip(&mut rates) {
                    rates.sort_by(f64::total_cmp);
                    let Tiling { warps, row_tiles, stages, query_shared, blocks } = one.tiling;
                    eprintln!(
                        "measure: prefill d {head_dim} kv_heads {kv_heads} rows {rows} past {past} \
                         {warps}x{row_tiles}x{stages}q{}b{blocks} {:.0} TFLOP/s",
                        query_shared as u8,
                        rates[1] / 1e12,
                    );
                    assert!(one.result(rows, past) == expected, "{:?} gives other bits", one.tiling);
                }
            }
        }
    }
}
