//! Ctrl-C.

use std::process::{Command, Stdio};

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
