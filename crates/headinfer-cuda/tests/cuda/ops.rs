//! Single commands: against f64 references on random inputs, and touching nothing but their operands.

use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{
    Access, DECODE_ROWS, DeviceKind, Heads, Lane, Memory, Op, Overrides, Part, Plan, Request, Role, Span,
    Step, WeightsMode,
};
use headinfer_cuda::{Cuda, CudaOptions, Hopper, PrefillKernel, Tiling, probe};

use crate::reference::{Rounding, attend};
use crate::run::{
    bf16_of, bytes_of, everything, f32_of, has_gpu, open_plan, options, options_by_kernel, random_bf16,
    relative_error, run_op, spans,
};
use crate::support::{Draw, request, tiny};

/// A case of attention: what it is called with and what lies in memory.
struct Case {
    spec: ModelSpec,
    plan: Arc<Plan>,
    step: Step,
    resident: bool,
    own_with_last: bool,
    /// Per KV head: `[past + rows, d]`.
    keys: Vec<Vec<u16>>,
    values: Vec<Vec<u16>>,
    /// Per KV head: `[rows, group, d]`.
    queries: Vec<Vec<u16>>,
}

fn random_case(draw: &mut Draw, size: f64) -> Case {
    let kv_heads = 1 + draw.below(3);
    let mut spec = tiny(1, kv_heads * (1 + draw.below(5)), kv_heads, draw.of(&[8, 16, 24, 64, 96, 128, 256]));
    spec.windows[0] = draw.of(&[None, None, Some(1), Some(90), Some(500)]);
    let resident = draw.below(2) == 0;
    let overrides = Overrides {
        chunk: Some(300),
        tile: Some(256 * (1 + draw.below(3))),
        heads_per_group: Some(kv_heads),
        resident_heads: Some(if resident { kv_heads } else { 0 }),
        ..Overrides::default()
    };
    let request = Request { overrides, ..request(DeviceKind::Cuda, 1500) };
    let plan = Arc::new(Plan::new(&spec, &request).expect("the plan fits"));
    let rows = if draw.below(2) == 0 { 1 + draw.below(16) } else { 17 + draw.below(284) };
    let step = Step { past: draw.below(1200), rows, logit_rows: 0 };
    let per_head = |draw: &mut Draw, count: usize| -> Vec<Vec<u16>> {
        (0..kv_heads).map(|_| random_bf16(draw, count * spec.head_dim, size)).collect()
    };
    let keys = per_head(draw, step.past + rows);
    let values = per_head(draw, step.past + rows);
    let queries = per_head(draw, rows * spec.group());
    // With few rows those of the split that the past ends in are attended to together.
    let own_with_last = (2..=DECODE_ROWS).contains(&rows) || draw.below(4) > 0;
    Case { spec, plan, step, resident, own_with_last, keys, values, queries }
}

impl Case {
    fn heads(&self) -> Heads {
        Heads { start: 0, end: self.spec.kv_heads }
    }

    /// Puts the rows of every head where `op` reads them, those of the past from `first` on, then runs it.
    fn run(&self, cuda: &mut Cuda, op: &Op, first: usize) {
        let width = self.spec.head_dim * 2;
        for (role, all, first) in [
            (Role::Key, &self.keys, first),
            (Role::Value, &self.values, first),
            (Role::OwnKey, &self.keys, self.step.past),
            (Role::OwnValue, &self.values, self.step.past),
        ] {
            for (span, rows) in spans(&self.plan, &self.step, op, role).into_iter().zip(all) {
                cuda.write(span, &bytes_of(rows)[first * width..][..span.bytes as usize]).unwrap();
            }
        }
        for (span, rows) in spans(&self.plan, &self.step, op, Role::Query).into_iter().zip(&self.queries) {
            cuda.write(span, &bytes_of(rows)).unwrap();
        }
        run_op(cuda, &self.plan, self.step, op, &vec![0; self.step.rows]);
    }

    /// The attention output `[rows, q_dim]`.
    fn attend(&self, cuda: &mut Cuda) -> Vec<f64> {
        let tiles = self.plan.visible_tiles(&self.step, 0);
        let slot = |tile| tile % self.plan.knobs().ring_slots;
        let mut parts: Vec<Part> = match self.resident {
            true => vec![Part::Resident],
            false => tiles.map(|tile| Part::Slot { tile, slot: slot(tile), own: false }).collect(),
        };
        // With the last tile, as a schedule has it, or after it.
        match parts.last_mut() {
            Some(Part::Slot { own, .. }) if self.own_with_last => *own = true,
            Some(Part::Resident) => (),
            _ => parts.push(Part::Own),
        }
        let mut out = None;
        for (i, part) in parts.iter().enumerate() {
            let (first, last) = (i == 0, i + 1 == parts.len());
            let op = Op::Attend { layer: 0, heads: self.heads(), part: *part, first, last };
            self.run(cuda, &op, self.plan.past_rows(&self.step, *part).start);
            out = spans(&self.plan, &self.step, &op, Role::AttnOut).first().copied();
        }
        bf16_of(&cuda.read(out.expect("the last part writes the output")).unwrap())
    }

