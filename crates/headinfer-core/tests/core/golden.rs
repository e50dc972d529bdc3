//! Logits against transformers on small random-weight models (made by `tools/golden.py`).
//!
//! The rule: our relative error against transformers in f32 is at most twice that of transformers in bf16.

use std::path::Path;
use std::sync::Arc;

use headinfer_core::cpu::CpuOptions;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::model::config::load_config;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{DeviceKind, Overrides, PlacementMode};
use safetensors::SafeTensors;

use crate::run::{logits, open, relative_error};
use crate::support::request;

struct Golden {
    ids: Vec<u32>,
    logits_f32: Vec<f32>,
    logits_bf16: Vec<f32>,
    greedy: Vec<u32>,
    margin: Vec<f32>,
}

fn read(path: &Path) -> Golden {
    let bytes = std::fs::read(path).expect("golden.safetensors is here");
    let file = SafeTensors::deserialize(&bytes).expect("a golden parses");
    let words = |name: &str| -> Vec<[u8; 4]> {
        let tensor = file.tensor(name).unwrap_or_else(|_| panic!("{} has no {name}", path.display()));
        tensor.data().as_chunks::<4>().0.to_vec()
    };
    let floats = |name| words(name).into_iter().map(f32::from_le_bytes).collect();
    let ids = |name| words(name).into_iter().map(u32::from_le_bytes).collect();
    Golden {
        ids: ids("ids"),
        logits_f32: floats("logits_f32"),
        logits_bf16: floats("logits_bf16"),
        greedy: ids("greedy"),
        margin: floats("margin"),
    }
}

/// Runs one golden, offloaded in small tiles and chunks; gives (our error, transformers' bf16 error).
fn check(dir: &Path, isa: Option<Isa>) -> (f64, f64) {
    let spec = load_config(dir).unwrap_or_else(|e| panic!("{e}"));
    let weights = Arc::new(Weights::load(dir, &spec).unwrap_or_else(|e| panic!("{e}")));
    let golden = read(&dir.join("golden.safetensors"));
    let mut request = request(DeviceKind::Cpu, golden.ids.len() + golden.greedy.len());
    request.placement = PlacementMode::Offload;
    request.overrides = Overrides { chunk: Some(64), tile: Some(256), ..Overrides::default() };
    let mut session = open(&spec, &weights, &request, &CpuOptions { isa, ..CpuOptions::default() });
    let rows = golden.logits_f32.len() / spec.vocab;
    let ours = logits(&mut session, &golden.ids, rows);
    let error = relative_error(&ours, &golden.logits_f32);
    let allowed = relative_error(&golden.logits_bf16, &golden.logits_f32);
    assert!(error <= 2.0 * allowed, "{}: error {error:.2e}, bf16's {allowed:.2e}", dir.display());
    let worst = ours.iter().zip(&golden.logits_f32).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let mut last = ours[ours.len() - spec.vocab..].to_vec();
    for (id, margin) in golden.greedy.iter().zip(&golden.margin) {
        // Closer than this the winner may differ, and then so does all that follows.
        if *margin <= 4.0 * worst {
            break;
        }
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).expect("logits");
        assert_eq!(best as u32, *id, "{}: greedy continuation, margin {margin}", dir.display());
        last.copy_from_slice(session.step(&[*id], 1).expect("a step"));
    }
    (error, allowed)
}

fn goldens(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut dirs: Vec<_> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    dirs.sort();
    dirs
}

#[test]
fn logits_are_those_of_transformers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let dirs = goldens(&dir);
    assert!(dirs.len() >= 12, "{} goldens", dirs.len());
    for dir in dirs {
        let (error, allowed) = check(&dir, None);
        eprintln!("{:<24} {error:.2e} of {allowed:.2e}", dir.file_name().expect("a name").display());
    }
}

#[test]
fn every_instruction_set_gives_them() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for isa in Isa::available() {
        for dir in goldens(&dir).iter().step_by(3) {
            check(dir, Some(isa));
        }
    }
}
