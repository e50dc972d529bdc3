//! Plans, schedules and hazards: what can be said without arithmetic.

use headinfer_core::dtype::DType;
use headinfer_core::engine::guess::{Guesser, Lookup};
use headinfer_core::model::config::{
    HEAD_DIM_MAX, HEADS_MAX, HIDDEN_MAX, INTERMEDIATE_MAX, KV_WIDTH_MAX, LAYERS_MAX, VOCAB_MAX,
};
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::hazard::{self, Hazard, Order};
use headinfer_core::plan::paper::PaperLayout;
use headinfer_core::plan::{
    Cost, DECODE_ROWS, DeviceKind, Event, KvFormat, Lane, Machine, Memory, Op, Overrides, Part, Place,
    PlacementMode, Plan, PlanError, RegionId, Request, Schedule, Step, WEIGHT_PARTS, WeightBlock,
    WeightPlace, WeightsMode,
};
use headinfer_core::plan::{Heads, Operands, Role, Span};
use headinfer_core::units::{GIB, MIB};

use crate::support::{Draw, llama_3_8b, request, tiny};

/// A random small plan and a random step of it.
pub(crate) fn random_plan(draw: &mut Draw) -> (Plan, Step) {
    loop {
        let (layers, kv_heads) = (1 + draw.below(4), 1 + draw.below(4));
        let mut spec = tiny(layers, kv_heads * (1 + draw.below(3)), kv_heads, 16);
        if draw.below(3) == 0 {
            spec.windows[draw.below(layers)] = Some(1 + draw.below(700));
        }
        // The output head is one block, two, or several.
        spec.vocab = draw.of(&[13, 97, 3000]);
        spec.tied = draw.below(3) == 0;
        let all = layers * kv_heads;
        let resident = draw.below(all + 1);
        let mut request = request(draw.of(&[DeviceKind::Cpu, DeviceKind::Cuda]), 600 + draw.below(3000));
        request.weights = draw.of(&[WeightsMode::Auto, WeightsMode::Stream, WeightsMode::Resident]);
        request.overrides = Overrides {
            chunk: Some(1 + draw.below(300)),
            tile: Some(256 * (1 + draw.below(4))),
            heads_per_group: Some(1 + draw.below(kv_heads)),
            ring_slots: Some(1 + draw.below(4)),
            resident_heads: Some(resident),
            host_heads: Some(draw.below(all - resident + 1)),
            kept_layers: Some(draw.below(layers)),
            kv: draw.of(&KvFormat::ALL),
            ..Overrides::default()
        };
        let Ok(plan) = Plan::new(&spec, &request) else { continue };
        let rows = 1 + draw.below(plan.knobs().chunk);
        let past = draw.below(plan.knobs().context - rows + 1);
        let logit_rows = draw.below(rows.min(plan.knobs().logit_rows) + 1);
        return (plan, Step { past, rows, logit_rows });
    }
}

#[test]
fn every_schedule_is_free_of_hazards() {
    let mut draw = Draw(1);
    for _ in 0..600 {
        let (plan, step) = random_plan(&mut draw);
        let schedule = plan.schedule(step);
        assert_eq!(hazard::check(&plan, &schedule), [], "{:?} {step:?}", plan.knobs());
    }
}

#[test]
fn a_step_touches_no_host_memory_beyond_its_extent() {
    let mut draw = Draw(3);
    let mut tight = 0;
    for _ in 0..500 {
        let (plan, step) = random_plan(&mut draw);
        let extent = plan.layout().host_extent(step.past + step.rows);
        let commands = plan.schedule(step).commands;
        let operands = commands.iter().map(|c| plan.operands(&step, &c.op));
        let spans = operands.flat_map(|o| o.as_slice().to_vec()).map(|o| o.span);
        let end = spans.filter(|s| s.memory == Memory::Host).map(|s| s.offset + s.bytes).max().unwrap_or(0);
        assert!(end <= extent, "{end} {extent} {:?} {step:?}", plan.knobs());
        // The step's own rows are in the last piece of the extent, if any head lives on the host and no unit is open.
        let piece = plan.layout().piece_rows();
        let before = plan.layout().host_extent((step.past + step.rows - 1) / piece * piece);
        tight += usize::from(end > before);
        let all = plan.layout().bytes(Memory::Host);
        assert!(all - plan.layout().host_extent(plan.knobs().context) < 256, "the store comes last");
    }
    assert!(tight > 200, "{tight}");
}