    fn reference(&self, rounding: Rounding) -> Vec<f64> {
        let (d, group) = (self.spec.head_dim, self.spec.group());
        let wide = |rows: &[u16]| bf16_of(&bytes_of(rows));
        let mut out = vec![0.0; self.step.rows * self.spec.q_dim()];
        for head in 0..self.spec.kv_heads {
            let (keys, values) = (wide(&self.keys[head]), wide(&self.values[head]));
            let queries = wide(&self.queries[head]);
            for (row, query) in queries.chunks(d).enumerate() {
                let position = self.step.past + row / group;
                let one = attend(rounding, query, (&keys, &values), position, self.spec.windows[0]);
                let at = row / group * self.spec.q_dim() + (head * group + row % group) * d;
                out[at..at + d].copy_from_slice(&one);
            }
        }
        out
    }
}

#[test]
fn attention_is_as_exact_as_bf16_allows() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(41);
    for round in 0..60 {
        // Sharp and flat softmaxes.
        let case = random_case(&mut draw, [1.0, 0.3, 3.0][round % 3]);
        let weights = Arc::new(random_weights(&case.spec, 0));
        let exact = case.reference(Rounding::Exact);
        let allowed = 2.0 * relative_error(&case.reference(Rounding::Plain), &exact) + 1.0 / 1024.0;
        let (step, d, group) = (case.step, case.spec.head_dim, case.spec.group());
        for options in options_by_kernel(d) {
            let error = relative_error(&case.attend(&mut open_plan(&case.plan, &weights, &options)), &exact);
            let kernel = options.prefill;
            let what = format!("d {d} group {group} window {:?} {step:?} {kernel:?}", case.spec.windows[0]);
            eprintln!("{what} resident {}: error {error:.2e}, allowed {allowed:.2e}", case.resident);
            assert!(error <= allowed, "{error} > {allowed}: {what} {:?}", case.plan.knobs());
        }
    }
}

/// A machine with one card tests what other cards get.
#[test]
fn every_tiling_gives_the_same_bits() {
    if !has_gpu() {
        return;
    }
    let shared = probe(0).unwrap().shared_bytes;
    let mut draw = Draw(43);
    for _ in 0..16 {
        let case = random_case(&mut draw, 1.0);
        let weights = Arc::new(random_weights(&case.spec, 0));
        let d = case.spec.head_dim;
        let attend = |tiling| {
            let options = CudaOptions { prefill: Some(PrefillKernel::Portable(tiling)), ..options() };
            case.attend(&mut open_plan(&case.plan, &weights, &options))
        };
        let expected = attend(Tiling::new(d, shared));
        for tiling in Tiling::candidates(d).iter().filter(|t| t.fits(d, shared)) {
            assert!(
                attend(*tiling) == expected,
                "d {d} {tiling:?} {:?} window {:?}",
                case.step,
                case.spec.windows[0]
            );
        }
    }
}

/// Nor does how the Hopper kernel shares its work change a bit.
#[test]
fn every_build_of_the_hopper_kernel_gives_the_same_bits() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(44);
    for _ in 0..24 {
        let case = random_case(&mut draw, 1.0);
        let d = case.spec.head_dim;
        let PrefillKernel::Hopper(usual) = probe(0).unwrap().prefill_kernel(d) else { continue };
        let weights = Arc::new(random_weights(&case.spec, 0));
        let attend = |built| {
            let options = CudaOptions { prefill: Some(PrefillKernel::Hopper(built)), ..options() };
            case.attend(&mut open_plan(&case.plan, &weights, &options))
        };
        let expected = attend(usual);
        let consumers: &[usize] = if d == 64 { &[2, 3, 4] } else { &[2] };
        for (&consumers, in_turns) in consumers.iter().flat_map(|c| [(c, false), (c, true)]) {
            let built = Hopper { consumers, in_turns, ..usual };
            assert!(
                attend(built) == expected,
                "d {d} {built:?} {:?} window {:?}",
                case.step,
                case.spec.windows[0]
            );
        }
    }
}

