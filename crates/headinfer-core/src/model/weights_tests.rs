//! Checkpoints as they are found: one file or shards, tied, off their alignment, damaged.

use super::*;
use crate::model::config::load_config;
use crate::model::known::known_shape;
use crate::model::random::random_weights;
use crate::model::write::write_model;

fn tiny() -> ModelSpec {
    known_shape("tiny").unwrap()
}

fn assert_send_sync<T: Send + Sync>(_: &T) {}

/// One file per entry: `(tensor name, dtype, shape, bytes)`.
type Tensors = Vec<(String, &'static str, Vec<usize>, Vec<u8>)>;

fn tensors_of(spec: &ModelSpec) -> Tensors {
    let weights = random_weights(spec, 1);
    let one = |(id, [r, c]): (TensorId, [usize; 2])| {
        let shape = if crate::model::names::is_vector(id) { vec![r] } else { vec![r, c] };
        (checkpoint_name(id), "BF16", shape, weights.tensor(id).bytes.to_vec())
    };
    spec.tensors().into_iter().map(one).collect()
}

/// `pad` spaces after the header shift the data off its alignment.
fn save(path: &Path, tensors: &Tensors, pad: usize) {
    let mut header = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        data.extend(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8) + pad, b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

fn same(a: &Weights, b: &Weights, spec: &ModelSpec) {
    for (id, _) in spec.tensors() {
        assert_eq!(a.tensor(id), b.tensor(id), "{id:?}");
    }
}

#[test]
fn a_written_model_loads_as_it_was() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    let weights = random_weights(&spec, 5);
    write_model(dir.path(), &spec, &weights, &[]).unwrap();
    let loaded = Weights::load(dir.path(), &spec).unwrap();
    assert_send_sync(&loaded);
    same(&weights, &loaded, &spec);
    assert_eq!(loaded.bytes(), 2 * spec.parameters());
    assert_eq!((loaded.owned_bytes(), weights.owned_bytes()), (0, loaded.bytes()));
    assert!(loaded.mapped_bytes() > loaded.bytes());
}

#[test]
fn extra_tensors_are_ignored() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    let mut all = tensors_of(&spec);
    all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "F64", vec![2], vec![0; 16]));
    save(&dir.path().join("model.safetensors"), &all, 0);
    let weights = Weights::load(dir.path(), &spec).unwrap();
    assert_eq!(weights.bytes(), 2 * spec.parameters());
}

#[test]
fn a_tied_head_is_the_embedding_under_either_name() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), ModelSpec { tied: true, ..tiny() });
    let (path, all) = (dir.path().join("model.safetensors"), tensors_of(&tiny()));
    let load = |tensors: &Tensors| {
        save(&path, tensors, 0);
        Weights::load(dir.path(), &spec)
    };
    let [embed, head] = ["model.embed_tokens.weight", "lm_head.weight"];
    let without = |name: &str| all.iter().filter(|t| t.0 != name).cloned().collect::<Tensors>();
    let stored = |name: &str| all.iter().find(|t| t.0 == name).unwrap().3.as_slice();
    let mut both = without(head);
    both.push((head.into(), "BF16", vec![512, 64], stored(embed).to_vec()));
    for (tensors, kept) in [(without(head), embed), (without(embed), head), (both, embed)] {
        let weights = load(&tensors).unwrap();
        assert_eq!(weights.tensor(TensorId::LmHead), weights.tensor(TensorId::Embed));
        assert_eq!(weights.tensor(TensorId::Embed).bytes, stored(kept));
        assert_eq!(weights.bytes(), 2 * spec.parameters());
    }
    let error = load(&all).unwrap_err().to_string();
    assert!(error.contains("`lm_head.weight` differs") && error.contains("tie_word_embeddings"), "{error}");
}

#[test]
fn an_element_type_that_the_config_does_not_declare_is_that_of_the_weights() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    write_model(dir.path(), &spec, &random_weights(&spec, 5), &[]).unwrap();
    let path = dir.path().join("config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, value: serde_json::Value| {
        let mut config = config.clone();
        config.as_object_mut().unwrap().remove("dtype");
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        load_config(dir.path()).unwrap().dtype
    };
    assert_eq!(with("torch_dtype", "float16".into()), DType::F16);
    assert_eq!(with("dtype", serde_json::Value::Null), DType::Bf16);
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(with("use_cache", true.into()), DType::F32);
}

#[test]
fn data_off_its_alignment_is_copied() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    let mut all = tensors_of(&spec);
    let wide = all[0].3.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect();
    (all[0].1, all[0].3) = ("F32", wide);
    let path = dir.path().join("model.safetensors");
    for (pad, copied) in [(0, 0), (1, u64::MAX), (2, all[0].3.len() as u64)] {
        save(&path, &all, pad);
        let weights = Weights::load(dir.path(), &spec).unwrap();
        assert_eq!(weights.owned_bytes(), copied.min(weights.bytes()), "{pad}");
        let embed = weights.tensor(TensorId::Embed);
        assert_eq!((embed.dtype, embed.bytes), (DType::F32, all[0].3.as_slice()));
        assert_eq!(bytemuck::cast_slice::<u8, f32>(embed.bytes).len(), embed.rows * embed.cols);
    }
}

