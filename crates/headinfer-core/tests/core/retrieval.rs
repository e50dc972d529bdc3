//! The computed model: its clock, its codes, its files.

use headinfer_core::dtype::DType;
use headinfer_core::model::ModelError;
use headinfer_core::model::config::{load_config, parse_config};
use headinfer_core::model::known::known_names;
use headinfer_core::model::retrieval::{
    Retrieval, Sizes, retrieval_spec, retrieval_tensor, retrieval_weights,
};
use headinfer_core::model::weights::Weights;
use headinfer_core::model::write::{config_json, write_model};
use rayon::prelude::*;

/// A small model of one head dimension.
pub(crate) fn sizes(head_dim: usize) -> Sizes {
    Sizes { vocab: 300, hidden: 96, layers: 2, q_heads: 2, kv_heads: 2, head_dim, intermediate: 32 }
}

fn of_shape(shape: Option<&str>) -> Retrieval {
    Retrieval::of(&retrieval_spec(shape).unwrap()).unwrap()
}

#[test]
fn the_clock_peaks_one_token_back_over_the_whole_context() {
    [16, 24, 32, 64, 80, 96, 128, 256].into_par_iter().for_each(|head_dim| {
        let model = Retrieval::new("test", &sizes(head_dim)).unwrap();
        let longest = model.spec().max_position;
        assert!(longest >= if head_dim < 32 { 1 << 16 } else { 1 << 23 });
        assert_eq!(model.clock_score(1), 0.0);
        let others = (0..longest).into_par_iter().filter(|distance| *distance != 1);
        let (score, distance) = others
            .map(|distance| (model.clock_score(distance), distance))
            .reduce(|| (f64::NEG_INFINITY, 0), |a, b| if a.0 > b.0 { a } else { b });
        assert!(score <= -32.0, "head dimension {head_dim}: {score} at distance {distance}");
    });
}

#[test]
fn no_name_is_mistaken_in_any_slice() {
    for shape in [None, Some("tiny"), Some("llama-2-7b"), Some("qwen3-0.6b")] {
        let model = of_shape(shape);
        let all = 0..model.spec().vocab.min(2000) as u32;
        for name in 0..model.names() {
            let (key, value) = (model.key(name), model.value(name));
            for slice in 0..model.slices() {
                assert_eq!((model.mismatch(key, key, slice), model.mismatch(key, value, slice)), (0, 0));
                let nearest = all
                    .clone()
                    .filter(|other| *other != key)
                    .map(|other| model.mismatch(other, value, slice))
                    .min()
                    .unwrap();
                assert!(nearest >= model.code_distance(), "{shape:?} name {name} slice {slice}: {nearest}");
            }
        }
    }
}

#[test]
fn wider_slices_lie_farther_apart() {
    let found: Vec<(usize, usize)> = [Some("tiny"), Some("small"), None, Some("llama-3-8b")]
        .map(|shape| {
            let model = of_shape(shape);
            (model.code_width(), model.code_distance())
        })
        .into();
    assert_eq!(found, [(7, 1), (15, 2), (23, 5), (23, 5)]);
}

#[test]
fn every_known_shape_makes_a_plain_llama_that_reads_back() {
    for shape in known_names() {
        let spec = retrieval_spec(Some(shape)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(spec.name, format!("builtin:retrieval:{shape}"));
        let read = parse_config(&config_json(&spec).to_string(), &spec.name).unwrap();
        assert_eq!(read, spec);
    }
}

#[test]
fn a_written_model_reads_back_whole_and_is_known_again() {
    let spec = retrieval_spec(Some("tiny")).unwrap();
    let (model, weights) = (Retrieval::of(&spec).unwrap(), retrieval_weights(&spec));
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("tokenizer.json", model.tokenizer_json()),
        ("tokenizer_config.json", model.tokenizer_config_json()),
    ];
    let extra: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    write_model(dir.path(), &spec, &weights, &extra).unwrap();
    let read = load_config(dir.path()).unwrap();
    let loaded = Weights::load(dir.path(), &read).unwrap();
    for (id, _) in spec.tensors() {
        assert_eq!(loaded.tensor(id).bytes, weights.tensor(id).bytes, "{id:?}");
    }
    loaded.check_finite().unwrap();
    assert_eq!(Retrieval::of(&read).unwrap().spec().rope, spec.rope);
}

#[test]
fn the_tokenizer_knows_every_word_and_starts_each_text() {
    let model = of_shape(None);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, model.tokenizer_json()).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(&path).unwrap();
    let ids: Vec<u32> = (2..model.fillers().end).collect();
    let text: Vec<String> = ids.iter().map(|id| model.word(*id).unwrap()).collect();
    let encoded = tokenizer.encode(text.join(" "), true).unwrap();
    assert_eq!(encoded.get_ids()[0], model.bos());
    assert_eq!(encoded.get_ids()[1..], ids);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.join(" "));
    assert_eq!(tokenizer.encode("Unheard-of", false).unwrap().get_ids(), [0]);
    assert_eq!(model.word(model.fillers().end), None);
}

#[test]
fn a_tensor_made_in_pieces_is_the_tensor() {
    let spec = retrieval_spec(Some("tiny")).unwrap();
    let (model, weights) = (Retrieval::of(&spec).unwrap(), retrieval_weights(&spec));
    for (id, [rows, cols]) in spec.tensors() {
        let whole: &[u16] = bytemuck::cast_slice(weights.tensor(id).bytes);
        assert_eq!(weights.tensor(id).dtype, DType::Bf16);
        let (from, to) = (rows / 3, rows - rows / 4);
        let mut piece = vec![0xffff; (to - from) * cols];
        retrieval_tensor(&model, id, from..to, &mut piece);
        assert_eq!(piece, whole[from * cols..to * cols], "{id:?}");
    }
}

#[test]
fn sizes_that_cannot_work_are_refused_with_what_they_lack() {
    let refused = |sizes: Sizes| match Retrieval::new("it", &sizes) {
        Err(ModelError::NotFound { problem, .. }) => problem,
        other => panic!("not refused: {other:?}"),
    };
    let good = sizes(64);
    assert!(refused(Sizes { hidden: 48, ..good }).contains("hidden size of at least 49 for 2 KV heads"));
    assert!(refused(Sizes { layers: 1, ..good }).contains("at least 2 layers"));
    assert!(refused(Sizes { q_heads: 3, ..good }).contains("multiple of its 2 KV heads"));
    assert!(refused(Sizes { kv_heads: 0, ..good }).contains("KV heads"));
    assert!(refused(Sizes { vocab: 10, ..good }).contains("vocabulary of at least 64"));
    for head_dim in [0, 14, 65, 258] {
        assert!(refused(Sizes { head_dim, ..good }).contains("head dimension within 16..=256"));
    }
    let unknown = retrieval_spec(Some("llama-9")).unwrap_err().to_string();
    assert!(unknown.starts_with("model 'builtin:retrieval:llama-9': there is no such shape; known: tiny"));
    let mut odd = retrieval_spec(None).unwrap();
    odd.rope.theta = 1e4;
    assert!(Retrieval::of(&odd).is_err());
}

#[test]
fn every_query_head_has_a_slice_where_heads_are_wide_enough() {
    for (shape, slices) in [(None, 4), (Some("llama-3-8b"), 32), (Some("qwen2-7b"), 28), (Some("tiny"), 2)] {
        assert_eq!(of_shape(shape).slices(), slices, "{shape:?}");
    }
}