#[test]
fn what_is_evicted_is_what_is_fetched_and_kept_whatever_the_tile() {
    let (spec, context, past) = (tiny(2, 4, 2, 32), 200_000, 150_000);
    for (tile, piece) in [(65_536, 16_384), (16_384, 16_384), (20_480, 20_480), (131_072, 16_384)] {
        let overrides = Overrides { tile: Some(tile), chunk: Some(8192), ..Overrides::default() };
        let offload = Request { overrides, ..request(DeviceKind::Cuda, context) };
        let plan = Plan::new(&spec, &Request { placement: PlacementMode::Offload, ..offload }).unwrap();
        assert_eq!(plan.layout().piece_rows(), piece);
        assert!(plan.layout().store_rows() < context + piece, "no more is kept than the last piece");
        let step = |past, rows| Step { past, rows, logit_rows: 0 };
        let spans = |o: Operands, role| -> Vec<_> {
            o.as_slice().iter().filter(|o| o.role == role).map(|o| o.span).collect()
        };
        for (layer, head) in [(0, 0), (1, 1)] {
            let kept = spans(plan.past_operands(layer, head, past), Role::Key);
            let heads = Heads { start: head, end: head + 1 };
            let fetch = |tile| Op::Fetch { layer, heads, tile, slot: 0 };
            let fetched = (0..past.div_ceil(tile)).flat_map(|t| {
                let operands = plan.operands(&step(past, 8192), &fetch(t));
                let to = spans(operands.clone(), Role::KeyTo);
                assert!(to.windows(2).all(|w| w[0].offset + w[0].bytes == w[1].offset), "a tile has no gaps");
                spans(operands, Role::Key)
            });
            assert_eq!(fetched.collect::<Vec<_>>(), kept);
            let evicted = (0..past).step_by(8192).flat_map(|from| {
                let operands = plan.operands(&step(from, 8192.min(past - from)), &Op::Evict { layer });
                let to = spans(operands, Role::KeyTo);
                // All heads' pieces, head by head.
                let each = to.len() / 2;
                to[head * each..(head + 1) * each].to_vec()
            });
            let evicted: Vec<_> = evicted.collect();
            let covered = |span: &Span| {
                let inside = evicted.iter().filter(|e| e.overlaps(span));
                inside.map(|e| e.bytes).sum::<u64>() == span.bytes
            };
            assert!(kept.iter().all(covered), "tile {tile}");
        }
    }
}

#[test]
fn removing_any_wait_is_flagged_or_proven_implied() {
    let mut draw = Draw(2);
    let (mut removed, mut flagged) = (0, 0);
    for _ in 0..250 {
        let (plan, step) = random_plan(&mut draw);
        let schedule = plan.schedule(step);
        for (command, wait) in waits(&schedule) {
            let mutant = without(&schedule, command, wait);
            removed += 1;
            let hazards = hazard::check(&plan, &mutant);
            if hazards.is_empty() {
                let signaller = signaller(&schedule, wait);
                let order = Order::of(&mutant).unwrap();
                assert!(
                    order.before(signaller, command),
                    "a wait orders nothing: {:?}",
                    schedule.commands[command]
                );
            } else {
                flagged += 1;
            }
        }
    }
    assert!(removed > 2000 && flagged > removed / 2, "{flagged} of {removed} flagged");
}

/// Every wait of a schedule: the waiting command and the event.
pub(crate) fn waits(schedule: &Schedule) -> Vec<(usize, Event)> {
    let commands = schedule.commands.iter().enumerate();
    commands.flat_map(|(i, c)| c.waits.iter().map(move |w| (i, *w))).collect()
}

