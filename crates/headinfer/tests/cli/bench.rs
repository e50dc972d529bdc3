//! `bench` and `doctor`: small runs, so that the measurements cannot rot.

use serde_json::Value;

use crate::support::{Ran, headinfer, run};

const FIELDS: [&str; 13] = [
    "context",
    "seconds",
    "tokens_per_s",
    "floor_s",
    "ratio_to_floor",
    "attention_tflops",
    "link_gb_s",
    "host_gb_s",
    "copy_hidden_fraction",
    "device_peak_bytes",
    "plan_device_bytes",
    "host_bytes",
    "attention_of_peak",
];

/// Checks the fields that `bench prefill` and `bench decode` share.
fn measured(line: &str) -> Value {
    let report = run(line).json();
    for field in FIELDS {
        assert!(report[field].as_f64().unwrap() >= 0.0, "{field}: {report}");
    }
    for field in ["seconds", "attention_tflops", "attention_of_peak", "host_gb_s", "read_peak_gb_s"] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }
    let floor = &report["floor"];
    let of = |name: &str| floor[name].as_f64().unwrap();
    assert_eq!(report["floor_s"], floor["total_s"]);
    let busiest = (of("attention_s") + of("gemm_s")).max(of("link_s")).max(of("device_s"));
    assert!(of("total_s") >= busiest * 0.999 && of("weights_s") <= of("device_s"), "{floor}");
    assert!(!report["build"].as_str().unwrap().is_empty());
    assert_eq!(report["device_peak_bytes"], report["plan_device_bytes"]);
    assert_eq!(report["host_bytes"], report["plan_host_bytes"]);
    let hash = report["logits_hash"].as_str().unwrap();
    assert!(hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()));
    report
}

#[test]
fn placement_changes_no_hash_of_a_prefill() {
    let line = "bench prefill -m random:tiny --device cpu -c 600 --chunk 128 --json --placement";
    let (resident, offload) = (measured(&format!("{line} resident")), measured(&format!("{line} offload")));
    assert_eq!(resident["logits_hash"], offload["logits_hash"]);
    assert_eq!(resident["link_gb_s"], 0.0);
    assert!(offload["link_gb_s"].as_f64().unwrap() > 0.0 && offload["host_bytes"].as_u64().unwrap() > 0);
    assert_eq!((&resident["context"], &resident["tokens"]), (&600.into(), &600.into()));
}

#[test]
fn a_synthetic_past_is_the_same_wherever_it_is_kept() {
    let prefill = "bench prefill -m random:tiny --device cpu -c 900 --at 800 --json --placement";
    let hash = |line: String| measured(&line)["logits_hash"].clone();
    assert_eq!(hash(format!("{prefill} resident")), hash(format!("{prefill} offload --tile 256")));
    let decode = "bench decode -m random:tiny --device cpu -c 900 -n 3 --synthetic --json --placement";
    assert_eq!(hash(format!("{decode} resident")), hash(format!("{decode} offload --tile 512")));
    assert_ne!(hash(format!("{decode} resident")), hash(format!("{decode} resident --seed 1")));
}

#[test]
fn greedy_tokens_after_a_prefill_are_counted_apart() {
    let line = "bench prefill -m random:tiny --device cpu -c 305 -n 5 --json --placement";
    let (resident, offload) = (measured(&format!("{line} resident")), measured(&format!("{line} offload")));
    let alone = measured("bench prefill -m random:tiny --device cpu -c 300 --json");
    assert_eq!((&offload["tokens"], &offload["logits_hash"]), (&300.into(), &alone["logits_hash"]));
    let decoded = |of: &Value| (of["decoded"]["ids"].clone(), of["decoded"]["logits_hash"].clone());
    assert_eq!(decoded(&resident), decoded(&offload));
    assert_eq!(
        (offload["decoded"]["ids"].as_array().unwrap().len(), &offload["decoded"]["count"]),
        (5, &5.into())
    );
    assert_ne!(offload["decoded"]["logits_hash"], offload["logits_hash"]);
    run("bench prefill -m random:tiny --device cpu -c 100 -n 100").fails(2, &["100 tokens", "--context 100"]);
}