/// Every command of some steps, one at a time: what it does not declare for writing stays as it was, and the answer
/// is that of the whole schedule.
#[test]
fn every_op_writes_only_its_operands() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(42);
    for seed in 0..6 {
        let mut spec = tiny(2, 4, 2, draw.of(&[16, 64, 128]));
        (spec.qkv_bias, spec.qk_norm, spec.o_bias, spec.mlp_bias) = (true, true, true, true);
        let weights = Arc::new(random_weights(&spec, seed));
        let overrides = Overrides {
            chunk: Some(70),
            tile: Some(256),
            heads_per_group: Some(1),
            resident_heads: Some(draw.below(3)),
            host_heads: Some(draw.below(3)),
            ..Overrides::default()
        };
        let mode = draw.of(&[WeightsMode::Resident, WeightsMode::Stream]);
        let request = Request { overrides, weights: mode, ..request(DeviceKind::Cuda, 700) };
        let plan = Arc::new(Plan::new(&spec, &request).unwrap());
        let mut whole = open_plan(&plan, &weights, &options());
        let mut single = open_plan(&plan, &weights, &options());
        let mut watched = None;
        let mut past = 0;
        for rows in [70, 70, 70, 70, 3, 1] {
            let step = Step { past, rows, logit_rows: rows.min(2) };
            let ids: Vec<u32> = (0..rows).map(|_| draw.below(spec.vocab) as u32).collect();
            let schedule = plan.schedule(step);
            whole.submit(&schedule, &ids).unwrap();
            for command in &schedule.commands {
                // Only the last steps are looked at: reading everything back takes its time.
                let known = (past >= 210).then(|| watched.get_or_insert_with(|| everything(&single, &plan)));
                run_op(&mut single, &plan, step, &command.op, &ids);
                if let Some(known) = known {
                    check_writes(known, &single, &plan, step, &command.op);
                }
            }
            let got = whole.logits().unwrap().to_vec();
            assert!(got.iter().all(|x| x.is_finite()));
            assert_eq!(got, single.logits().unwrap(), "{step:?} {:?}", plan.knobs());
            past += rows;
        }
    }
}

/// Device memory that is compared at a time: as much as a processor keeps near.
const PIECE: usize = 4 << 20;

/// All of the device's memory is as it was `known` to be, but for what `op`, which ran, declares for writing; that
/// becomes known.
fn check_writes(known: &mut [u8], cuda: &Cuda, plan: &Plan, step: Step, op: &Op) {
    let operands = [plan.operands(&step, op), plan.ids_operand(step.rows)];
    let written = operands.iter().flat_map(|o| o.as_slice()).filter(|o| o.access == Access::Write);
    let written: Vec<Span> = written.map(|o| o.span).filter(|s| s.memory == Memory::Device).collect();
    for (start, known) in (0u64..).step_by(PIECE).zip(known.chunks_mut(PIECE)) {
        let end = start + known.len() as u64;
        let got = cuda.read(Span { memory: Memory::Device, offset: start, bytes: end - start }).unwrap();
        for span in &written {
            let from = span.offset.clamp(start, end) - start;
            let to = (span.offset + span.bytes).clamp(start, end) - start;
            let may = from as usize..to as usize;
            known[may.clone()].copy_from_slice(&got[may]);
        }
        if got != known {
            let stray = got.iter().zip(known.iter()).position(|(a, b)| a != b);
            panic!("{op:?} wrote a byte that it does not declare: {stray:?} from {start}");
        }
    }
}

#[test]
fn angles_are_exact_at_millions_of_tokens() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(1, 2, 1, 128);
    let overrides =
        Overrides { chunk: Some(64), resident_heads: Some(0), tile: Some(1 << 16), ..Overrides::default() };
    let request = Request { overrides, ..request(DeviceKind::Cuda, 1 << 22) };
    let plan = Arc::new(Plan::new(&spec, &request).unwrap());
    let mut cuda = open_plan(&plan, &Arc::new(random_weights(&spec, 0)), &options());
    for past in [0, 1000, (1 << 20) - 7, (1 << 22) - 64] {
        let step = Step { past, rows: 64, logit_rows: 0 };
        run_op(&mut cuda, &plan, step, &Op::Embed, &[3; 64]);
        let half = 64 * spec.head_dim / 2;
        let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
        spec.rope.table(spec.head_dim, past as u64, 64, &mut cos, &mut sin);
        for (role, expected) in [(Role::Cos, cos), (Role::Sin, sin)] {
            let got = f32_of(&cuda.read(spans(&plan, &step, &Op::Embed, role)[0]).unwrap());
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= f32::EPSILON, "{past} {role:?}: {worst}");
        }
    }
}

#[test]
fn plans_that_the_backend_does_not_run_are_refused_in_a_line() {
    if !has_gpu() {
        return;
    }
    let refusal = |spec: &ModelSpec, request: &Request| {
        let plan = Arc::new(Plan::new(spec, request).unwrap());
        let weights = headinfer_cuda::CudaWeights::Loaded(Arc::new(random_weights(spec, 0)));
        Cuda::open(plan, weights, &options()).err().expect("refused").to_string()
    };
    let spec = tiny(1, 2, 2, 16);
    let cuda = request(DeviceKind::Cuda, 512);
    assert!(refusal(&spec, &request(DeviceKind::Cpu, 512)).contains("CPU"));
    assert!(refusal(&tiny(1, 2, 2, 20), &cuda).contains("head_dim is 20"));
    assert_eq!(Lane::ALL.len(), 4, "a new lane needs a stream, or a thread");
}