/// The schedule without one wait.
pub(crate) fn without(schedule: &Schedule, command: usize, wait: Event) -> Schedule {
    let mut mutant = schedule.clone();
    mutant.commands[command].waits.retain(|w| *w != wait);
    mutant
}

fn signaller(schedule: &Schedule, event: Event) -> usize {
    schedule.commands.iter().position(|c| c.signals == Some(event)).unwrap()
}

#[test]
fn every_head_attends_each_visible_row_once_and_its_own_with_its_last_tile() {
    let mut draw = Draw(9);
    let (mut with_tile, mut alone, mut open) = (0, 0, 0);
    for _ in 0..1000 {
        let (plan, step) = random_plan(&mut draw);
        let commands = plan.schedule(step).commands;
        for (layer, head) in (0..plan.spec.layers).flat_map(|l| (0..plan.spec.kv_heads).map(move |h| (l, h)))
        {
            let attends = commands.iter().filter_map(|c| match c.op {
                Op::Attend { layer: l, heads, part, first, last }
                    if l == layer && heads.iter().contains(&head) =>
                {
                    Some((part, first, last))
                }
                _ => None,
            });
            let attends: Vec<_> = attends.collect();
            let on_host =
                matches!(plan.layout().place(layer, head, plan.spec.kv_heads), Place::HostAttend(_));
            let tiles = plan.visible_tiles(&step, layer);
            let merged = on_host && step.rows <= DECODE_ROWS && !tiles.is_empty();
            // What the CPU attends to, of a coded store whole units, comes before.
            let by_cpu = || tiles.clone().map(|tile| plan.host_rows(&step, tile).end.min(step.past)).max();
            let by_cpu = if merged { by_cpu() } else { None };
            let merged = by_cpu.is_some_and(|end| end > tiles.start * plan.knobs().tile);
            let mut next = by_cpu.unwrap_or(tiles.start * plan.knobs().tile);
            for (i, (part, first, last)) in attends.iter().enumerate() {
                assert_eq!((*first, *last), (i == 0 && !merged, i + 1 == attends.len()), "{part:?}");
                assert_eq!(part.has_own(), *last, "{part:?}");
                let rows = plan.past_rows(&step, *part);
                if !rows.is_empty() {
                    assert!(rows.start == next || *part == Part::Resident, "{part:?}");
                    next = rows.end;
                }
                with_tile += usize::from(matches!(part, Part::Slot { own: true, .. }));
                alone += usize::from(*part == Part::Own);
                open += usize::from(*part == Part::Open);
            }
            assert!(next == step.past || tiles.is_empty(), "rows up to {next} of {}", step.past);
        }
    }
    assert!(
        with_tile > 100 && alone > 50 && open > 50,
        "{with_tile} with a tile, {alone} alone, {open} with open rows"
    );
}

#[test]
fn a_wait_that_nothing_signals_is_flagged() {
    let (plan, step) = random_plan(&mut Draw(3));
    let mut schedule = plan.schedule(step);
    let last = schedule.commands.len() - 1;
    schedule.commands[last].waits.push(Event(u32::MAX));
    assert_eq!(hazard::check(&plan, &schedule), [Hazard::NeverSignalled { command: last }]);
}

#[test]
fn the_cost_of_a_step_is_the_sum_of_its_commands() {
    let mut draw = Draw(4);
    for _ in 0..200 {
        let (plan, step) = random_plan(&mut draw);
        let mut sum = Cost::default();
        for command in &plan.schedule(step).commands {
            sum += plan.command_cost(&step, &command.op);
        }
        let step_cost = plan.step_cost(&step);
        let pairs = [
            (sum.gemm_flop, step_cost.gemm_flop),
            (sum.attention_flop, step_cost.attention_flop),
            (sum.device_bytes, step_cost.device_bytes),
            (sum.in_bytes, step_cost.in_bytes),
            (sum.out_bytes, step_cost.out_bytes),
            (sum.host_bytes, step_cost.host_bytes),
            (sum.host_flop, step_cost.host_flop),
        ];
        for (a, b) in pairs {
            assert!((a - b).abs() <= 1e-9 * a.max(b), "{sum:?}\n{step_cost:?}\n{:?} {step:?}", plan.knobs());
        }
    }
}

