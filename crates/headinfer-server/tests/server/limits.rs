//! What is refused, how it is said, and that nothing else suffers.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{House, Setup, start, start_loading};
use crate::model::{CHUNK, text};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Status and the error object, which must have OpenAI's four fields.
async fn refusal(house: &House, path: &str, body: &Value) -> (u16, Value) {
    let reply = house.post(path, body).await;
    let error = reply.json["error"].clone();
    let fields: Vec<_> = error.as_object().expect("an error").keys().map(String::as_str).collect();
    assert_eq!(fields, ["message", "type", "param", "code"], "{}", reply.text);
    (reply.status.as_u16(), error)
}

#[tokio::test]
async fn wrong_values_are_refused_by_name() {
    let house = start(Setup::default()).await;
    let user = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (CHAT, json!({"messages": user, "temperature": 2.1}), "temperature"),
        (CHAT, json!({"messages": user, "temperature": "hot"}), "temperature"),
        (CHAT, json!({"messages": user, "top_p": -0.1}), "top_p"),
        (CHAT, json!({"messages": user, "min_p": 1.1}), "min_p"),
        (CHAT, json!({"messages": user, "top_k": -2}), "top_k"),
        (CHAT, json!({"messages": user, "top_k": 1e300}), "top_k"),
        (CHAT, json!({"messages": user, "n": 2}), "n"),
        (CHAT, json!({"messages": user, "seed": "s"}), "seed"),
        (CHAT, json!({"messages": user, "max_tokens": 0}), "max_tokens"),
        (CHAT, json!({"messages": user, "max_completion_tokens": -1}), "max_completion_tokens"),
        (CHAT, json!({"messages": user, "stop": [""]}), "stop"),
        (CHAT, json!({"messages": user, "stop": vec!["x"; 17]}), "stop"),
        (CHAT, json!({"messages": user, "stop": [1]}), "stop"),
        (CHAT, json!({"messages": user, "logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (CHAT, json!({"messages": user, "top_logprobs": 2}), "top_logprobs"),
        (CHAT, json!({"messages": user, "stream": "yes"}), "stream"),
        (CHAT, json!({"messages": user, "stream_options": {}}), "stream_options"),
        (CHAT, json!({"messages": user, "response_format": {"type": "xml"}}), "response_format.type"),
        (CHAT, json!({"messages": user, "functions": []}), "functions"),
        (CHAT, json!({"messages": user, "modalities": ["text", "audio"]}), "modalities"),
        (COMPLETIONS, json!({"prompt": "x", "guided_json": {}}), "guided_json"),
        (COMPLETIONS, json!({"prompt": "x", "truncate_prompt_tokens": 5}), "truncate_prompt_tokens"),
        (COMPLETIONS, json!({"prompt": "x", "skip_special_tokens": false}), "skip_special_tokens"),
        (COMPLETIONS, json!({"prompt": "x", "repeat_penalty": 1.3}), "repeat_penalty"),
        (CHAT, json!({"messages": user, "chat_template": "{{ messages }}"}), "chat_template"),
        (CHAT, json!({"messages": user, "add_generation_prompt": false}), "add_generation_prompt"),
        (CHAT, json!({"messages": user, "logit_bias": {"5": 1}}), "logit_bias"),
        (CHAT, json!({"messages": user, "frequency_penalty": 0.5}), "frequency_penalty"),
        (CHAT, json!({"messages": user, "tool_choice": "required"}), "tool_choice"),
        (CHAT, json!({"messages": user, "tools": {}}), "tools"),
        (CHAT, json!({"messages": []}), "messages"),
        (CHAT, json!({"messages": [{"content": "no role"}]}), "messages"),
        (CHAT, json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages"),
        (CHAT, json!({}), "messages"),
        (COMPLETIONS, json!({}), "prompt"),
        (COMPLETIONS, json!({"prompt": ""}), "prompt"),
        (COMPLETIONS, json!({"prompt": ["a", "b"]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [1, -1]}), "prompt"),
        (COMPLETIONS, json!({"prompt": [1, 104]}), "prompt"),
        (COMPLETIONS, json!({"prompt": "x", "echo": true}), "echo"),
        (COMPLETIONS, json!({"prompt": "x", "best_of": 3}), "best_of"),
        ("/detokenize", json!({"tokens": ["x"]}), "tokens"),
        ("/detokenize", json!({"tokens": [1, 104]}), "tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/tokenize", json!({"prompt": 1}), "prompt"),
    ];
    for (path, body, param) in &cases {
        let (status, error) = refusal(&house, path, body).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(*param)), "{body}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let (status, error) = refusal(&house, CHAT, &json!({"messages": user, "model": "gpt-9"})).await;
    assert_eq!((status, error["code"].as_str()), (404, Some("model_not_found")));
    // What no field is asked for, and nulls, are ignored.
    let ok = json!({"messages": user, "max_tokens": 1, "user": "me", "store": false, "temperature": null, "n": 1,
        "frequency_penalty": 0.0, "logit_bias": {}, "parallel_tool_calls": true, "min_tokens": 0,
        "skip_special_tokens": true, "stop": null,
        "response_format": {"type": "text"}});
    house.ask(CHAT, &ok).await;
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_before_work() {
    let house = start(Setup { context: 256, ..Setup::default() }).await;
    for (len, max_tokens) in [(256, json!(null)), (200, json!(57)), (1000, json!(1))] {
        let (status, error) =
            refusal(&house, COMPLETIONS, &json!({"prompt": text(1, len), "max_tokens": max_tokens})).await;
        assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));
    }
    assert_eq!(house.gate.steps(), Vec::<usize>::new());
    let full = json!({"prompt": text(1, 200), "max_tokens": 56, "ignore_eos": true});
    let answer = house.ask(COMPLETIONS, &full).await;
    assert_eq!(answer["usage"]["total_tokens"], 256);
}

#[tokio::test]
async fn malformed_requests_are_answered_with_4xx() {
    let house = start(Setup::default()).await;
    let deep = "[".repeat(100_000);
    let bodies: [&[u8]; 14] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"x\", \"max_tokens\": 1e999}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{\"prompt\": \"x\", \"temperature\": NaN}",
        b"{\"prompt\": \"x\", \"temperature\": -Infinity}",
        b"{\"prompt\": \"x\", \"prompt\": \"y\"}",
        b"{\"messages\": [{\"role\": \"user\", \"role\": \"system\", \"content\": \"x\"}], \"tokens\": []}",
        b"\xef\xbb\xbf{\"prompt\": \"x\"}",
        b"{\"prompt\": \"x\"} {}",
        deep.as_bytes(),
    ];
    for body in bodies {
        for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
            let reply = house.raw(Method::POST, path, body.to_vec()).await;
            assert_eq!(reply.status, 400, "{path} {:?}", &body[..body.len().min(40)]);
            assert!(reply.json["error"]["message"].is_string());
        }
    }
    for (method, path) in [
        (Method::GET, CHAT),
        (Method::PUT, COMPLETIONS),
        (Method::OPTIONS, COMPLETIONS),
        (Method::DELETE, "/tokenize"),
        (Method::POST, "/health"),
        (Method::PATCH, "/v1/sessions/x"),
    ] {
        let reply = house.raw(method, path, Vec::new()).await;
        assert_eq!(reply.status, 405, "{path}");
        assert!(reply.headers.contains_key("allow") && reply.json["error"]["message"].is_string());
    }
    assert_eq!(house.get("/etc/passwd").await.status, 404);
    for path in ["/v1/models/%ff", "/v1/sessions/%ff"] {
        let reply = house.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["error"]["param"]),
            (400, &Value::Null),
            "{}",
            reply.text
        );
    }
    assert_eq!(house.get("/v1/models/..%2f..%2fetc%2fpasswd").await.status, 404);
    assert!(house.get("/v1/models/x").await.json["error"]["param"] == "model");
}

