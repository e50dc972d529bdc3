//! Needles are found at every depth, and every head of every layer has a part in it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use headinfer_core::backend::BackendError;
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::engine::{EngineError, Session};
use headinfer_core::model::retrieval::{Retrieval, Sizes, retrieval_spec, retrieval_weights};
use headinfer_core::model::spec::{LayerTensor, ModelSpec, TensorId};
use headinfer_core::model::weights::Weights;
use headinfer_core::niah::{
    Cell, Event, Haystack, NiahError, Question, Request, ask, code_haystack, even_depths, run, text_haystack,
};
use headinfer_core::plan::{self, DeviceKind, Memory, Overrides, PlacementMode, Plan, Schedule};

use crate::around::{Around, Surrounded};
use crate::run::{logits, open};
use crate::support;

const TILE: usize = 256;

fn offloaded(context: usize) -> plan::Request {
    let overrides = Overrides {
        chunk: Some(32),
        tile: Some(TILE),
        heads_per_group: Some(1),
        logit_rows: Some(1),
        ..Overrides::default()
    };
    let placement = PlacementMode::Offload;
    plan::Request { placement, overrides, ..support::request(DeviceKind::Cpu, context) }
}

fn wanted(context: usize, depths: usize) -> Request {
    Request { context, depths: even_depths(depths), seed: 3 }
}

