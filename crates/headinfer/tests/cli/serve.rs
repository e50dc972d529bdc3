//! `headinfer serve`: from the command line to an answer, and to an end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::run;

const LINE: &str = "serve -m builtin:retrieval --device cpu --context 2k --port 0 --parallel 2 --gpu-memory 64MiB \
    --host-memory 64MiB";

/// A server, and where it listens; ended with the test.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headinfer"));
        command.env_clear().args(LINE.split_whitespace()).args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.starts_with("serving ")).expect("it serves");
        let address = line.rsplit("http://").next().unwrap().to_owned();
        // Read on, or the server's remarks would have nowhere to go.
        std::thread::spawn(move || lines.count());
        let served = Self { child, address };
        while !served.send("GET /health HTTP/1.1", "", "").starts_with("HTTP/1.1 200") {
            std::thread::yield_now();
        }
        served
    }

    /// The whole answer to one request.
    fn send(&self, line: &str, header: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (address, length) = (&self.address, body.len());
        let head = format!(
            "{line}\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n{header}\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_served_model_answers_and_ends_at_a_signal() {
    let mut served = Served::start(&["--model-id", "r"]);
    let body = r#"{"model": "r", "prompt": [5, 6, 7], "max_tokens": 3, "ignore_eos": true}"#;
    let answer = served.send("POST /v1/completions HTTP/1.1", "", body);
    let json: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(json["usage"]["total_tokens"], 6, "{answer}");
    kill_process(Pid::from_child(&served.child), Signal::TERM).unwrap();
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
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
