//! `headinfer serve`: from the command line to an answer, and to an end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{folder, names, run};

const LINE: &str = "serve -m builtin:retrieval --device cpu --context 4k --port 0 --gpu-memory 64MiB \
    --host-memory 64MiB";

/// A server, and where it listens; ended with the test.
pub(crate) struct Served {
    pub(crate) child: Child,
    address: String,
    said: Arc<Mutex<Vec<String>>>,
    listens: Option<JoinHandle<()>>,
}

impl Served {
    fn start(more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
        Self::of(command.args(LINE.split_whitespace()).args(["--parallel", "2"]).args(more))
    }

    /// With one slot, and a store at `dir`.
    pub(crate) fn kept(dir: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
        Self::of(command.args(LINE.split_whitespace()).args(["--parallel", "1", "--cache-dir"]).arg(dir))
    }

    /// With one slot, and nothing kept.
    pub(crate) fn plain() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
        Self::of(command.args(LINE.split_whitespace()).args(["--parallel", "1"]))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.env_clear().stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with("serving ")).expect("it serves");
        let address = line.rsplit("http://").next().unwrap().to_owned();
        let said = Arc::new(Mutex::new(Vec::new()));
        let hears = said.clone();
        // Read on, or the server's remarks would have nowhere to go.
        let listens = std::thread::spawn(move || lines.for_each(|line| hears.lock().unwrap().push(line)));
        let served = Self { child, address, said, listens: Some(listens) };
        while !served.send("GET /health HTTP/1.1", "", "").starts_with("HTTP/1.1 200") {
            std::thread::yield_now();
        }
        served
    }

    /// The whole answer to one request.
    fn send(&self, line: &str, header: &str, body: &str) -> String {
        let mut answer = String::new();
        self.ask(line, header, body).read_to_string(&mut answer).unwrap();
        answer
    }

    /// One request, whose answer is still to be read.
    pub(crate) fn ask(&self, line: &str, header: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (address, length) = (&self.address, body.len());
        let head = format!(
            "{line}\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{header}\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    }

    /// The JSON that answers `body`.
    pub(crate) fn complete(&self, body: &Value) -> Value {
        let answer = self.send("POST /v1/completions HTTP/1.1", "", &body.to_string());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    /// A value of /metrics that has no labels but the model.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.send("GET /metrics HTTP/1.1", "", "");
        let start = format!("headinfer:{name}{{model_name=\"builtin:retrieval\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
    }

    /// Ends it by a signal; its exit code, and the lines it said about the store.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let code = self.child.wait().unwrap().code();
        self.listens.take().unwrap().join().unwrap();
        let said = self.said.lock().unwrap().clone();
        (code, said.into_iter().filter(|line| line.contains("session store")).collect())
    }
}

/// `tokens` ids that no other `seed` begins with, and a short answer with probabilities.
pub(crate) fn question(seed: usize, tokens: usize) -> Value {
    let ids: Vec<usize> = (0..tokens).map(|i| (i * i + 37 * i + seed * (i + 1) + seed) % 500 + 3).collect();
    json!({"model": "builtin:retrieval", "prompt": ids, "max_tokens": 12, "temperature": 0, "logprobs": 3,
        "ignore_eos": true})
}

/// What must be the same however it came to be.
pub(crate) fn essence(answer: &Value) -> (Value, Value) {
    let choice = &answer["choices"][0];
    (choice["text"].clone(), choice["logprobs"].clone())
}

pub(crate) fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_served_model_answers_and_ends_at_a_signal() {
    let served = Served::start(&["--model-id", "r"]);
    let body = r#"{"model": "r", "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true}"#;
    let answer = served.send("POST /v1/completions HTTP/1.1", "", body);
    let json: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(json["usage"]["total_tokens"], 6, "{answer}");
    assert_eq!(served.end().0, Some(0));
}

#[test]
fn a_prefill_is_found_again_after_a_restart() {
    let dir = folder();
    let place = dir.path().join("cache");
    let body = question(1, 2100);
    let served = Served::kept(&place);
    let first = served.complete(&body);
    assert_eq!((cached(&first), served.end()), (0, (Some(0), Vec::new())));
    // It had all on the disk before it ended.
    assert_eq!(names(&place).iter().filter(|name| name.ends_with(".kv")).count(), 2100 / 512);
    let served = Served::kept(&place);
    let again = served.complete(&body);
    assert_eq!((cached(&again), essence(&again)), (2048, essence(&first)));
    assert_eq!(served.metric("store_restored_tokens_total"), 2048.0);
    assert_eq!(served.end(), (Some(0), Vec::new()));
}

/// Asks three questions of a server whose store cannot be written, and hears one warning.
fn serves_without(served: Served) {
    let plain = Served::plain();
    for seed in 1..4 {
        let body = question(seed, 1100);
        assert_eq!(essence(&served.complete(&body)), essence(&plain.complete(&body)));
    }
    assert_eq!(served.metric("store_warnings_total"), 1.0);
    assert!(served.metric("store_refused_writes_total") >= 2.0);
    let (code, said) = served.end();
    assert_eq!((code, said.len()), (Some(0), 1), "{said:?}");
}

#[test]
fn a_disk_that_is_full_is_served_without() {
    let dir = folder();
    // No file may pass 64 blocks, which the system tells as a full disk would.
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", limited, env!("CARGO_BIN_EXE_headinfer")]).args(LINE.split_whitespace());
    command.args(["--parallel", "1", "--cache-dir"]).arg(dir.path().join("cache"));
    serves_without(Served::of(&mut command));
    assert_eq!(names(&dir.path().join("cache")), ["lock"]);
}

#[test]
fn a_disk_that_cannot_be_written_is_served_without() {
    let dir = folder();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    // The permissions of a folder do not hold root, those of the kernel's do.
    let place =
        if std::fs::write(dir.path().join("x"), "").is_ok() { Path::new("/sys/kernel") } else { dir.path() };
    serves_without(Served::kept(place));
}

#[test]
fn a_store_that_cannot_be_used_is_refused_before_anything_is_served() {
    let dir = folder();
    let line = format!("{LINE} --cache-dir {}", dir.path().display());
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    run(&line).fails(1, &["no other may write to it", "chmod 700"]);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let small = run(&format!("{line} --cache-size 1MiB"));
    assert!(small.code == 2 && small.stderr.contains("hint: give a larger --cache-size"), "{small:?}");
}

#[test]
fn a_key_given_is_asked_for() {
    let served = Served::start(&["--api-key", "k"]);
    assert!(served.send("GET /v1/models HTTP/1.1", "", "").starts_with("HTTP/1.1 401"));
    let with = served.send("GET /v1/models HTTP/1.1", "authorization: Bearer k\r\n", "");
    assert!(with.starts_with("HTTP/1.1 200") && with.contains("builtin:retrieval"), "{with}");
}

#[test]
fn what_is_unsafe_or_does_not_fit_is_refused() {
    let line = "serve -m builtin:retrieval --device cpu";
    run(&format!("{line} --host 0.0.0.0")).fails(2, &["--api-key", "--insecure"]);
    run(&format!("{line} --host example.org")).fails(2, &["not an IP address"]);
    run(&format!("{line} --context 1M --gpu-memory 16MiB --host-memory 1MiB"))
        .fails(3, &["--parallel 2", "--context"]);
    run("serve -m random:tiny --device cpu").fails(4, &["has no tokenizer"]);
}
