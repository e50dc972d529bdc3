//! Writing a model folder, whole or not at all.

use super::*;
use crate::model::config::load_config;
use crate::model::known::known_shape;
use crate::model::random::random_weights;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_written_folder_has_the_hugging_face_layout() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), known_shape("tiny").unwrap());
    let dir = dir.path().join("new/model");
    write_model(&dir, &spec, &random_weights(&spec, 0), &[("tokenizer.json", b"{}")]).unwrap();
    assert_eq!(names(&dir), ["config.json", "model.safetensors", "tokenizer.json"]);
    let loaded = load_config(&dir).unwrap();
    assert_eq!(ModelSpec { name: spec.name.clone(), ..loaded }, spec);
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.tensor("model.norm.weight").unwrap().shape(), [64]);
    assert_eq!(reference.tensor("model.layers.1.mlp.down_proj.weight").unwrap().shape(), [64, 128]);
}

#[test]
fn a_failed_write_leaves_nothing() {
    let (dir, spec) = (tempfile::tempdir().unwrap(), known_shape("tiny").unwrap());
    let weights = random_weights(&spec, 0);
    let error = write_model(dir.path(), &spec, &weights, &[("ok.txt", b""), ("../x", b"")]).unwrap_err();
    assert!(error.to_string().contains("../x"));
    // A name longer than the file system takes fails after the first file was staged.
    let long = "x".repeat(300);
    let error = write_model(dir.path(), &spec, &weights, &[("ok.txt", b"1"), (&long, b"")]).unwrap_err();
    assert!(matches!(error, ModelError::Write { .. }) && !error.is_input());
    assert_eq!(names(dir.path()), [] as [String; 0]);
}

#[test]
fn options_a_family_cannot_state_are_refused() {
    let (dir, mut spec) = (tempfile::tempdir().unwrap(), known_shape("tiny").unwrap());
    spec.qk_norm = true;
    let error = write_model(dir.path(), &spec, &random_weights(&spec, 0), &[]).unwrap_err();
    assert!(error.to_string().contains("cannot express"));
    assert_eq!(names(dir.path()), [] as [String; 0]);
}