#[tokio::test]
async fn bodies_that_say_they_are_no_json_are_refused() {
    let house = start(Setup::default()).await;
    let body = json!({"prompt": "ab"});
    for (name, value, status) in [
        ("content-type", "application/json", 200),
        ("content-type", "Application/JSON; charset=utf-8", 200),
        // Curl says this of all that it is given with -d.
        ("content-type", "application/x-www-form-urlencoded", 200),
        ("content-encoding", "identity", 200),
        ("content-type", "text/plain", 415),
        ("content-type", "multipart/form-data; boundary=application/json", 415),
        ("content-type", "", 415),
        ("content-encoding", "gzip", 415),
    ] {
        let reply = house.with(name, value).post("/tokenize", &body).await;
        assert_eq!(reply.status, status, "{name}: {value}");
        assert_eq!(reply.json["error"]["message"].is_string(), status == 415);
    }
}

#[tokio::test]
async fn who_sends_a_byte_at_a_time_is_left() {
    let mut setup = Setup::default();
    (setup.config.limits.head_time, setup.config.limits.body_time) =
        (Duration::from_millis(100), Duration::from_millis(100));
    let house = start(setup).await;
    let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n";
    for (at_once, answer) in [("GET /health HTTP/1.1\r\nx: ", ""), (head, "HTTP/1.1 408")] {
        let stream = TcpStream::connect(house.address).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        writer.write_all(at_once.as_bytes()).await.unwrap();
        let drip = async {
            while writer.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut said = Vec::new();
        tokio::select! {
            // The connection may be reset with bytes still on their way.
            _ = reader.read_to_end(&mut said) => {}
            () = drip => {}
        }
        assert!(String::from_utf8_lossy(&said).starts_with(answer), "{}", String::from_utf8_lossy(&said));
    }
    house.until("they are left", async || house.metric("connections").await == 1.0).await;
}

#[tokio::test]
async fn bodies_and_heads_have_limits() {
    let mut setup = Setup::default();
    setup.config.limits.body_bytes = 1000;
    setup.config.limits.head_bytes = 8192;
    setup.config.limits.head_time = Duration::from_millis(50);
    setup.config.limits.body_time = Duration::from_millis(50);
    let house = start(setup).await;
    let (status, _) = refusal(&house, COMPLETIONS, &json!({"prompt": "x".repeat(2000)})).await;
    assert_eq!(status, 413);
    let long = house.with("x-long", &"y".repeat(20_000));
    assert_eq!(long.get("/health").await.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    // A head that never ends, a body that never comes, and one that is none.
    for (sent, answer) in [
        (
            "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 400",
        ),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\nx: ", ""),
        ("POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{", "HTTP/1.1 408"),
    ] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with(answer), "{said}");
    }
}