#[test]
fn a_tensor_that_is_missing_or_wrong_is_named() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    type Damage = fn(&mut Tensors);
    let cases: [(Damage, &str); 6] = [
        (|t| drop(t.pop()), "`lm_head.weight` is missing"),
        (|t| t[2].2 = vec![32, 128], "`model.layers.0.self_attn.q_proj.weight` has shape"),
        (|t| t[1].2 = vec![64, 1], "`model.layers.0.input_layernorm.weight` has shape"),
        (|t| t[0].1 = "I16", "`model.embed_tokens.weight` has type I16"),
        (|t| t[0].1 = "F32", "`model.embed_tokens.weight` has 65536 bytes"),
        (|t| t[0].0 = "x".into(), "`model.embed_tokens.weight` is missing"),
    ];
    for (damage, named) in cases {
        let mut all = tensors_of(&spec);
        damage(&mut all);
        save(&dir.path().join("model.safetensors"), &all, 0);
        let error = Weights::load(dir.path(), &spec).unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains(named), "{named}: {error}");
    }
}

#[test]
fn files_that_are_not_safetensors_are_refused() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    let path = dir.path().join("model.safetensors");
    let error = || Weights::load(dir.path(), &spec).unwrap_err().to_string();
    assert!(error().contains("only safetensors"));
    std::fs::write(&path, b"").unwrap();
    assert!(error().contains("has 0 bytes"));
    save(&path, &tensors_of(&spec), 0);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(error().contains("truncated"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(error().contains("is not a file"));
}

#[test]
fn shards_are_found_through_their_index() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), tiny());
    let at = |name: &str| dir.path().join(name);
    let all = tensors_of(&spec);
    let (first, second) = all.split_at(all.len() / 2);
    save(&at("a.safetensors"), &first.to_vec(), 0);
    save(&at("b.safetensors"), &second.to_vec(), 0);
    let index = |map: &serde_json::Map<String, serde_json::Value>| {
        let index = serde_json::json!({"weight_map": map});
        std::fs::write(at("model.safetensors.index.json"), index.to_string()).unwrap();
        Weights::load(dir.path(), &spec).map_err(|e| e.to_string())
    };
    let mut map = serde_json::Map::new();
    for (part, file) in [(first, "a.safetensors"), (second, "b.safetensors")] {
        map.extend(part.iter().map(|t| (t.0.clone(), file.into())));
    }
    same(&index(&map).unwrap(), &random_weights(&spec, 1), &spec);

    let changed = |name: &str, value: &str| {
        let mut map = map.clone();
        map.insert(name.into(), value.into());
        index(&map).unwrap_err()
    };
    let name = &first[0].0;
    for bad in ["../a.safetensors", "/etc/passwd", "..", "", "sub/a.safetensors"] {
        assert!(changed(name, bad).contains("weight_map.model.embed_tokens.weight"), "{bad}");
    }
    assert!(changed(name, "c.safetensors").contains("c.safetensors"));
    assert!(changed(name, "b.safetensors").contains("is not in this file"));
    save(&at("b.safetensors"), &all, 0);
    assert!(index(&map).unwrap_err().contains("is also here"));
    let mut less = map.clone();
    less.remove(name);
    assert!(index(&less).unwrap_err().contains("`model.embed_tokens.weight` is missing"));
}

#[test]
fn memory_tensors_must_be_those_of_the_spec() {
    let spec = tiny();
    let make = || {
        let one = |(id, [r, c]): (TensorId, [usize; 2])| (id, DType::Bf16, vec![0u8; 2 * r * c]);
        spec.tensors().into_iter().map(one).collect::<Vec<_>>()
    };
    assert!(Weights::from_memory(make(), &spec).is_ok());
    let error = |tensors| Weights::from_memory(tensors, &spec).unwrap_err().to_string();
    let mut less = make();
    less.remove(3);
    assert!(error(less).contains("k_proj.weight` is missing"));
    let mut short = make();
    short[0].2.pop();
    assert!(error(short).contains("has 65535 bytes"));
    let mut twice = make();
    twice.push(make().remove(0));
    assert!(error(twice).contains("twice"));
}

#[test]
fn the_first_value_that_is_not_finite_is_named() {
    let spec = tiny();
    let values = [(DType::Bf16, 0x7f80u32), (DType::F16, 0xfc01), (DType::F32, 0x7fc0_0000)];
    for (dtype, bits) in values {
        let one = |(id, [r, c]): (TensorId, [usize; 2])| (id, dtype, vec![0u8; dtype.bytes() * r * c]);
        let mut tensors: Vec<_> = spec.tensors().into_iter().map(one).collect();
        Weights::from_memory(tensors.clone(), &spec).unwrap().check_finite().unwrap();
        let (size, at) = (dtype.bytes(), 7 * 64 + 5);
        tensors[2].2[at * size..(at + 1) * size].copy_from_slice(&bits.to_le_bytes()[..size]);
        let error = Weights::from_memory(tensors, &spec).unwrap().check_finite().unwrap_err().to_string();
        assert!(
            error.contains("layers.0.self_attn.q_proj.weight` has") && error.contains("[7, 5]"),
            "{error}"
        );
    }
}

#[test]
fn the_trained_model_beside_the_checkout_loads() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/code-22m");
    if !dir.exists() {
        eprintln!("skipped: {} is not here", dir.display());
        return;
    }
    let spec = load_config(&dir).unwrap();
    let weights = Weights::load(&dir, &spec).unwrap();
    weights.check_finite().unwrap();
    assert_eq!((spec.layers, spec.tied, weights.owned_bytes()), (6, true, 0));
}
