//! Bad input: each kind has its exit code and one line that says what and where.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Ran, copy_of_tiny, folder, ids, names, run};

/// `logits` of a model folder with nothing else wrong, into `dir`.
fn score(model: &Path, dir: &tempfile::TempDir) -> Ran {
    let (model, ids) = (model.display(), ids(dir, 9));
    let (ids, out) = (ids.display(), dir.path().join("out"));
    let ran = run(&format!("logits -m {model} --ids {ids} --out {} --device cpu", out.display()));
    assert!(ran.code == 0 || !out.exists(), "{ran:?}");
    ran
}

fn with_config(change: impl Fn(&mut Value)) -> Ran {
    let dir = folder();
    let model = copy_of_tiny(&dir);
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    score(&model, &dir)
}

fn with_weights(change: impl Fn(&mut Vec<u8>)) -> Ran {
    let dir = folder();
    let model = copy_of_tiny(&dir);
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    score(&model, &dir)
}

/// The same file with another header of its own length.
fn with_header(change: impl Fn(&str) -> String) -> Ran {
    with_weights(|bytes| {
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header = change(std::str::from_utf8(&bytes[8..8 + length]).unwrap());
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&bytes[8 + length..]);
        *bytes = file;
    })
}

#[test]
fn damaged_weights_are_named() {
    assert_eq!(with_weights(|_| {}).code, 0);
    with_weights(|bytes| bytes.truncate(5)).fails(4, &["model.safetensors", "too few"]);
    with_weights(|bytes| bytes.truncate(bytes.len() / 2)).fails(4, &["model.safetensors"]);
    with_weights(|bytes| bytes[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes()))
        .fails(4, &["model.safetensors", "header of 9223372036854775807"]);
    with_header(|h| h.replacen("\"BF16\"", "\"I8\"", 1)).fails(4, &["model.safetensors"]);
    with_header(|h| h.replacen("lm_head.weight", "lm_head.wrong", 1))
        .fails(4, &["lm_head.weight", "missing"]);
    with_header(|h| h.replacen("[512,64]", "[64,512]", 1)).fails(4, &["model.safetensors", "[64, 512]"]);
    let overlap = |h: &str| {
        let mut header: Value = serde_json::from_str(h).unwrap();
        let first = header["model.norm.weight"]["data_offsets"].clone();
        header["model.layers.0.input_layernorm.weight"]["data_offsets"] = first;
        header.to_string()
    };
    with_header(overlap).fails(4, &["model.safetensors"]);
    with_weights(|bytes| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0xc0, 0x7f]);
    })
    .fails(4, &["model.safetensors", "lm_head.weight", "not finite"]);
}

#[test]
fn lengths_offsets_and_shapes_without_sense_are_named() {
    for length in [0, 100_000_001, (1 << 63) - 8, 1 << 63, u64::MAX - 8, u64::MAX] {
        with_weights(|bytes| bytes[..8].copy_from_slice(&length.to_le_bytes()))
            .fails(4, &["model.safetensors"]);
    }
    let with_norm = |key: &str, value: Value| {
        with_header(|h| {
            let mut header: Value = serde_json::from_str(h).unwrap();
            header["model.norm.weight"][key] = value.clone();
            header.to_string()
        })
    };
    let far = 1u64 << 63;
    for offsets in
        [json!([far, far + 128]), json!([u64::MAX - 127, u64::MAX]), json!([128, 0]), json!([-1, 127])]
    {
        with_norm("data_offsets", offsets).fails(4, &["model.safetensors"]);
    }
    for shape in [json!([]), json!([0]), json!([64, 1]), json!([far, 2]), json!(vec![1; 10_000]), json!(null)]
    {
        with_norm("shape", shape).fails(4, &["model.safetensors"]);
    }
    for dtype in [json!("F64"), json!("a\nb\u{1b}[31m"), json!("x".repeat(5000)), json!(5)] {
        with_norm("dtype", dtype).fails(4, &["model.safetensors"]);
    }
}