#[test]
fn a_profile_accounts_for_the_time_of_every_step() {
    let line = "bench prefill -m random:tiny --device cpu -c 600 --at 300 --chunk 128 --placement offload";
    let report = measured(&format!("{line} --profile --json"));
    assert!(measured(&format!("{line} --json"))["profile"].is_null());
    let (profile, seconds) = (&report["profile"], report["seconds"].as_f64().unwrap());
    let compute = &profile["lanes"][0];
    assert_eq!(compute["lane"], "compute");
    let ops = compute["ops"].as_object().unwrap();
    // Three steps of two layers.
    assert_eq!((&ops["norm"]["commands"], &ops["embed"]["commands"]), (&12.into(), &3.into()));
    let of = |field: &str| -> f64 { ops.values().map(|op| op[field].as_f64().unwrap()).sum() };
    let (accounted, busy) = (profile["accounted_fraction"].as_f64().unwrap(), of("seconds"));
    assert!(0.0 < busy && busy <= seconds, "{report}");
    assert!(
        (accounted - busy / seconds).abs() < 1e-9 && (accounted - of("of_time")).abs() < 1e-9,
        "{report}"
    );
    for op in ["attend", "mlp", "project"] {
        assert!(ops[op]["tflops"].as_f64().unwrap() > 0.0, "{op}: {report}");
    }
    assert!(profile["lanes"][1]["ops"]["fetch"]["gb_s"].as_f64().unwrap() > 0.0, "{report}");
    assert!(
        run(&format!("{line} --profile")).stdout.contains("% of the time in commands of the compute lane")
    );
}

#[test]
fn decode_after_a_real_prefill_is_measured() {
    let report = measured("bench decode -m random:tiny --device cpu -c 300 -n 4 --placement offload --json");
    assert_eq!((&report["tokens"], &report["repetitions"]["count"]), (&1.into(), &4.into()));
    let [least, median, most] =
        [&report["repetitions"]["least_s"], &report["seconds"], &report["repetitions"]["most_s"]]
            .map(|x| x.as_f64().unwrap());
    assert!(0.0 < least && least <= median && median <= most);
    // 2 layers, 2 KV heads of 16, K and V in bf16: what one token adds is all that travels back.
    assert_eq!(report["bytes_out"], 2 * 2 * 2 * 16 * 2);
    // The tokens whose commands are timed have pasts of 296 to 299.
    assert_eq!(report["bytes_in"].as_f64().unwrap(), (2 * 2 * 2 * 16 * 2) as f64 * 297.5);
}

#[test]
fn decode_is_held_against_what_the_plan_predicts() {
    let line = "-m random:tiny --device cpu -c 900 --placement offload";
    let report = measured(&format!("bench decode {line} -n 3 --synthetic --json"));
    let [seconds, predicted, ratio] =
        ["seconds", "predicted_s", "predicted_ratio"].map(|field| report[field].as_f64().unwrap());
    assert!(predicted > 0.0 && (ratio - seconds / predicted).abs() < 1e-9 * ratio, "{report}");
    assert!(measured(&format!("bench prefill {line} --json")).get("predicted_s").is_none());
    let planned = run(&format!("plan {line} --json")).json()["decode"].clone();
    let [expected, floor] =
        ["expected_s_per_token", "floor_s_per_token"].map(|f| planned[f].as_f64().unwrap());
    assert!(floor <= expected && (expected / predicted - 1.0).abs() < 0.05, "{planned} {predicted}");
}

#[test]
fn splits_are_tried_one_after_another() {
    let line = "bench split -m random:tiny --device cpu -c 900 -n 2 --placement offload --json";
    let report = run(&format!("{line} --heads 0,auto,3,4")).json();
    let rows = report["rows"].as_array().unwrap();
    let of = |field: &str| rows.iter().map(|row| row[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("asked"), ["0", "auto", "3", "4"]);
    assert_eq!([&rows[0], &rows[2], &rows[3]].map(|row| row["host_heads"].as_u64().unwrap()), [0, 3, 4]);
    let times: Vec<f64> = of("seconds").iter().map(|s| s.as_f64().unwrap()).collect();
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(report["best_s"], best);
    assert_eq!(report["auto_over_best"].as_f64().unwrap(), times[1] / best);
    // Four pairs: `auto`, and 0 to 4 without a number twice.
    let rows = run(line).json()["rows"].clone();
    let asked: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["asked"].as_str().unwrap()).collect();
    assert_eq!(asked, ["auto", "0", "1", "2", "3", "4"]);
    run(&format!("{line} --heads 5")).fails(2, &["--host-heads must be 0..=4"]);
    run("bench split -m random:tiny --device cpu -c 16 -n 16").fails(2, &["16 tokens leave no past"]);
}