/// What lies in a weight slot: a block, and which of its parts have come.
type Slot = Option<(WeightBlock, Vec<usize>)>;

#[test]
fn a_streamed_block_is_whole_in_its_slot_when_it_is_used() {
    let mut draw = Draw(7);
    let (mut used, mut fetched, mut kept) = (0, 0, 0);
    for _ in 0..400 {
        let (plan, step) = random_plan(&mut draw);
        if !matches!(plan.knobs().weights, WeightPlace::Streamed { .. }) {
            continue;
        }
        let layout = plan.layout();
        let whole = |block| -> Vec<usize> {
            (0..WEIGHT_PARTS).filter(|part| !layout.weight_part(block, *part).is_empty()).collect()
        };
        let first = WeightBlock::Layer(0);
        let mut slots: [Slot; 2] = [Some((first, whole(first))), None];
        // The list is one legal order; that all others give the same is the hazard check's business.
        for command in &plan.schedule(step).commands {
            if let Op::FetchWeights { block, part, slot } = command.op {
                assert_eq!(slot, layout.weight_slot(block));
                match &mut slots[slot] {
                    Some((there, parts)) if *there == block && parts.len() < whole(block).len() => {
                        parts.push(part);
                    }
                    other => *other = Some((block, vec![part])),
                }
                fetched += 1;
            }
            if let Some(block) = command.op.weight_block() {
                if matches!(block, WeightBlock::Layer(layer) if layout.kept_layer(layer).is_some()) {
                    kept += 1;
                    continue;
                }
                assert_eq!(slots[layout.weight_slot(block)], Some((block, whole(block))), "{step:?}");
                used += 1;
            }
        }
        assert_eq!(slots[0], Some((first, whole(first))), "the next step finds the first layer");
    }
    assert!(
        used > 1000 && fetched > 1000 && kept > 300,
        "{used} uses, {fetched} fetches, {kept} of kept layers"
    );
}

#[test]
fn regions_do_not_overlap_and_add_up() {
    let mut draw = Draw(5);
    for _ in 0..200 {
        let (plan, _) = random_plan(&mut draw);
        for memory in [Memory::Device, Memory::Host] {
            let mut end = 0;
            for region in plan.layout().regions().iter().filter(|r| r.span.memory == memory) {
                assert!(region.span.offset >= end && region.span.offset - end < 256);
                end = region.span.offset + region.span.bytes;
            }
            assert!(plan.layout().bytes(memory) >= end && plan.layout().bytes(memory) - end < 256);
        }
    }
}

#[test]
fn the_papers_memory_at_a_million_tokens_is_reproduced() {
    let spec = llama_3_8b();
    // GB in the paper's table are 2^30 bytes (weights 15, KV 128, activations 64).
    let expected = [207.0, 143.0, 111.0, 87.0, 16.7];
    for (layout, paper) in PaperLayout::ALL.into_iter().zip(expected) {
        let ours = layout.device_bytes(&spec, 1 << 20) as f64 / GIB as f64;
        assert!((ours - paper).abs() / paper < 0.01, "{}: {ours:.2} GiB, paper {paper}", layout.name());
    }
}

#[test]
fn kv_on_the_device_does_not_grow_with_the_context() {
    let spec = llama_3_8b();
    let ring = |context| {
        let mut request = request(DeviceKind::Cuda, context);
        request.device_budget = 24 * GIB;
        request.placement = PlacementMode::Offload;
        let plan = Plan::new(&spec, &request).unwrap();
        (plan.layout().region_bytes(RegionId::Ring), plan.device_bytes())
    };
    assert_eq!(ring(128 << 10), ring(4 << 20));
    assert!(ring(4 << 20).1 <= 33 * GIB / 2, "{} bytes", ring(4 << 20).1);
}