fn quiet(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn cells(model: &Retrieval, request: &Request, chain: usize) -> Vec<Cell> {
    let weights = Arc::new(retrieval_weights(model.spec()));
    let haystack = code_haystack(model, request, chain).expect("the needles fit");
    let mut session = open(model.spec(), &weights, &offloaded(request.context), &CpuOptions::default());
    run(&mut session, &haystack, &mut quiet).expect("the run ends")
}

fn default_model() -> Retrieval {
    Retrieval::of(&retrieval_spec(None).expect("the default")).expect("its model")
}

#[test]
fn every_depth_is_found_with_an_eighth_of_the_cache_on_the_device() {
    const CONTEXT: usize = 4096;
    let model = default_model();
    let weights = Arc::new(retrieval_weights(model.spec()));
    let haystack = code_haystack(&model, &wanted(CONTEXT, 11), 3).unwrap();
    let mut session = open(model.spec(), &weights, &offloaded(CONTEXT), &CpuOptions::default());
    let (plan, cells) = (session.plan().clone(), run(&mut session, &haystack, &mut quiet).unwrap());
    let (device, cache) = (plan.layout().bytes(Memory::Device), plan.kv_bytes_per_token() * CONTEXT as u64);
    assert!(device <= cache / 8, "{device} of {cache}");
    assert_eq!(cells.len(), 11);
    for (cell, depth) in cells.iter().zip(even_depths(11)) {
        assert_eq!((cell.depth, cell.correct, cell.answers.len()), (depth, true, 3), "{cell:?}");
        assert!(cell.margin_min > 10.0, "{cell:?}");
    }
}

/// Damages stored tiles between steps: the keys of the tiles listed change sign before the next step, so that what
/// matched best matches worst. Doing it again undoes it.
struct Damage(Arc<Mutex<Vec<(usize, usize, usize)>>>);

impl Around for Damage {
    fn before_step(&mut self, cpu: &mut Cpu, _: &Schedule) -> Result<(), BackendError> {
        for (layer, head, tile) in self.0.lock().expect("a lock").drain(..) {
            cpu.change_tile(layer, head, tile, |k, _| k.iter_mut().for_each(|x| *x ^= 0x8000));
        }
        Ok(())
    }
}

/// One needle whose key token ends tile 0 and whose value token starts tile 1, its question, and a session.
struct Astride {
    session: Session,
    ids: Vec<u32>,
    question: Question,
    tiles: Arc<Mutex<Vec<(usize, usize, usize)>>>,
}

impl Astride {
    fn new(model: &Retrieval, weights: Weights) -> Self {
        let request = Request { context: 3 * TILE, depths: vec![0.0], seed: 5 };
        let mut haystack = code_haystack(model, &request, 1).expect("the needle fits");
        haystack.ids[1..TILE + 1].rotate_left(2);
        let question = haystack.questions.remove(0);
        assert_eq!([haystack.ids[TILE - 1], haystack.ids[TILE]], [question.ids[0], question.answer[0]]);
        let plan = Arc::new(Plan::new(model.spec(), &offloaded(3 * TILE)).expect("the plan fits"));
        let tiles = Arc::new(Mutex::new(Vec::new()));
        let inner =
            Cpu::open(plan.clone(), Arc::new(weights), &CpuOptions::default()).expect("the backend opens");
        let backend = Surrounded { inner, around: Damage(tiles.clone()) };
        let session = Session::new(plan, Box::new(backend));
        Self { session, ids: haystack.ids, question, tiles }
    }

    /// The margin of the answer when `tile` is damaged once its tokens are taken in.
    fn margin(&mut self, tile: Option<(usize, usize, usize)>) -> f32 {
        self.session.rewind(0);
        logits(&mut self.session, &self.ids[..TILE], 1);
        // Layer 0 reads the key token while the value token is taken in, all others when the question comes.
        let read_late = tile.is_some_and(|(layer, ..)| layer > 0);
        let damage = |tiles: &Mutex<Vec<_>>| tiles.lock().expect("a lock").extend(tile);
        if !read_late {
            damage(&self.tiles);
        }
        logits(&mut self.session, &self.ids[TILE..], 1);
        if read_late {
            damage(&self.tiles);
        }
        let answer = ask(&mut self.session, &self.question).expect("an answer")[0];
        assert_eq!(answer.got == answer.expected, answer.margin > 0.0);
        answer.margin
    }
}

/// Odd group, several heads, several layers: 3 layers, 6 query heads on 2 KV heads.
fn grouped() -> Retrieval {
    let sizes = Sizes {
        vocab: 1500,
        hidden: 400,
        layers: 3,
        q_heads: 6,
        kv_heads: 2,
        head_dim: 64,
        intermediate: 64,
    };
    Retrieval::new("grouped", &sizes).expect("sizes that work")
}

#[test]
fn damage_to_any_stored_head_costs_its_share() {
    for model in [default_model(), grouped()] {
        let spec = model.spec().clone();
        let mut astride = Astride::new(&model, retrieval_weights(&spec));
        let whole = astride.margin(None);
        assert!(whole > 10.0, "{whole}");
        for layer in 0..spec.layers {
            // What all later layers read was written by layer 0.
            let sharers = if layer == 0 { 1 } else { spec.layers - 1 };
            let share = whole / (sharers * spec.kv_heads) as f32;
            let needle_tile = usize::from(layer > 0);
            for head in 0..spec.kv_heads {
                let lost = whole - astride.margin(Some((layer, head, needle_tile)));
                assert!(
                    (0.5..1.5).contains(&(lost / share)),
                    "layer {layer} KV head {head}: {lost} of {whole}"
                );
            }
        }
    }
}

#[test]
fn damage_elsewhere_costs_nothing() {
    let model = default_model();
    let mut astride = Astride::new(&model, retrieval_weights(model.spec()));
    let whole = astride.margin(None);
    let elsewhere = astride.margin(Some((1, 0, 0)));
    assert!((elsewhere / whole - 1.0).abs() < 1e-3, "{elsewhere} {whole}");
}

/// The weights of `model` but for the part of layer `layer`'s output projection that reads `query_head`.
fn without_query_head(model: &Retrieval, layer: usize, query_head: usize) -> Weights {
    let spec = model.spec();
    let whole = retrieval_weights(spec);
    let damaged = spec.tensors().into_iter().map(|(id, [_, cols])| {
        let view = whole.tensor(id);
        let mut bytes = view.bytes.to_vec();
        if id == TensorId::Layer(layer, LayerTensor::O) {
            let head = 2 * spec.head_dim;
            bytes.chunks_mut(2 * cols).for_each(|row| row[query_head * head..][..head].fill(0));
        }
        (id, view.dtype, bytes)
    });
    Weights::from_memory(damaged.collect(), spec).expect("all tensors")
}

#[test]
fn the_loss_of_any_query_head_costs_its_share() {
    let model = grouped();
    let spec = model.spec();
    assert_eq!(model.slices(), spec.q_heads);
    let whole = Astride::new(&model, retrieval_weights(spec)).margin(None);
    for layer in 0..spec.layers {
        let sharers = if layer == 0 { 1 } else { spec.layers - 1 };
        let share = whole / (sharers * spec.q_heads) as f32;
        for query_head in 0..spec.q_heads {
            let weights = without_query_head(&model, layer, query_head);
            let lost = whole - Astride::new(&model, weights).margin(None);
            assert!(
                (0.3..2.0).contains(&(lost / share)),
                "layer {layer} query head {query_head}: {lost} of {whole}"
            );
        }
    }
}

#[test]
fn other_shapes_find_every_needle_too() {
    let of = |hidden, layers, q_heads, kv_heads, head_dim| Sizes {
        vocab: 1100,
        hidden,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        intermediate: 48,
    };
    let cases = [
        ("llama-3-8b", of(4096, 2, 32, 8, 128)),
        ("llama-2-7b", of(4096, 2, 32, 32, 128)),
        ("qwen2-7b", of(3584, 2, 28, 4, 128)),
        ("qwen2.5-0.5b", of(896, 4, 14, 2, 64)),
        ("qwen3-0.6b", of(1024, 3, 16, 8, 128)),
        ("heads of 16", of(64, 2, 4, 2, 16)),
        ("heads of 32", of(200, 5, 3, 3, 32)),
        ("heads of 80", of(777, 3, 10, 5, 80)),
        ("heads of 96", of(500, 2, 2, 1, 96)),
        ("heads of 256", of(1000, 2, 4, 2, 256)),
        ("nothing free", of(4 * 2 * 23 + 1, 3, 2, 2, 64)),
    ];
    for (name, sizes) in cases {
        let model = Retrieval::new(name, &sizes).unwrap();
        let cells = cells(&model, &wanted(700, 5), 2);
        let margin = cells.iter().map(|c| c.margin_min).fold(f32::INFINITY, f32::min);
        assert!(cells.iter().all(|c| c.correct), "{name}: {cells:?}");
        assert!(margin > 12.0, "{name}: {margin}");
    }
}

#[test]
fn the_smallest_and_a_small_known_shape_find_every_needle() {
    for shape in ["tiny", "small"] {
        let model = Retrieval::of(&retrieval_spec(Some(shape)).unwrap()).unwrap();
        let cells = cells(&model, &wanted(1500, 11), 3);
        assert!(cells.iter().all(|c| c.correct && c.margin_min > 12.0), "{shape}: {cells:?}");
    }
}

#[test]
fn a_haystack_follows_from_its_seed_and_holds_each_needle_once() {
    let model = default_model();
    let make = |seed| code_haystack(&model, &Request { seed, ..wanted(2000, 11) }, 4).unwrap();
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
    let Haystack { ids, questions, .. } = make(1);
    assert_eq!((ids.len(), ids[0]), (2000 - 5 + 1 - 1, model.bos()));
    let keys: Vec<u32> = questions.iter().map(|q| q.ids[0]).collect();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 11);
    for (question, depth) in questions.iter().zip(even_depths(11)) {
        assert_eq!((question.depth, question.found_at[0], question.answer.len()), (depth, depth, 4));
        // Each step goes to another depth.
        let visited: HashSet<u64> = question.found_at.iter().map(|d| d.to_bits()).collect();
        assert_eq!(visited.len(), 4);
        let at: Vec<usize> = (0..ids.len()).filter(|i| ids[*i] == question.ids[0]).collect();
        assert_eq!(at.len(), 1);
        assert_eq!(ids[at[0] + 1], question.answer[0]);
        assert!((at[0] as f64 / ids.len() as f64 - depth).abs() < 2e-3, "{} at depth {depth}", at[0]);
    }
}

