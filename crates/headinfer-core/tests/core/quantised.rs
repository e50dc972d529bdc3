//! A lossy store: near the exact answer, the same on every way that leads there, and never mistaken for exact.

use std::ops::ControlFlow;
use std::sync::Arc;

use headinfer_core::cpu::{CpuOptions, LaneOrder};
use headinfer_core::engine::generate::{Limits, generate};
use headinfer_core::engine::guess::Guesser;
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::engine::{Decoder, Session};
use headinfer_core::model::random::random_weights;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::model::{ModelDigest, Weights};
use headinfer_core::plan::{DeviceKind, KvFormat, Overrides, PlacementMode, Request};
use headinfer_core::store::{Store, StoreOptions};

use crate::run::{logits, open, relative_error};
use crate::store::{folder, prefill, restore};
use crate::support::{Draw, request, tiny};

const LOSSY: [KvFormat; 2] = [KvFormat::Int8, KvFormat::Int4];
const VOCAB: u32 = 97;

fn model() -> (ModelSpec, Arc<Weights>) {
    let spec = tiny(2, 4, 2, 32);
    let weights = Arc::new(random_weights(&spec, 8));
    (spec, weights)
}

fn ids(count: usize) -> Vec<u32> {
    let mut draw = Draw(81);
    (0..count).map(|_| draw.below(VOCAB as usize) as u32).collect()
}

fn offload(kv: KvFormat, more: Overrides) -> Request {
    let overrides = Overrides { kv, chunk: Some(256), logit_rows: Some(16), ..more };
    Request { placement: PlacementMode::Offload, overrides, ..request(DeviceKind::Cpu, 1400) }
}

fn session(kv: KvFormat, more: Overrides) -> Session {
    let (spec, weights) = model();
    open(&spec, &weights, &offload(kv, more), &CpuOptions::default())
}

#[test]
fn fewer_bits_are_further_from_the_exact_answer() {
    let after = |kv| logits(&mut session(kv, Overrides::default()), &ids(1100), 8);
    let exact = after(KvFormat::Bf16);
    let [int8, int4] = LOSSY.map(|kv| relative_error(&after(kv), &exact));
    assert!(0.0 < int8 && int8 < 0.01 && 2.0 * int8 < int4 && int4 < 0.1, "{int8} {int4}");
}

#[test]
fn tiles_groups_and_the_order_of_lanes_change_no_bit_of_a_lossy_answer() {
    let (spec, weights) = model();
    for kv in LOSSY {
        let expected = logits(&mut session(kv, Overrides::default()), &ids(1100), 8);
        for seed in 0..6 {
            let more = Overrides {
                tile: Some(256 << (seed % 3)),
                heads_per_group: Some(1 + seed as usize % 2),
                ring_slots: Some(1 + seed as usize % 3),
                ..Overrides::default()
            };
            let options = CpuOptions { order: LaneOrder::Interleaved(seed), ..CpuOptions::default() };
            let mut other = open(&spec, &weights, &offload(kv, more), &options);
            assert!(logits(&mut other, &ids(1100), 8) == expected, "{kv:?} {:?}", other.plan().knobs());
        }
    }
}

/// Wrong more often than right.
struct Blind;

impl Guesser for Blind {
    fn push(&mut self, _: u32) {}

    fn guess(&self, most: usize, to: &mut Vec<u32>) -> usize {
        to.extend((0..most as u32).map(|i| (7 + i) % VOCAB));
        8
    }

    fn bytes(&self) -> usize {
        0
    }
}

#[test]
fn guesses_change_no_token_of_a_lossy_answer() {
    for kv in LOSSY {
        let run = |guesses: Option<usize>| {
            let mut session = session(kv, Overrides::default());
            let first = logits(&mut session, &ids(500), 1);
            let mut decoder = match guesses {
                None => Decoder::plain(&session, &first),
                fixed => Decoder::guessing(&session, &first, Box::new(Blind), fixed),
            };
            let mut sampler = Sampler::new(Sampling::default(), first.len());
            let limits = Limits { max_tokens: 300, stop_tokens: Vec::new() };
            let mut made = Vec::new();
            generate(&mut session, &mut decoder, &mut sampler, &limits, &mut |id| {
                made.push(id);
                ControlFlow::Continue(())
            })
            .unwrap();
            (made, decoder.logits().to_vec(), decoder.counts().guessed)
        };
        let (plain, guessing) = (run(None), run(Some(5)));
        assert!(plain.2 == 0 && guessing.2 > 1000, "{}", guessing.2);
        assert!(plain.0 == guessing.0 && plain.1 == guessing.1, "{kv:?}");
    }
}

#[test]
fn what_a_lossy_session_stored_only_its_like_takes_over_and_bit_for_bit() {
    let (spec, weights) = model();
    let digest = ModelDigest::of_weights(&spec, &weights);
    let (dir, text) = (folder(), ids(1100));
    let store =
        Store::open(dir.path(), &StoreOptions { interval_min: 256, ..StoreOptions::default() }).unwrap();
    let fresh =
        |kv, resident| session(kv, Overrides { resident_heads: Some(resident), ..Overrides::default() });
    let taken = |session: &mut Session| {
        let mut trail = store.trail(&digest, session).unwrap();
        restore(session, &mut trail, &text)
    };
    let mut writer = fresh(KvFormat::Int8, 0);
    let mut writes = store.trail(&digest, &writer).unwrap();
    assert_eq!(prefill(&mut writer, &mut writes, &text).stored, 1024);
    let expected = logits(&mut fresh(KvFormat::Int8, 0), &text, 8);
    for (kv, resident) in [
        (KvFormat::Bf16, 0),
        (KvFormat::Bf16Packed, 0),
        (KvFormat::Int4, 0),
        (KvFormat::Int8, 1),
        (KvFormat::Int8, 4),
    ] {
        assert_eq!(taken(&mut fresh(kv, resident)), 0, "{kv:?} {resident}");
    }
    let mut like = fresh(KvFormat::Int8, 0);
    assert_eq!(taken(&mut like), 1024);
    assert!(logits(&mut like, &text[1024..], 8) == expected);
    // What is all on the device is exact, whatever its store would be.
    let mut exact = fresh(KvFormat::Int8, 4);
    let mut writes = store.trail(&digest, &exact).unwrap();
    prefill(&mut exact, &mut writes, &text);
    assert_eq!(taken(&mut fresh(KvFormat::Bf16, 0)), 1024);
}
