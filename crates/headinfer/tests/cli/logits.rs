//! `logits`: what it writes.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::support::{Ran, folder, ids, names, run, tiny};

fn logits(ids: &Path, out: &Path, more: &str) -> Ran {
    let (model, ids, out) = (tiny().display(), ids.display(), out.display());
    run(&format!("logits -m {model} --ids {ids} --out {out} --device cpu --chunk 64 {more}"))
}

#[test]
fn logits_and_continuation_have_the_promised_shapes() {
    let dir = folder();
    let out = dir.path().join("out.safetensors");
    let about = logits(&ids(&dir, 150), &out, "--last 100 --greedy 5 --json").json();
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (logits, greedy) = (file.tensor("logits").unwrap(), file.tensor("greedy").unwrap());
    assert_eq!((logits.dtype(), logits.shape()), (Dtype::F32, &[100, 512][..]));
    assert_eq!((greedy.dtype(), greedy.shape()), (Dtype::I32, &[5][..]));
    let made: Vec<i32> = greedy.data().as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
    assert_eq!(about["greedy"], json!(made));
    let last: Vec<f32> = logits.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let best = last[99 * 512..].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    assert_eq!(made[0], best as i32);
    assert_eq!(names(dir.path()), ["ids-150.json", "out.safetensors"]);
}

#[test]
fn placement_never_changes_the_answer() {
    let dir = folder();
    let ids = ids(&dir, 700);
    let hash = |name: &str, more: &str| {
        let out = dir.path().join(name);
        let about = logits(&ids, &out, &format!("--last 10 --greedy 8 --json {more}")).json();
        (std::fs::read(out).unwrap(), about)
    };
    let resident = hash("resident", "--placement resident");
    assert_eq!(resident, hash("offload", "--placement offload --tile 256"));
    assert_eq!(resident, hash("tight", "--gpu-memory 1MiB --heads-per-group 1 --threads 1"));
    assert_eq!(resident, hash("streamed", "--weights stream"));
}

#[test]
fn safetensors_ids_are_the_same_as_a_list() {
    let dir = folder();
    let list = ids(&dir, 20);
    let values: Vec<i32> = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    let data: Vec<u8> = values.iter().flat_map(|id| id.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::I32, vec![20], &data).unwrap();
    let tensors = dir.path().join("ids.safetensors");
    std::fs::write(&tensors, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert_eq!(logits(&list, &a, "--last 20").code, 0);
    assert_eq!(logits(&tensors, &b, "--last 20").code, 0);
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
}

#[test]
fn a_generated_model_equals_its_folder() {
    let dir = folder();
    let (ids, out) = (ids(&dir, 20), dir.path().join("out"));
    let of = |model: &str| {
        let (ids, out) = (ids.display(), out.display());
        run(&format!("logits -m {model} --ids {ids} --out {out} --device cpu --json")).json()
    };
    assert_eq!(of("random:tiny"), of(&tiny().display().to_string()));
    assert_ne!(of("random:tiny"), of("random:tiny:1"));
}
