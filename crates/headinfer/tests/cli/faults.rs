//! What a user is told when CUDA is missing, broken, full, or fails at work. The libraries are a stand-in, compiled
//! here, that fails where it is told to: no GPU is needed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{Ran, folder, headinfer, ids};

const STUB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../headinfer-cuda/tests/stub/cuda.c");
const LIBRARIES: [&str; 3] = ["cuda", "nvrtc", "cublasLt"];
/// Six chunks of 16 tokens with logits of the last one alone, K and V on the host.
const LOGITS: &str = "logits -m random:tiny --last 1 --chunk 16 --placement offload --device cuda";
const RUN: &str = "run -m builtin:retrieval -p abc -n 2";

/// Compiles the stand-in into `dir`, under the names of all three libraries, without the function `without`.
fn compile(dir: &Path, without: &str) {
    let mut command = Command::new("cc");
    if !without.is_empty() {
        command.arg(format!("-D{without}=absent"));
    }
    let options = ["-shared", "-fPIC", "-O1", "-w", "-pthread", "-o", "stub.so", STUB];
    assert!(command.args(options).current_dir(dir).status().unwrap().success(), "cc compiles the stand-in");
    for name in LIBRARIES {
        std::os::unix::fs::symlink("stub.so", dir.join(format!("lib{name}.so"))).unwrap();
    }
}

/// The folder of the whole stand-in. `None`, said, where there is no C compiler.
fn stub() -> Option<&'static Path> {
    static DIR: LazyLock<Option<TempDir>> = LazyLock::new(|| {
        Command::new("cc").arg("--version").stdout(Stdio::null()).status().ok()?;
        let dir = folder();
        compile(dir.path(), "");
        Some(dir)
    });
    if DIR.is_none() {
        eprintln!("skipped: no C compiler");
    }
    DIR.as_ref().map(TempDir::path)
}

/// The program on the libraries in `dir`, which fail as `faults` says, with a cache of its own.
fn at(dir: &Path, faults: &str, cache: &TempDir) -> assert_cmd::Command {
    let mut command = headinfer();
    command.env("LD_LIBRARY_PATH", dir).env("STUB", faults).env("HEADINFER_CACHE", cache.path());
    // Should it ever hang, the test fails.
    command.timeout(std::time::Duration::from_secs(120));
    command
}

fn ran(dir: &Path, faults: &str, line: &str) -> Ran {
    Ran::of(at(dir, faults, &folder()).args(line.split_whitespace()))
}

/// [`LOGITS`] of 96 tokens, in chunks of another size where `more` says so.
fn logits(dir: &Path, faults: &str, more: &str) -> (Ran, PathBuf, TempDir) {
    let work = folder();
    let out = work.path().join("logits");
    let command = LOGITS.replace("--chunk 16", if more.contains("--chunk") { "" } else { "--chunk 16" });
    let line = format!("{command} --ids {} --out {} {more}", ids(&work, 96).display(), out.display());
    (ran(dir, faults, &line), out, work)
}