#[test]
fn a_million_tokens_take_four_gibibytes_with_weights_streamed() {
    let spec = llama_3_8b();
    let fits = |weights, device_budget| {
        let request = Request { weights, device_budget, ..request(DeviceKind::Cuda, 1 << 20) };
        Plan::new(&spec, &request).map(|plan| {
            assert!(plan.device_bytes() <= device_budget);
            let weights = [RegionId::LayerWeights, RegionId::SharedWeights, RegionId::KeptLayers];
            weights.map(|id| plan.layout().region_bytes(id)).iter().sum::<u64>()
        })
    };
    let layer = 416 * MIB;
    let least = fits(WeightsMode::Stream, 9 * GIB / 4).expect("2.25 GiB are enough");
    assert!(least < 2 * layer + 2 * MIB, "{least} bytes of weights on the device");
    let eighth = fits(WeightsMode::Stream, 4 * GIB).expect("4 GiB are enough");
    assert!((eighth - least).abs_diff(4 * layer) < MIB, "{eighth}: an eighth of the layers stays");
    assert_eq!(fits(WeightsMode::Stream, 64 * GIB).expect("64 GiB are enough"), eighth, "and no more");
    let most = fits(WeightsMode::Auto, 8 * GIB).expect("8 GiB are enough");
    assert!(most > 7 * GIB - 2 * layer - GIB, "{most}: whatever has room stays where nothing else was asked");
    assert!(fits(WeightsMode::Resident, 33 * GIB / 2).expect("16.5 GiB are enough") > 14 * GIB);
}

#[test]
fn what_does_not_fit_says_what_would() {
    let spec = llama_3_8b();
    let small =
        Request { device_budget: 2 * GIB, host_budget: 32 * GIB, ..request(DeviceKind::Cuda, 1 << 20) };
    let Err(PlanError::DoesNotFit { memory, need, have, hint, longest, .. }) = Plan::new(&spec, &small)
    else {
        panic!("a million tokens cannot fit into 32 GiB");
    };
    assert!(need > have, "{memory}: {need} <= {have}");
    assert!(hint.contains("--context") || longest == 0, "{hint}");
    let big =
        Request { device_budget: 24 * GIB, host_budget: 32 * GIB, ..request(DeviceKind::Cuda, 1 << 20) };
    let Err(PlanError::DoesNotFit { longest, .. }) = Plan::new(&spec, &big) else {
        panic!("128 GiB of KV cannot fit into 32 GiB");
    };
    assert!(longest > 200_000, "{longest}");
    assert!(Plan::new(&spec, &Request { context: longest, ..big.clone() }).is_ok());
    assert!(Plan::new(&spec, &Request { context: longest + 256, ..big }).is_err());
}

#[test]
fn a_session_store_is_within_the_host_budget() {
    let spec = llama_3_8b();
    let without = Request { device_budget: 24 * GIB, ..request(DeviceKind::Cuda, 1 << 17) };
    let plan = Plan::new(&spec, &without).unwrap();
    assert_eq!(plan.store_bytes(), 0);
    let stored = Request { stored: Some(512), ..without };
    let plan = Plan::new(&spec, &stored).unwrap();
    let two = 2 * plan.knobs().chunk as u64 * plan.kv_bytes_per_token();
    assert!(two < plan.store_bytes() && plan.store_bytes() < two + MIB, "{} bytes", plan.store_bytes());
    let report = plan.report().host;
    assert_eq!(report.bytes, plan.host_bytes() + plan.store_bytes() + plan.guess_bytes());
    assert!(report.regions.iter().any(|r| r.name == "session store" && r.bytes == plan.store_bytes()));
    let fits = |host_budget, chunk| {
        let overrides = Overrides { chunk: Some(chunk), resident_heads: Some(0), ..Overrides::default() };
        Plan::new(&spec, &Request { host_budget, overrides, ..stored.clone() }).map(|plan| {
            assert!(plan.report().host.bytes <= host_budget);
        })
    };
    let Err(PlanError::DoesNotFit { need, memory: "host", .. }) = fits(17 * GIB, 8192) else {
        panic!("16 GiB of KV and 2 of the store do not fit into 17");
    };
    assert!(fits(need.0, 8192).is_ok(), "what was said to be enough is");
    assert!(fits(17 * GIB, 1024).is_ok(), "smaller checkpoints fit");
}