#[tokio::test]
async fn who_is_refused_while_sending_hears_why() {
    let mut setup = Setup::default();
    (setup.config.limits.body_bytes, setup.config.api_key) = (100_000, Some("k".into()));
    let house = start(setup).await;
    // Far more than the system holds for a server that does not read.
    let body = "x".repeat(30 << 20);
    let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let whole = format!("content-length: {}\r\n\r\n{body}", body.len());
    let key = "authorization: Bearer k\r\n";
    for (path, headers, sent, status) in [
        ("/tokenize", key, &whole, "413"),
        ("/tokenize", key, &chunked, "413"),
        ("/tokenize", "authorization: Bearer k\r\ncontent-type: text/plain\r\n", &whole, "415"),
        ("/v1/completions", "", &whole, "401"),
        ("/nowhere", key, &chunked, "404"),
        ("/health", "", &whole, "405"),
    ] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(sent.as_bytes()).await.expect("all of it is taken");
        let mut said = String::new();
        stream.read_to_string(&mut said).await.expect("an answer");
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {said}");
    }
    // Who asks before sending is told not to.
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let head = format!("POST /tokenize HTTP/1.1\r\nhost: localhost\r\n{key}expect: 100-continue\r\n");
    stream.write_all(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.expect("an answer");
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
}

#[tokio::test]
async fn large_bodies_wait_for_room_and_small_ones_do_not() {
    let mut setup = Setup::default();
    setup.config.limits.body_bytes = 100_000;
    setup.config.limits.bodies_bytes = 100_000;
    setup.config.limits.body_time = Duration::from_millis(200);
    let house = start(setup).await;
    // Two that declare much and send nothing: the first holds the room until its time is over.
    let head = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 90000\r\n\r\n";
    let mut first = TcpStream::connect(house.address).await.unwrap();
    first.write_all(head.as_bytes()).await.unwrap();
    let large = json!({"prompt": "x".repeat(90_000)});
    let light = json!({"prompt": "x"});
    let (second, small) = tokio::join!(house.post("/tokenize", &large), house.ask("/tokenize", &light));
    assert_eq!(small["count"], 1);
    assert!([200, 429].contains(&second.status.as_u16()), "{}", second.text);
    let mut said = String::new();
    first.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert_eq!(house.ask("/tokenize", &large).await["count"], 90_000);
}