/// Every time is a millisecond on the stand-in, so that rates follow from bytes and FLOP alone.
#[test]
fn kernels_are_measured_beside_candidates_and_copies() {
    let Some(dir) = stub() else { return };
    let done = ran(dir, "", "bench kernels -m random:qwen3-0.6b --rows 100 --json");
    let report = done.json();
    let products = report["products"].as_array().unwrap();
    assert_eq!(products.len(), 4, "{report}");
    for product in products {
        let size = |name: &str| product[name].as_f64().unwrap();
        let tflops = 2.0 * size("rows") * size("out") * size("inner") / 1e9;
        assert!((size("tflops") / tflops - 1.0).abs() < 1e-6 && size("of_best") == 1.0, "{product}");
        // The stand-in gives as many as are asked for, the first of them the one that runs use.
        assert_eq!(
            (&product["candidates"], &product["best_candidate"]),
            (&64.into(), &0.into()),
            "{product}"
        );
    }
    let kernels = report["kernels"].as_array().unwrap();
    let names: Vec<_> = kernels.iter().map(|kernel| kernel["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["embed", "norm", "project", "swiglu", "bias"]);
    for kernel in kernels {
        let gb_s = kernel["bytes"].as_f64().unwrap() / 1e6;
        assert!((kernel["gb_s"].as_f64().unwrap() / gb_s - 1.0).abs() < 1e-6, "{kernel}");
        assert_eq!((&kernel["of_copy"], &kernel["used"]), (&1.0.into(), &(kernel["name"] != "bias").into()));
    }
    let text = ran(dir, "", "bench kernels -m random:tiny --rows 32").stdout;
    assert!(text.contains("100.0 % of") && text.contains("64 candidates"), "{text}");
    ran(dir, "cublasLtMatmul:15", "bench kernels -m random:tiny --rows 32").fails(1, &["cublasLtMatmul"]);
}

#[test]
fn the_stand_in_runs_when_nothing_fails() {
    let Some(dir) = stub() else { return };
    let (done, out, _work) = logits(dir, "", "");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(out.exists());
    let done = ran(dir, "", &format!("{RUN} --device auto"));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(!done.stderr.contains("the CPU is used"), "{done:?}");
}

#[test]
fn what_is_broken_before_the_start_is_named_and_auto_takes_the_cpu_aloud() {
    let Some(dir) = stub() else { return };
    for (faults, words) in [
        ("cuInit:100", &["CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"][..]),
        ("cuInit:803", &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "reboot"]),
        ("cuInit:34", &["CUDA_ERROR_STUB_LIBRARY", "stubs off LD_LIBRARY_PATH"]),
        ("cuInit:999", &["CUDA_ERROR_UNKNOWN", "dmesg"]),
        ("devices:0", &["shows 0 GPU(s)", "CUDA_VISIBLE_DEVICES"]),
        ("sm:75", &["Stub GPU", "7.5", "8.0 or later"]),
        ("driver:12020", &["CUDA 12.2", "NVRTC is of CUDA 13.0", "update the driver"]),
        ("driver:11040", &["CUDA 11.4", "update the driver"]),
        ("driver:12020 nvrtc:12080", &["CUDA 12.2", "cuBLASLt is of CUDA 13.0"]),
        ("cuDeviceGetCount:3", &["cuDeviceGetCount failed", "CUDA_ERROR_NOT_INITIALIZED"]),
        ("cuDevicePrimaryCtxRetain:46", &["CUDA_ERROR_DEVICE_UNAVAILABLE", "nvidia-smi"]),
        ("nvrtcVersion:9", &["nvrtcVersion failed", "NVRTC_ERROR_"]),
    ] {
        let auto = ran(dir, faults, &format!("{RUN} --device auto"));
        assert_eq!(auto.code, 0, "{faults}: {auto:?}");
        assert!(auto.stderr.lines().any(|line| line.starts_with("the CPU is used: ")), "{auto:?}");
        for word in words {
            assert!(auto.stderr.contains(word), "{faults}: no '{word}' in {auto:?}");
        }
        let words = [words, &["no CUDA device can be used: ", "hint: ", "give --device cpu"]].concat();
        ran(dir, faults, &format!("{RUN} --device cuda")).fails(1, &words);
    }
}

#[test]
fn a_library_that_is_no_library_is_named() {
    if stub().is_none() {
        return;
    }
    for (name, words) in [
        ("cuda", ["no NVIDIA driver here (", "libcuda.so"]),
        ("nvrtc", ["NVRTC cannot be loaded (", "pip install nvidia-cuda-nvrtc"]),
        ("cublasLt", ["cuBLASLt cannot be loaded (", "pip install nvidia-cublas"]),
    ] {
        let dir = folder();
        compile(dir.path(), "");
        std::fs::remove_file(dir.path().join(format!("lib{name}.so"))).unwrap();
        // Under each name that a real one might have on this machine, so that none is found behind them.
        for end in ["", ".1", ".11", ".12", ".13"] {
            std::fs::write(dir.path().join(format!("lib{name}.so{end}")), "not a library").unwrap();
        }
        ran(dir.path(), "", &format!("{RUN} --device cuda")).fails(1, &words);
    }
}

#[test]
fn a_library_that_lacks_a_function_is_named_before_the_function_is_called() {
    if stub().is_none() {
        return;
    }
    for (without, library) in [
        ("cuMemHostRegister_v2", "the NVIDIA driver"),
        ("cuGetErrorString", "the NVIDIA driver"),
        ("nvrtcGetCUBIN", "NVRTC"),
        ("cublasLtMatmulAlgoGetHeuristic", "cuBLASLt"),
    ] {
        let dir = folder();
        compile(dir.path(), without);
        let words = [library, "lacks the function", without, "update "];
        ran(dir.path(), "", &format!("{RUN} --device cuda")).fails(1, &words);
    }
}

#[test]
fn memory_that_is_gone_is_refused_with_need_have_and_flag() {
    let Some(dir) = stub() else { return };
    for (faults, words) in [
        // Another process takes it after the plan was made.
        ("taken:24275", &["does not fit the GPU", "are needed and", "are free", "--gpu-memory"][..]),
        ("cuMemAlloc_v2:2", &["does not fit the GPU", "--gpu-memory", "nvidia-smi"]),
        ("taken:24000 cuStreamCreate:2", &["does not fit the GPU", "276 MiB are free"]),
        ("cublasLtCreate:3", &["CUBLAS_STATUS_ALLOC_FAILED", "--gpu-memory"]),
        ("cuDevicePrimaryCtxRetain:2", &["CUDA_ERROR_OUT_OF_MEMORY", "nvidia-smi", "--device cpu"]),
        (
            "cuMemHostRegister_v2:2",
            &["pinned host memory", "refused", "CUDA_ERROR_OUT_OF_MEMORY", "--host-memory"],
        ),
    ] {
        let (refused, out, _work) = logits(dir, faults, "");
        refused.fails(3, words);
        assert!(!out.exists());
    }
    // What is gone before is planned around, or refused by the plan.
    let (refused, ..) = logits(dir, "total:400", "");
    refused.fails(3, &["device memory needs", "of 100 MiB"]);
}

/// The stand-in with a management library, which alone counts what the context takes.
fn managed() -> Option<TempDir> {
    stub()?;
    let dir = folder();
    compile(dir.path(), "");
    std::os::unix::fs::symlink("stub.so", dir.path().join("libnvidia-ml.so.1")).unwrap();
    Some(dir)
}

#[test]
fn the_device_peak_is_that_of_the_whole_process_and_as_planned() {
    let Some(dir) = managed() else { return };
    let line = "bench prefill -m random:tiny -c 512 --device cuda --json";
    for faults in ["", "pids:0"] {
        let report = ran(dir.path(), faults, line).json();
        let bytes = |name: &str| report[name].as_f64().unwrap();
        // 300 MiB of context and 8 of libraries, which the stand-in has taken.
        assert!(bytes("plan_device_bytes") > f64::from(308u32 << 20), "{report}");
        let ratio = bytes("device_peak_bytes") / bytes("plan_device_bytes");
        assert!((ratio - 1.0).abs() < 0.001, "{faults}: {ratio} {report}");
    }
    // The context's own memory can be planned with: all that is free fits, and no more.
    let plan = ran(dir.path(), "total:5000", "plan -m random:tiny -c 512 --device cuda --json").json();
    assert_eq!(plan["device"]["budget"], 5000u64 << 20);
}

#[test]
fn host_memory_that_is_not_there_is_refused_before_it_is_taken() {
    let Some(dir) = stub() else { return };
    let work = folder();
    let (ids, out) = (ids(&work, 96), work.path().join("logits"));
    let model = LOGITS.replace("random:tiny", "random:llama-3-8b").replace("--device cuda", "");
    // 512 TiB of keys and values.
    let line = format!("{model} --context 4096M --host-memory 2048TiB --gpu-memory 20GiB");
    for device in ["cpu", "cuda"] {
        let line = format!("{line} --device {device} --ids {} --out {}", ids.display(), out.display());
        let words = ["does not fit host memory", "it needs 512 TiB, ", "--host-memory", "--context"];
        ran(dir, "", &line).fails(3, &words);
    }
}

#[test]
fn a_cap_beyond_the_card_is_told() {
    let Some(dir) = stub() else { return };
    let (done, ..) = logits(dir, "", "--gpu-memory 100GiB");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("warning: --gpu-memory 100 GiB cannot be had: of its 24.0 GiB"), "{done:?}");
    let (done, ..) = logits(dir, "", "--gpu-memory 20GiB");
    assert!(!done.stderr.contains("warning"), "{done:?}");
    // A plan for another card is not held to this one.
    let line = "plan -m random:llama-3-8b -c 1k --host-memory 1TiB --device cuda --gpu-memory 100GiB --json";
    assert_eq!(ran(dir, "", line).json()["device"]["budget"], 100u64 << 30);
}