#[test]
fn crowded_needles_stay_apart() {
    let model = default_model();
    let request = Request { context: 30, depths: vec![0.5; 12], seed: 0 };
    let Haystack { ids, questions, .. } = code_haystack(&model, &request, 1).unwrap();
    assert_eq!(ids.len(), 28);
    for question in questions {
        let at = ids.iter().position(|id| *id == question.ids[0]).unwrap();
        assert_eq!(ids[at + 1], question.answer[0]);
    }
}

#[test]
fn what_cannot_be_hidden_is_refused_with_the_numbers() {
    let model = default_model();
    let refused = |request: &Request, chain| code_haystack(&model, request, chain).unwrap_err().to_string();
    let told = refused(&wanted(25, 11), 3);
    assert_eq!(told, "11 needles and a question do not fit into 25 tokens: give --context 27 or more");
    assert!(code_haystack(&model, &wanted(27, 11), 3).is_ok());
    assert!(refused(&wanted(1 << 24, 3), 1).contains("give --context 8388608 or less"));
    assert!(refused(&wanted(4000, 300), 1).contains("300 needles need more than the 256 names"));
    assert!(refused(&wanted(4000, 3), 0).contains("at least 1 step"));
    for depths in [vec![], vec![1.5], vec![f64::NAN]] {
        assert!(refused(&Request { depths, ..wanted(4000, 0) }, 1).contains("depths must be within 0..=1"));
    }
    let empty = text_haystack(&|_| Vec::new(), None, &wanted(4000, 3)).unwrap_err();
    assert!(empty.to_string().starts_with("the tokenizer gives no tokens for"));
    let short = text_haystack(&encode, Some(1), &wanted(100, 3)).unwrap_err();
    assert!(matches!(short, NiahError::TooShort { needles: 3, context: 100, need: 101.. }), "{short}");
}