#[tokio::test]
async fn a_full_queue_turns_requests_away_and_says_when_to_come_again() {
    let house = start(Setup { slots: 1, queue: 2, ..Setup::default() }).await;
    house.gate.close();
    let body = |seed| json!({"prompt": text(seed, 10), "max_tokens": 2, "stream": true, "ignore_eos": true});
    let running = house.stream(COMPLETIONS, &body(0)).await;
    house.until("one runs", async || !house.gate.steps().is_empty()).await;
    let waiting = [house.stream(COMPLETIONS, &body(1)).await, house.stream(COMPLETIONS, &body(2)).await];
    let turned_away = house.post(COMPLETIONS, &body(3)).await;
    assert_eq!(turned_away.status, 429);
    assert_eq!(turned_away.headers["retry-after"], "1");
    assert_eq!(turned_away.json["error"]["type"], "rate_limit_error");
    assert_eq!(house.metric("requests_rejected_total").await, 1.0);
    // Who waits and leaves makes room at once, though the engine is stalled.
    drop(waiting);
    house.until("the queue is empty", async || house.metric("num_requests_waiting").await == 0.0).await;
    let last = house.stream(COMPLETIONS, &body(4)).await;
    house.gate.open();
    assert!(!running.all().await.is_empty());
    assert!(!last.all().await.is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_work_within_a_step() {
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    let aborted = async || {
        house.labelled("request_success_total{model_name=\"tiny\",finished_reason=\"abort\"} ").await
    };
    // While it prefills, streamed and whole; while it decodes.
    for (round, stream) in [(0, true), (1, false)] {
        house.gate.allow(2);
        let begun = house.gate.steps().len();
        let body = json!({"prompt": text(round, 20 * CHUNK), "max_tokens": 5, "stream": stream});
        let client = (*house).clone();
        let request = tokio::spawn(async move {
            // Whole or not: headers or nothing come, and then the client is gone.
            client.post(COMPLETIONS, &body).await
        });
        house.until("two chunks are done", async || house.gate.steps().len() == begun + 3).await;
        request.abort();
        house.until("the server knows", async || house.metric("connections").await == 1.0).await;
        house.gate.open();
        house.until("it is cancelled", async || aborted().await == (round + 1) as f64).await;
        assert_eq!(house.gate.steps().len(), begun + 3);
    }
    let body = json!({"prompt": text(9, 5), "max_tokens": 900, "stream": true, "ignore_eos": true});
    house.gate.allow(3);
    let mut events = house.stream(COMPLETIONS, &body).await;
    events.until(|c| c["choices"][0]["text"] != "").await;
    drop(events);
    house.until("the server knows", async || house.metric("connections").await == 1.0).await;
    house.gate.open();
    house.until("it is cancelled", async || aborted().await == 3.0).await;
    assert!(house.metric("generation_tokens_total").await < 6.0);
}

#[tokio::test]
async fn health_tells_loading_ready_and_failed() {
    let house = start_loading(Setup { slots: 1, ..Setup::default() }).await;
    let loading = house.get("/health").await;
    assert_eq!((loading.status.as_u16(), &loading.json["status"]), (503, &json!("loading")));
    assert_eq!(house.post(COMPLETIONS, &json!({"prompt": "x"})).await.status, 503);
    house.gate.open();
    house.until("it is ready", async || house.get("/health").await.status == 200).await;
    house.gate.fail();
    let reply = house.post(COMPLETIONS, &json!({"prompt": "x"})).await;
    assert_eq!(reply.status, 500);
    assert!(reply.json["error"]["message"].as_str().unwrap().contains("fell off the bus"));
    assert_eq!(house.get("/health").await.status, 503);
    let after = house.post(COMPLETIONS, &json!({"prompt": "x"})).await;
    assert_eq!((after.status.as_u16(), &after.json["error"]["type"]), (503, &json!("server_error")));
}

#[tokio::test]
async fn a_shutdown_lets_running_answers_finish_and_then_ends() {
    let mut setup = Setup::default();
    setup.config.drain = Duration::from_secs(600);
    let mut house = start(setup).await;
    house.gate.allow(1);
    let body = json!({"prompt": text(1, 2 * CHUNK), "max_tokens": 3, "stream": true, "ignore_eos": true});
    let events = house.stream(COMPLETIONS, &body).await;
    house.until("it works", async || !house.gate.steps().is_empty()).await;
    house.shutdown.request();
    house.gate.open();
    assert_eq!(events.all().await.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(house.task.take().unwrap().await.unwrap().is_ok());
    assert!(TcpStream::connect(house.address).await.is_err());
}

#[tokio::test]
async fn a_shutdown_cuts_off_what_outlasts_the_drain() {
    let mut house = start(Setup::default()).await;
    house.gate.allow(1);
    let body = json!({"prompt": text(1, 4 * CHUNK), "max_tokens": 3, "stream": true});
    let mut events = house.stream(COMPLETIONS, &body).await;
    house.until("it works", async || house.gate.steps().len() == 2).await;
    house.shutdown.request();
    tokio::time::sleep(Duration::from_millis(150)).await;
    house.gate.open();
    let told = events.until(|c| !c["error"].is_null()).await;
    assert_eq!(told["error"]["message"], "the server is shutting down");
    assert!(house.task.take().unwrap().await.unwrap().is_ok());
}
