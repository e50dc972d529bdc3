//! `niah`: answers found, counted and drawn.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{folder, names, run};

const SMALL: &str = "niah -c 1k --depths 0,0.5,1 --seeds 2 --device cpu --placement offload";

#[test]
fn every_needle_is_found_and_the_figures_are_promised_ones() {
    let report = run(&format!("{SMALL} --json")).json();
    assert_eq!((&report["trials"], &report["correct"]), (&6.into(), &6.into()));
    assert_eq!(report["context"], 1024);
    assert!(report["margin_min"].as_f64().unwrap() > 1.0);
    assert!(report["prefill_s"].as_f64().unwrap() > 0.0);
    assert_eq!(report["device_peak_bytes"], report["plan_device_bytes"]);
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 6);
    assert_eq!((&cells[4]["depth"], &cells[4]["seed"]), (&0.5.into(), &1.into()));
}

#[test]
fn people_get_a_line_per_answer_and_a_picture() {
    let dir = folder();
    let plot = dir.path().join("map.svg");
    let ran = run(&format!("{SMALL} --plot {}", plot.display()));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stdout.lines().count(), 1 + 6 + 1, "{ran:?}");
    assert!(ran.stdout.contains("6 of 6 right"));
    assert!(fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    assert_eq!(names(dir.path()), ["map.svg"]);
}

#[test]
fn a_retrieval_model_in_a_folder_answers_as_the_built_in_one() {
    let dir = folder();
    let model = dir.path().join("model");
    let made = run(&format!("model make retrieval --out {}", model.display()));
    assert_eq!(made.code, 0, "{made:?}");
    assert!(names(&model).contains(&"tokenizer.json".to_owned()));
    let cells = |model: &str| run(&format!("{SMALL} --json -m {model}")).json()["margin_min"].clone();
    assert_eq!(cells(&model.display().to_string()), cells("builtin:retrieval"));
}

#[test]
fn impossible_haystacks_are_refused() {
    run("niah -c 10 --device cpu").fails(2, &["needles", "--context"]);
    run("niah -c 1k -m random:tiny --device cpu").fails(4, &["no tokenizer"]);
    run("niah -c 1k -m builtin:retrieval:no --device cpu").fails(4, &["builtin:retrieval:no", "known: tiny"]);
    run("niah -c 1k --plot /no/such/map.svg --device cpu").fails(1, &["cannot write"]);
    run("niah -c 1k --gpu-memory 1KiB --device cpu").fails(3, &["--gpu-memory"]);
}

#[test]
fn resident_memory_stays_within_the_plan() {
    let line = "niah -c 8k --depths 3 --device cpu --placement offload --gpu-memory 8MiB --json -q";
    let mut child = Command::new(env!("CARGO_BIN_EXE_headinfer"))
        .args(line.split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak =
            text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak_kib = peak.unwrap_or(0u64).max(peak_kib);
        std::thread::sleep(Duration::from_millis(5));
    }
    let report: Value = serde_json::from_reader(child.stdout.take().unwrap()).unwrap();
    let bytes = |name: &str| report[name].as_u64().unwrap() as f64;
    let weights =
        run("plan -m builtin:retrieval -c 1k --device cpu --json").json()["weights"]["bytes"].as_f64();
    let planned = bytes("plan_device_bytes") + bytes("host_bytes") + weights.unwrap();
    let (peak, most) = ((peak_kib << 10) as f64, 1.05 * planned + (50 << 20) as f64);
    assert!(peak > bytes("host_bytes") && peak <= most, "{peak} bytes resident, at most {most} allowed");
}