#[test]
fn a_cancelled_run_says_how_far_it_came() {
    let model = default_model();
    let weights = Arc::new(retrieval_weights(model.spec()));
    let haystack = code_haystack(&model, &wanted(600, 4), 1).unwrap();
    let mut session = open(model.spec(), &weights, &offloaded(600), &CpuOptions::default());
    let stop = &mut |_: Event<'_>| ControlFlow::Break(());
    let early = run(&mut session, &haystack, stop);
    assert!(matches!(early, Err(NiahError::Cancelled { cells: 0, of: 4 })));
    let mut seen = 0;
    let after_two = &mut |event: Event<'_>| {
        seen += usize::from(matches!(event, Event::Cell(_)));
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let late = run(&mut session, &haystack, after_two);
    assert!(matches!(late, Err(NiahError::Cancelled { cells: 2, of: 4 })));
    let long = code_haystack(&model, &wanted(601, 4), 1).unwrap();
    let long = run(&mut session, &long, &mut quiet);
    assert!(matches!(long, Err(NiahError::Engine(EngineError::ContextFull { need: 601, context: 600 }))));
}

/// Bytes as tokens of the small random model.
fn encode(text: &str) -> Vec<u32> {
    text.bytes().map(|b| u32::from(b) % 97).collect()
}

fn text_of(ids: &[u32]) -> String {
    // The inverse of an `encode` that keeps whole bytes.
    String::from_utf8(ids.iter().map(|id| *id as u8).collect()).expect("text")
}

#[test]
fn a_text_haystack_hides_each_fact_at_its_depth_and_asks_for_it() {
    let bytes = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
    let make = |seed| text_haystack(&bytes, None, &Request { seed, ..wanted(8000, 5) }).unwrap();
    assert_eq!(make(1), make(1));
    assert_ne!(make(1), make(2));
    let Haystack { ids, questions, .. } = make(1);
    let longest = questions.iter().map(|q| q.ids.len() + q.answer.len()).max().unwrap();
    assert!((8000 - 120..=8000).contains(&(ids.len() + longest)), "{}", ids.len());
    let text = text_of(&ids);
    for question in &questions {
        let (asked, answer) = (text_of(&question.ids), text_of(&question.answer));
        let fact = format!("{}{answer}.", asked.rsplit('\n').next().unwrap());
        let at: Vec<usize> = text.match_indices(&fact).map(|(at, _)| at).collect();
        assert_eq!(at.len(), 1, "{fact}");
        assert!((at[0] as f64 / ids.len() as f64 - question.depth).abs() < 0.02, "{fact} at {at:?}");
        assert!(answer.trim().parse::<u32>().is_ok_and(|n| (10_000..100_000).contains(&n)), "{answer}");
    }
}

#[test]
fn a_model_that_knows_nothing_is_wrong_by_its_margin() {
    let spec: ModelSpec = support::tiny(2, 4, 2, 16);
    let weights = Arc::new(headinfer_core::model::random::random_weights(&spec, 1));
    let haystack = text_haystack(&encode, Some(1), &wanted(1500, 3)).unwrap();
    let mut session = open(&spec, &weights, &offloaded(1500), &CpuOptions::default());
    let cells = run(&mut session, &haystack, &mut quiet).unwrap();
    assert_eq!(session.tokens(), haystack.ids);
    let question = &haystack.questions[1];
    let scored = logits(&mut session, &question.ids, 1);
    let best_other = |right: usize| {
        let others = scored.iter().enumerate().filter(|(id, _)| *id != right);
        others.map(|(_, x)| *x).fold(f32::NEG_INFINITY, f32::max)
    };
    let right = question.answer[0] as usize;
    assert_eq!(cells[1].answers[0].margin, scored[right] - best_other(right));
    assert_eq!(cells[1].answers.len(), question.answer.len());
    for cell in &cells {
        assert!(!cell.correct && cell.margin_min < 0.0 && cell.prefill_s > 0.0, "{cell:?}");
    }
}