#[test]
fn kernels_that_cannot_be_made_are_an_error_with_a_reason() {
    let Some(dir) = stub() else { return };
    for (faults, words) in [
        (
            "nvrtcCompileProgram:5",
            &["NVRTC cannot compile", "sm_90a", "--gpu-architecture", "newer NVRTC"][..],
        ),
        ("nvrtcGetCUBINSize:7", &["nvrtcGetCUBINSize failed", "NVRTC_ERROR_"]),
        ("cuModuleLoadData:209", &["CUDA_ERROR_NO_BINARY_FOR_GPU", "update the driver"]),
        ("cuModuleGetFunction:500", &["no kernel"]),
    ] {
        let (failed, out, _work) = logits(dir, faults, "");
        failed.fails(1, &[words, &["hint: "]].concat());
        assert!(!out.exists());
    }
}

#[test]
fn a_device_that_fails_at_work_ends_the_run_with_a_report() {
    let Some(dir) = stub() else { return };
    // The step that calls cuEventSynchronize for the n-th time is the n-th after two; it waits for the one two before. The
    // first 90 launches fill weights and warm up.
    for (faults, words) in [
        (
            "cuEventSynchronize:700:3",
            &["illegal memory access", "at tokens 32 to 79", "done before: 32 tokens"][..],
        ),
        (
            "cuLaunchKernelEx:719:97",
            &["CUDA_ERROR_LAUNCH_FAILED", "seen at ", " on lane compute", "done before: "],
        ),
        ("cuMemcpyHtoDAsync_v2:214:20", &["CUDA_ERROR_ECC_UNCORRECTABLE", "nvidia-smi -q", "dmesg"]),
        ("cuMemcpyDtoHAsync_v2:999:3", &["CUDA_ERROR_UNKNOWN", "on lane out", "Evict"]),
        ("cuEventRecord:700:50", &["cuEventRecord failed", "at token"]),
        ("cublasLtMatmul:13:12", &["CUBLAS_STATUS_EXECUTION_FAILED", "run it again"]),
        ("cuStreamSynchronize:702:2", &["CUDA_ERROR_LAUNCH_TIMEOUT", "--chunk"]),
    ] {
        // Products of few rows are not cuBLASLt's.
        let more = if faults.starts_with("cublas") { "--chunk 32" } else { "" };
        let (failed, out, _work) = logits(dir, faults, more);
        failed.fails(1, &[words, &["the GPU failed"]].concat());
        assert!(!out.exists(), "{faults}");
    }
}

