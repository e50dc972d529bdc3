//! `plan`: what it prints, for machines that are not this one.

use crate::support::{run, tiny};

#[test]
fn the_papers_case_is_planned_without_a_card() {
    let line = "plan -m random:llama-3-8b --device cuda --gpu-memory 24GiB --host-memory 1TiB --json -c";
    let at = |context: &str| run(&format!("{line} {context} --placement offload")).json();
    let plan = at("1M");
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["context"], 1 << 20);
    assert_eq!(plan["kv"]["bytes_per_token"], 128 << 10);
    assert_eq!(plan["kv"]["resident_heads"], 0);
    for number in ["/device/bytes", "/device/budget", "/host/bytes", "/host/budget", "/kv/tile_tokens"] {
        assert!(plan.pointer(number).unwrap().as_u64().unwrap() > 0, "{number}");
    }
    let decode = ["/decode/floor_s_per_token", "/decode/expected_s_per_token"];
    for number in ["/kv/heads_per_group", "/prefill/chunk", "/prefill/floor_s"].into_iter().chain(decode) {
        assert!(plan.pointer(number).unwrap().as_f64().unwrap() > 0.0, "{number}");
    }
    let regions = plan["device"]["regions"].as_array().unwrap();
    let sum: u64 = regions.iter().map(|r| r["bytes"].as_u64().unwrap()).sum();
    let device = plan["device"]["bytes"].as_u64().unwrap();
    assert!(device >= sum && device - sum < 1 << 16, "{device} {sum}");

    // Figure of the paper's section 4, in GB: 207 for the standard layout, 16.7 for its own.
    let gib = |name: &str| {
        let all = plan["compared"].as_array().unwrap();
        let one = all.iter().find(|c| c["layout"] == name).unwrap();
        one["device_bytes"].as_f64().unwrap() / f64::from(1 << 30)
    };
    assert!((gib("standard") - 207.0).abs() < 1.0 && (gib("paper's head-wise") - 16.7).abs() < 0.3);
    // Ours does not grow with the context.
    assert_eq!(at("128k")["device"]["bytes"], at("4M")["device"]["bytes"]);
}

#[test]
fn a_plan_for_people_says_why() {
    let plan = run(&format!("plan -m {} -c 4k --device cpu --gpu-memory 1MiB", tiny().display()));
    assert_eq!((plan.code, plan.stderr.as_str()), (0, ""), "{plan:?}");
    for word in ["device:", "host:", "KV store", "prefill: chunks of", "why:", "ring slots", "of 1.00 MiB"] {
        assert!(plan.stdout.contains(word), "no '{word}' in {}", plan.stdout);
    }
}

#[test]
fn an_index_of_guesses_is_planned_where_there_are_guesses() {
    let host = |more: &str| run(&format!("plan -m random:tiny -c 4k --device cpu {more}")).stdout;
    assert!(host("").contains("index of guesses"));
    assert!(!host("--speculate off").contains("index of guesses"));
}

#[test]
fn what_does_not_fit_says_need_have_and_the_flag() {
    let line = "plan -m random:llama-3-8b -c 1M --device cuda --gpu-memory 1GiB --host-memory 1TiB";
    run(line).fails(3, &["needs", "of 1.00 GiB", "largest: ", "--gpu-memory"]);
    let line = "plan -m random:llama-3-8b -c 1M --device cuda --host-memory 16GiB";
    run(line).fails(3, &["GiB of 16.0 GiB", "--host-memory", "--context"]);
    let refused = run(&format!("{line} --json"));
    assert_eq!(refused.code, 3);
    let object: serde_json::Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!((&object["fits"], &object["have_bytes"]), (&false.into(), &(16u64 << 30).into()));
    let longest = object["longest_context"].as_u64().unwrap();
    let fits = run(&format!("{line} --json -c {longest}").replace("-c 1M ", ""));
    assert_eq!(fits.json()["fits"], true);
}

#[test]
fn heads_go_to_the_cpu_where_someone_asks() {
    let line = "plan -m random:llama-3-8b -c 128k --device cuda --gpu-memory 24GiB --host-memory 1TiB --placement offload";
    let heads =
        |more: &str| run(&format!("{line} --json {more}")).json()["kv"]["host_heads"].as_u64().unwrap();
    assert_eq!([heads(""), heads("--host-heads 0"), heads("--host-heads 96")], [0, 0, 96]);
    let auto = heads("--host-heads auto");
    assert!(auto > 32 && auto < 256, "{auto}");
    let plan = run(&format!("{line} --host-heads auto"));
    assert!(plan.stdout.contains("in decode the CPU attends to"), "{plan:?}");
    run(&format!("{line} --host-heads 257")).fails(2, &["--host-heads must be 0..=256", "257"]);
    run(&format!("{line} --host-heads most")).fails(2, &["'most' is neither a number nor `auto`"]);
}

#[test]
fn kv_on_the_host_is_packed_where_someone_asks() {
    let line = "plan -m random:llama-3-8b -c 1M --device cuda --gpu-memory 24GiB --host-memory 1TiB --placement offload";
    let [plain, packed] = ["bf16", "bf16-packed"].map(|form| {
        let plan = run(&format!("{line} --json --kv-dtype {form}")).json();
        assert_eq!(plan["kv"]["format"], form);
        (plan["kv"]["ratio"].as_f64().unwrap(), plan["host"]["bytes"].as_f64().unwrap())
    });
    assert_eq!(plain.0, 1.0);
    assert!(packed.0 > 1.3 && plain.1 / packed.1 > 1.27, "{packed:?}");
    let plan = run(&format!("{line} --kv-dtype bf16-packed"));
    assert!(plan.stdout.contains("KV bf16-packed (1.31 × smaller)"), "{plan:?}");
    let plan = run(&format!("{line} --kv-dtype int4"));
    assert!(plan.stdout.contains("KV int4 (3.56 × smaller, lossy"), "{plan:?}");
    run(&format!("{line} --kv-dtype int3")).fails(2, &["int3", "bf16-packed"]);
}

#[test]
fn auto_says_that_the_cpu_is_used() {
    let plan = run("plan -m random:tiny -c 1k");
    assert_eq!(plan.stderr.lines().count(), 1, "{plan:?}");
    assert!(plan.stderr.starts_with("the CPU is used: "), "{plan:?}");
}

#[test]
fn a_context_beyond_the_models_is_warned_about_and_planned() {
    let plan = run("plan -m random:tiny -c 16M --device cuda --host-memory 1TiB --json");
    assert!(plan.stderr.starts_with("warning: tiny was made for 8388608 tokens"), "{plan:?}");
    plan.json();
}