#[test]
fn tied_tensors_that_differ_are_named() {
    with_config(|c| c["tie_word_embeddings"] = json!(true))
        .fails(4, &["model.safetensors", "lm_head.weight", "tie_word_embeddings"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_or_a_folder_in_place_of_a_file_is_named_at_once() {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        for make in ["mkfifo", "mkdir"] {
            let dir = folder();
            let model = copy_of_tiny(&dir);
            let path = model.join(name);
            let _ = fs::remove_file(&path);
            assert!(std::process::Command::new(make).arg(&path).status().unwrap().success());
            let ran = match name {
                "tokenizer.json" => run(&format!("run -m {} -p hello --device cpu", model.display())),
                _ => score(&model, &dir),
            };
            ran.fails(4, &[name, "is not a file"]);
        }
    }
}

#[test]
fn impossible_configs_are_named() {
    assert_eq!(with_config(|_| {}).code, 0);
    with_config(|c| c["hidden_size"] = json!(0)).fails(4, &["config.json", "hidden_size"]);
    with_config(|c| c["num_hidden_layers"] = json!(1u64 << 60)).fails(4, &["num_hidden_layers"]);
    with_config(|c| c["vocab_size"] = json!(-5)).fails(4, &["vocab_size"]);
    with_config(|c| c["num_key_value_heads"] = json!(3)).fails(4, &["num_key_value_heads"]);
    with_config(|c| c["architectures"] = json!(["FooForCausalLM"])).fails(4, &["FooForCausalLM"]);
    with_config(|c| c["rope_parameters"]["rope_type"] = json!("spiral")).fails(4, &["spiral"]);
    for field in
        ["hidden_size", "num_attention_heads", "intermediate_size", "head_dim", "max_position_embeddings"]
    {
        for value in [json!(0), json!(1u64 << 63), json!(1e300), json!("x"), json!(1.5), json!([])] {
            with_config(|c| c[field] = value.clone()).fails(4, &["config.json", field]);
        }
    }
}

#[test]
fn missing_models_and_files_are_named() {
    let dir = folder();
    let plan = |model: &str| run(&format!("plan -m {model} -c 1k --device cpu"));
    plan("no-such-folder").fails(4, &["no-such-folder"]);
    plan("no-such/model").fails(4, &["no-such/model", "HF_HUB_OFFLINE"]);
    plan("random:huge").fails(4, &["huge", "llama-3-8b"]);
    plan("random:tiny:x").fails(4, &["'x' is not a seed"]);
    plan("builtin:chess").fails(4, &["builtin:retrieval"]);
    plan(&dir.path().display().to_string()).fails(4, &["config.json"]);
    let model = copy_of_tiny(&dir);
    fs::remove_file(model.join("model.safetensors")).unwrap();
    score(&model, &dir).fails(4, &["model.safetensors"]);
    let lost = "logits -m random:tiny --ids lost.json --out x --device cpu";
    let lost = run(lost);
    lost.fails(4, &["cannot read lost.json"]);
    assert_eq!(lost.stderr.matches("No such file").count(), 1, "{lost:?}");
    plan(&dir.path().display().to_string()).fails(4, &["config.json"]);
}

#[test]
fn bad_ids_are_named() {
    let dir = folder();
    let file = dir.path().join("ids");
    let score = |content: &[u8], more: &str| {
        fs::write(&file, content).unwrap();
        let (ids, out) = (file.display(), dir.path().join("out"));
        let line = format!("logits -m random:tiny --ids {ids} --out {} --device cpu {more}", out.display());
        let ran = run(&line);
        assert_eq!(names(dir.path()).len(), 1, "{ran:?}");
        ran
    };
    score(b"[]", "").fails(4, &["empty"]);
    score(b"", "").fails(4, &["ids"]);
    score(b"[1, 2, 512]", "").fails(4, &["512 at position 2", "vocabulary of 512"]);
    score(b"[1, -1]", "").fails(4, &["-1 at position 1"]);
    score(b"[1, \"a\"]", "").fails(4, &["JSON list"]);
    score(b"{}", "").fails(4, &["safetensors"]);
    score(&[0xff; 64], "").fails(4, &["header of"]);
    score(b"[1, 2, 3]", "--last 4").fails(2, &["--last must be 1..=3"]);
    score(b"[1, 2, 3]", "--last 0").fails(2, &["--last"]);
    score(b"[1, 2, 3]", "--context 2").fails(3, &["need 3", "--context 3"]);
    score(b"[1, 2, 3]", "--context 3 --greedy 2").fails(3, &["need 4", "--context 4"]);
}

#[test]
fn cuda_is_refused_in_one_line_where_there_is_none() {
    let dir = folder();
    let (ids, out) = (ids(&dir, 9), dir.path().join("out"));
    let line = format!("logits -m random:tiny --ids {} --out {} --device cuda", ids.display(), out.display());
    run(&line).fails(1, &["no CUDA device", "--device cpu"]);
}