#[test]
fn what_was_printed_before_a_failure_stays() {
    let Some(dir) = stub() else { return };
    // All logits are 0 here: drawn at random, the tokens are words.
    let line = RUN.replace("-n 2", "-n 9") + " --device cuda --temp 1 --top-k 400 --top-p 1 --min-p 0 -s 1";
    let whole = ran(dir, "", &line);
    let failed = ran(dir, "cuStreamSynchronize:700:5", &line);
    assert_eq!((whole.code, failed.code), (0, 1), "{failed:?}");
    assert!(!failed.stdout.is_empty() && whole.stdout.starts_with(failed.stdout.trim_end()), "{failed:?}");
    assert!(failed.stderr.contains("the GPU failed at token "), "{failed:?}");
}

/// A child that runs.
struct Started {
    child: Child,
    /// The line of its stderr that was waited for.
    found: String,
    /// What it says after.
    rest: JoinHandle<Vec<String>>,
}

/// Starts the program and waits for a line of its stderr that contains `until`.
fn start(dir: &Path, faults: &str, cache: &TempDir, line: &str, until: &str) -> Started {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
    command.env_clear().env("LD_LIBRARY_PATH", dir).env("STUB", faults).env("HEADINFER_CACHE", cache.path());
    let mut child =
        command.args(line.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let found = lines.find(|line| line.contains(until)).expect("the line comes");
    // Read on, or what else is said would have nowhere to go.
    let rest = std::thread::spawn(move || lines.collect());
    Started { child, found, rest }
}

#[test]
fn a_device_that_never_answers_can_be_left() {
    let Some(dir) = stub() else { return };
    let line = format!("{RUN} --device cuda");
    let cache = folder();
    let Started { mut child, .. } = start(dir, "cuStreamSynchronize:-1:2", &cache, &line, "sleeps");
    // One signal asks, the next ends; two that come together are one.
    let status = loop {
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::yield_now();
    };
    assert_eq!(status.code(), Some(130));
}

fn send(address: &str, line: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_whose_device_failed_says_so_and_is_unhealthy() {
    let Some(dir) = stub() else { return };
    let line = "serve -m builtin:retrieval --device cuda -c 2k --port 0 --parallel 1";
    let cache = folder();
    let Started { mut child, found, rest } =
        start(dir, "cuMemcpyDtoHAsync_v2:700:4", &cache, line, "serving ");
    let address = found.rsplit("http://").next().unwrap();
    while !send(address, "GET /health", "").starts_with("HTTP/1.1 200") {
        std::thread::yield_now();
    }
    let body = r#"{"prompt": [5, 6, 7], "max_tokens": 64, "ignore_eos": true}"#;
    let answer = send(address, "POST /v1/completions", body);
    assert!(answer.starts_with("HTTP/1.1 5") && answer.contains("ILLEGAL_ADDRESS"), "{answer}");
    assert!(send(address, "GET /health", "").starts_with("HTTP/1.1 503"));
    assert!(send(address, "POST /v1/completions", body).starts_with("HTTP/1.1 503"));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let told = rest.join().unwrap().join("\n");
    assert!(told.contains("the engine failed") && told.contains("ILLEGAL_ADDRESS"), "{told}");
}

#[test]
fn a_server_asks_the_device_which_heads_move() {
    let Some(dir) = stub() else { return };
    let line = "serve -m builtin:retrieval --device cuda -c 2k --port 0 --parallel 1 --placement offload";
    // Where no event ever happens, the lanes are at the first heads of the oldest step for good.
    for (faults, moving) in [("", r#""moving":{}"#), ("cuEventQuery:600", r#""moving":{"in":[0,0,"#)] {
        let cache = folder();
        let Started { mut child, found, .. } = start(dir, faults, &cache, line, "serving ");
        let address = found.rsplit("http://").next().unwrap();
        while !send(address, "GET /health", "").starts_with("HTTP/1.1 200") {
            std::thread::yield_now();
        }
        assert!(send(address, "GET /cache", "").contains(r#""moving":{}"#), "nothing moves before a step");
        let body = r#"{"prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true}"#;
        let answer = send(address, "POST /v1/completions", body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let said = send(address, "GET /cache", "");
        assert!(said.contains(moving), "{said}");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_server_that_cannot_open_its_device_ends_with_the_code_of_the_reason() {
    let Some(dir) = stub() else { return };
    let line = "serve -m builtin:retrieval --device cuda -c 2k --port 0";
    let refused = ran(dir, "cuMemAlloc_v2:2", line);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("error: the plan does not fit the GPU"), "{refused:?}");
    assert!(refused.stderr.contains("hint: give --gpu-memory "), "{refused:?}");
}