#[test]
fn a_chunk_is_the_same_wherever_weights_and_kv_lie() {
    let spec = llama_3_8b();
    for machine in [Machine::default_cuda(), Machine { link_bytes_s: 53e9, ..Machine::default_cuda() }] {
        let base = Request { device_budget: 64 * GIB, machine, ..request(DeviceKind::Cuda, 1 << 17) };
        let chunk = |weights, placement| {
            let request = Request { weights, placement, ..base.clone() };
            Plan::new(&spec, &request).unwrap().knobs().chunk
        };
        let chunks = [
            chunk(WeightsMode::Resident, PlacementMode::Resident),
            chunk(WeightsMode::Resident, PlacementMode::Offload),
            chunk(WeightsMode::Stream, PlacementMode::Offload),
        ];
        assert_eq!(chunks, [chunks[0]; 3]);
    }
}

#[test]
fn a_bigger_budget_never_fits_less() {
    let spec = tiny(3, 6, 3, 32);
    let mut last_resident = 0;
    for budget in (0..64).map(|i| (1 << 18) + i * (1 << 18)) {
        let request = Request { device_budget: budget, ..request(DeviceKind::Cpu, 8192) };
        let Ok(plan) = Plan::new(&spec, &request) else {
            assert_eq!(last_resident, 0, "fitted with less");
            continue;
        };
        assert!(plan.device_bytes() <= budget);
        last_resident = plan.knobs().resident_heads;
    }
    assert_eq!(last_resident, 9, "sixteen mebibytes hold all nine heads");
}

#[test]
fn a_short_context_is_all_resident_and_fetches_nothing() {
    let spec = llama_3_8b();
    let plan =
        Plan::new(&spec, &Request { device_budget: 24 * GIB, ..request(DeviceKind::Cuda, 8192) }).unwrap();
    let schedule = plan.schedule(Step { past: 8000, rows: 1, logit_rows: 1 });
    assert!(schedule.commands.iter().all(|c| c.lane == Lane::Compute), "a resident plan moves nothing");
    let attends = schedule.commands.iter().filter(|c| matches!(c.op, Op::Attend { .. })).count();
    assert_eq!(attends, spec.layers, "one group per layer");
}

#[test]
fn decode_moves_only_new_rows_back() {
    let spec = llama_3_8b();
    let mut request = request(DeviceKind::Cuda, 128 << 10);
    request.placement = PlacementMode::Offload;
    let plan = Plan::new(&spec, &request).unwrap();
    let cost = plan.step_cost(&Step { past: (128 << 10) - 1, rows: 1, logit_rows: 1 });
    assert_eq!(cost.out_bytes as u64, 128 << 10, "128 KiB per token");
    assert_eq!(cost.in_bytes as u64, ((128 << 10) - 1) * (128 << 10));
}