#[test]
fn quality_of_an_exact_form_is_that_of_the_exact_one() {
    let line = "bench quality -m builtin:retrieval --device cpu -c 700 -n 1400 --json --ids";
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    let list: Vec<u32> = (0..1401u32).map(|i| i * i % 97).collect();
    std::fs::write(&ids, serde_json::to_string(&list).unwrap()).unwrap();
    let report = |form: &str| run(&format!("{line} {} --kv-dtype {form}", ids.display())).json();
    for form in ["bf16", "bf16-packed"] {
        let report = report(form);
        let zero = |field: &str| assert_eq!(report[field], 0.0, "{field}: {report}");
        ["kl_mean_nats", "kl_max_nats"].iter().for_each(|field| zero(field));
        assert_eq!(report["perplexity"], report["exact_perplexity"]);
        assert_eq!((&report["same_top_fraction"], &report["lossy"]), (&1.0.into(), &false.into()));
        assert_eq!(report["needles"]["margin_min"], report["needles"]["exact_margin_min"]);
    }
    let report = report("int4");
    assert!(report["kl_mean_nats"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["kl_mean_nats"].as_f64() <= report["kl_max_nats"].as_f64(), "{report}");
    assert_eq!(
        (&report["lossy"], &report["tokens"], &report["context"]),
        (&true.into(), &1400.into(), &700.into())
    );
    assert_eq!((&report["needles"]["trials"], &report["needles"]["correct"]), (&5.into(), &5.into()));
    // Chunks of 256 in windows of 700: 256 tokens see none of the store, 256 see 256, 188 see 512.
    let share = (256.0 * 256.0 + 188.0 * 512.0) / (700.0 * 701.0 / 2.0);
    assert!((report["coded_share"].as_f64().unwrap() - share).abs() < 1e-9, "{report}");
}

#[test]
fn quality_needs_a_text_and_a_store() {
    let line = "bench quality -m builtin:retrieval --device cpu -c 700";
    run(line).fails(2, &["--file", "--ids"]);
    run(&format!("{line} -f README.md -n 0")).fails(2, &["--tokens", "at least 1"]);
    let folder = tempfile::tempdir().unwrap();
    let ids = folder.path().join("ids.json");
    std::fs::write(&ids, "[1]").unwrap();
    run(&format!("{line} --ids {}", ids.display())).fails(4, &["less than 2 tokens"]);
    std::fs::write(&ids, "[1, 2, 3]").unwrap();
    let line = format!("{line} --ids {} --kv-dtype int8 --placement resident", ids.display());
    run(&line).fails(2, &["nothing is int8", "--placement offload"]);
}

#[test]
fn memory_of_the_papers_case_is_flat_from_128k_to_4m() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("memory.svg");
    let line = format!("bench memory -c 1k,128k,1M,4M --json --plot {}", plot.display());
    let report = run(&line).json();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[1]["offloaded_bytes"], rows[3]["offloaded_bytes"]);
    assert_eq!(rows[1]["offloaded_kv_bytes"], rows[3]["offloaded_kv_bytes"]);
    assert!(rows[3]["within_budget_bytes"].as_u64() <= report["budget_bytes"].as_u64());
    // The paper's figure at 1M: 207 GB for the standard layout.
    let standard = rows[2]["compared"][0]["device_bytes"].as_f64().unwrap() / f64::from(1 << 30);
    assert!((standard - 207.0).abs() < 1.0, "{standard}");
    let svg = std::fs::read_to_string(plot).unwrap();
    assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (6, 24));
    for text in ["headinfer, offloaded", "standard", "4M", "16 GiB"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
}

#[test]
fn overlap_writes_a_trace_of_every_lane() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let line = "bench overlap -m random:tiny --device cpu -c 900 --chunk 64 --tile 256 --placement offload";
    let report = run(&format!("{line} --json --trace {}", trace.display())).json();
    let hidden = report["copy_hidden_fraction"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&hidden));
    let lanes = report["lanes"].as_array().unwrap();
    let commands: u64 = lanes
        .iter()
        .flat_map(|lane| lane["ops"].as_object().unwrap().values())
        .map(|op| op["commands"].as_u64().unwrap())
        .sum();
    let trace: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert_eq!(events.iter().filter(|e| e["ph"] == "X").count() as u64, commands);
    for name in ["fetch", "evict", "attend", "project", "mlp"] {
        assert!(events.iter().any(|e| e["name"] == name), "{name}");
    }
}

