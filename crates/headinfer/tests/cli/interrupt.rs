//! Ctrl-C.

use std::process::{Command, Stdio};

use headinfer_core::model::retrieval::{Retrieval, retrieval_spec};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{folder, ids, names};

#[test]
fn ctrl_c_in_a_long_prefill_ends_with_130_and_leaves_nothing() {
    let dir = folder();
    let (ids, out) = (ids(&dir, 200_000), dir.path().join("out"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
    command.args(["logits", "-m", "random:tiny", "--device", "cpu", "--chunk", "64", "--log", "info"]);
    command.arg("--ids").arg(&ids).arg("--out").arg(&out);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    // The output's temporary file shows that the work has begun.
    while names(dir.path()).len() < 2 {
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let code = child.wait().unwrap().code();
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(code, Some(130), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(names(dir.path()), ["ids-200000.json"]);
}

#[test]
fn ctrl_c_in_a_prefill_keeps_what_was_finished() {
    let dir = folder();
    let cache = dir.path().join("sessions");
    let filler = Retrieval::of(&retrieval_spec(None).unwrap()).unwrap();
    let words: Vec<_> = (0..60_000).map(|n| filler.word(filler.fillers().start + n % 50).unwrap()).collect();
    let prompt = dir.path().join("prompt");
    std::fs::write(&prompt, words.join(" ")).unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
        command.args(["run", "-m", "builtin:retrieval", "--device", "cpu", "-n", "1", "-f"]).arg(&prompt);
        command.arg("--cache-dir").arg(&cache).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
    };
    let mut stored = 0;
    for _ in 0..2 {
        let mut child = run();
        let files =
            || if cache.exists() { names(&cache).iter().filter(|n| n.ends_with(".kv")).count() } else { 0 };
        while files() < stored + 2 {
            assert!(child.try_wait().unwrap().is_none(), "the prefill ended too early to say anything");
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(stderr.contains(&format!("restored {} of", stored * 512)), "{stderr}");
        stored = files();
        assert!(stderr.contains(&format!("kept {} tokens", stored * 512)), "{stderr}");
    }
}