#[test]
fn impossible_overrides_are_refused_by_name() {
    let spec = tiny(2, 4, 2, 16);
    let with = |overrides| Plan::new(&spec, &Request { overrides, ..request(DeviceKind::Cpu, 1000) });
    let bad = [
        (Overrides { tile: Some(100), ..Overrides::default() }, "--tile"),
        (Overrides { chunk: Some(0), ..Overrides::default() }, "--chunk"),
        (Overrides { ring_slots: Some(usize::MAX), ..Overrides::default() }, "ring slots"),
        (Overrides { heads_per_group: Some(3), ..Overrides::default() }, "--heads-per-group"),
        (Overrides { resident_heads: Some(5), ..Overrides::default() }, "heads"),
        (Overrides { kept_layers: Some(2), ..Overrides::default() }, "layers"),
    ];
    for (overrides, name) in bad {
        match with(overrides) {
            Err(PlanError::Override(text)) => assert!(text.contains(name), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_index_of_guesses_is_within_what_the_plan_says() {
    let spec = tiny(1, 2, 1, 16);
    // All sequences differ: the most there can be of them.
    let mut lookup = Lookup::default();
    for tokens in 0..20_000 {
        if tokens > 0 {
            let plan = Plan::new(&spec, &request(DeviceKind::Cpu, tokens)).unwrap();
            assert!(lookup.bytes() as u64 <= plan.guess_bytes(), "{tokens} tokens: {}", lookup.bytes());
        }
        lookup.push(tokens as u32);
    }
}

#[test]
fn the_index_of_guesses_is_counted_where_there_are_any() {
    let guessing = Request { placement: PlacementMode::Offload, ..request(DeviceKind::Cpu, 100_000) };
    let plan = |guesses| Plan::new(&tiny(1, 2, 1, 16), &Request { guesses, ..guessing.clone() }).unwrap();
    let (with, without) = (plan(true), plan(false));
    assert_eq!((with.guess_bytes(), without.guess_bytes()), (40 * 100_000 + 1024, 0));
    assert_eq!(with.report().host.bytes, without.report().host.bytes + with.guess_bytes());
    let named = |plan: &Plan| plan.report().host.regions.iter().any(|r| r.name == "index of guesses");
    assert!(named(&with) && !named(&without));
    let host_budget = without.report().host.bytes;
    let fits = |guesses| {
        let request =
            Request { host_budget, device_budget: with.device_bytes(), guesses, ..guessing.clone() };
        Plan::new(&tiny(1, 2, 1, 16), &request).is_ok()
    };
    assert!(fits(false) && !fits(true));
}

#[test]
fn the_largest_shape_and_context_never_wrap() {
    let (layers, wide) = (LAYERS_MAX, HEAD_DIM_MAX);
    let spec = ModelSpec {
        vocab: VOCAB_MAX,
        hidden: HIDDEN_MAX,
        intermediate: INTERMEDIATE_MAX,
        dtype: DType::F32,
        ..tiny(layers, HEADS_MAX, KV_WIDTH_MAX / layers / wide, wide)
    };
    let overrides = Overrides {
        chunk: Some(1 << 32),
        tile: Some(1 << 32),
        ring_slots: Some(1 << 6),
        logit_rows: Some(usize::MAX),
        ..Overrides::default()
    };
    for device in [DeviceKind::Cpu, DeviceKind::Cuda] {
        let request = Request {
            overrides: overrides.clone(),
            device_budget: u64::MAX,
            host_budget: u64::MAX,
            weights: WeightsMode::Stream,
            placement: PlacementMode::Offload,
            ..request(device, 1 << 32)
        };
        let plan = Plan::new(&spec, &request).unwrap();
        for memory in [Memory::Device, Memory::Host] {
            let regions = plan.layout().regions().iter().filter(|r| r.span.memory == memory);
            let sum: u128 = regions.map(|r| u128::from(r.span.bytes.next_multiple_of(256))).sum();
            assert_eq!(sum, u128::from(plan.layout().bytes(memory)), "{memory:?}");
        }
        let kv = (4 * KV_WIDTH_MAX as u128) << 32;
        assert_eq!(u128::from(plan.layout().region_bytes(RegionId::HostKv)), kv);
        assert!(matches!(
            Plan::new(&spec, &Request { host_budget: 1 << 50, ..request }),
            Err(PlanError::DoesNotFit { .. })
        ));
    }
    for context in [0, (1 << 32) + 1, 1 << 63, usize::MAX] {
        let refused = Plan::new(&spec, &request(DeviceKind::Cpu, context));
        assert!(matches!(refused, Err(PlanError::Override(text)) if text.contains("--context")));
    }
}