#[test]
fn guesses_are_measured_on_a_text_that_quotes_itself_and_on_one_that_does_not() {
    let line = "bench decode -m builtin:retrieval --device cpu -c 600 -n 40 --json --speculate 15 --text";
    let run = |text: &str| run(&format!("{line} {text}")).json();
    let (quote, own) = (run("quote"), run("own"));
    for report in [&quote, &own] {
        assert_eq!((&report["identical"], &report["tokens"]), (&true.into(), &40.into()));
        assert_eq!((&report["plain"]["passes"], &report["context"]), (&39.into(), &600.into()));
        for of in ["plain", "guessing"] {
            assert!(report[of]["tokens_per_s"].as_f64().unwrap() > 0.0, "{report}");
        }
    }
    assert!(quote["guessing"]["tokens_per_pass"].as_f64().unwrap() > 5.0, "{quote}");
    assert_eq!(own["guessing"]["accepted_tokens"], 0);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("words.txt");
    std::fs::write(&file, "anything ".repeat(80)).unwrap();
    let of_file = run(file.to_str().unwrap());
    assert_eq!((&of_file["identical"], of_file["past"].as_u64()), (&true.into(), Some(81)));
}

#[test]
fn attention_on_the_cpu_is_measured_against_its_ceilings() {
    let report = run("bench attention --device cpu --head-dim 32 --isa portable --json").json();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &report["head_dim"], &report["isa"]), (4, &32.into(), &"portable".into()));
    for row in rows {
        let rate = if row["what"] == "decode" { "gb_s" } else { "tflops" };
        for field in ["ms", "of_peak", rate] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field}: {row}");
        }
    }
}

#[test]
fn copies_are_measured_where_there_is_a_card_and_refused_where_there_is_none() {
    let ran = run("bench link --json");
    if ran.code == 0 {
        assert_eq!(ran.json()["rows"].as_array().unwrap().len(), 9);
    } else {
        ran.fails(1, &["no CUDA device can be used"]);
    }
}

#[test]
fn kernels_are_measured_where_there_is_a_card_and_refused_where_there_is_none() {
    let ran = run("bench kernels -m random:tiny --json");
    if ran.code == 0 {
        assert_eq!(ran.json()["products"].as_array().unwrap().len(), 4);
    } else {
        ran.fails(1, &["no CUDA device can be used"]);
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    run("bench attention --head-dim 12").fails(2, &["12", "multiple of 8"]);
    run("bench attention --isa sse").fails(2, &["sse", "avx2"]);
    run("bench attention --tile 100").fails(2, &["100", "multiple of 256"]);
    run("bench kernels --rows 16").fails(2, &["16", "within 17"]);
    run("bench kernels -m random:vast").fails(4, &["vast"]);
    run("bench speed").fails(2, &["speed"]);
    let tiny = "-m random:tiny --device cpu";
    run(&format!("bench prefill {tiny} -c 100 --at 100")).fails(2, &["--at 100", "--context 100"]);
    run(&format!("bench decode {tiny} -c 16 -n 16")).fails(2, &["16 tokens leave no past"]);
    run(&format!("bench decode {tiny} -c 160 -n 16 --text quote")).fails(2, &["--text quote", "retrieval"]);
    run(&format!("bench overlap {tiny} -c 100")).fails(2, &["no past to fetch", "hint: "]);
    run("bench memory -c 0").fails(2, &["--context 0"]);
    run("bench memory -c 1k --plot /nonexistent/x.svg").fails(1, &["cannot write /nonexistent/x.svg"]);
}

#[test]
fn doctor_keeps_its_figures_for_the_planner() {
    let cache = tempfile::tempdir().unwrap();
    let run =
        |line: &str| Ran::of(headinfer().env("HEADINFER_CACHE", cache.path()).args(line.split_whitespace()));
    let report = run("doctor --json").json();
    for field in ["cores", "cores_allowed", "memory_bytes", "memory_available_bytes", "cache_free_bytes"] {
        assert!(report[field].as_u64().unwrap() > 0, "{field}: {report}");
    }
    for field in ["fma_gflops", "read_gb_s", "read_one_thread_gb_s", "copy_gb_s", "gemm_gflops"] {
        assert!(report["measured"][field].as_f64().unwrap() > 0.0, "{field}: {report}");
    }
    assert_eq!(report["measured"]["attention"].as_array().unwrap().len(), 4);
    for field in ["os", "cpu", "isa", "cuda_missing"] {
        assert!(!report[field].as_str().unwrap().is_empty(), "{field}: {report}");
    }
    let kept = report["kept"].as_str().unwrap();
    assert!(std::fs::read_to_string(kept).unwrap().contains("measured by headinfer doctor"));
    let date = report["machine"]["source"].as_str().unwrap();
    assert!(date.contains(" on 20") && date.contains(" with "), "{date}");
    let planned = run("plan -m random:tiny -c 4k --device cpu --json").json();
    assert!(planned["machine"].as_str().unwrap().starts_with("measured by headinfer doctor"), "{planned}");

    let looked = run("doctor --look --json").json();
    assert!(looked["measured"].is_null() && looked["kept"].is_null());
}
