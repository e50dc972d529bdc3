//! Bodies and heads that are no requests: each is answered with a 4xx, and the server lives.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::{House, Setup, start};

const CHAT: &str = "/v1/chat/completions";

/// What a request of any kind may hold.
pub(crate) fn full() -> Value {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "tokens": [1, 2],
        "max_tokens": 2, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "n": 1,
        "stop": ["x"], "logprobs": null, "stream": false, "repetition_penalty": 1.1, "tools": [tool],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer", "maximum": 9}}}})
}

pub(crate) async fn survives(house: &House) {
    assert_eq!(house.get("/health").await.status, 200);
    let ok = json!({"prompt": "still here", "max_tokens": 1});
    house.ask("/v1/completions", &ok).await;
}

/// Draw `index` of a fixed sequence (splitmix64).
pub(crate) fn draw(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[tokio::test]
async fn requests_sent_ahead_are_answered_in_their_order() {
    let house = start(Setup::default()).await;
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let sent = [
        post("/tokenize", "{\"prompt\": \"ab\"}"),
        post("/tokenize", "{\"prompt\": "),
        post("/v1/completions", "{\"prompt\": \"ab\", \"max_tokens\": 1, \"stream\": true}"),
        "DELETE /health HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".to_owned(),
    ];
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(sent.concat().as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    let statuses: Vec<&str> = said.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "400", "200", "405", "200"], "{said}");
    assert!(said.contains("data: [DONE]"));
}

#[tokio::test]
async fn huge_values_of_every_field_are_refused_or_bounded() {
    let house = start(Setup { context: 256, ..Setup::default() }).await;
    let fields: Vec<String> = full().as_object().unwrap().keys().cloned().collect();
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let many = json!(vec![json!({"role": "user", "content": "x"}); 2000]);
    for field in &fields {
        for value in
            [json!(1e308), json!(-1e308), json!(u64::MAX), json!(i64::MIN), nested.clone(), many.clone()]
        {
            let mut body = full();
            body[field] = value;
            for path in [CHAT, "/v1/completions", "/tokenize", "/detokenize"] {
                let reply = house.post(path, &body).await;
                assert!(
                    reply.status == 200 || reply.status.is_client_error(),
                    "{path} {field}: {} {}",
                    reply.status,
                    reply.text
                );
            }
        }
    }
    survives(&house).await;
}

#[tokio::test]
async fn heads_that_are_none_are_answered_as_all_errors_are() {
    let house = start(Setup::default()).await;
    let headers: String = (0..500).map(|i| format!("x-{i}: y\r\n")).collect();
    let line = "a".repeat(200_000);
    for head in [
        "nonsense\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "GET /health HTTP/1.1\r\nbad header\r\n\r\n".to_owned(),
        "POST /tokenize HTTP/1.1\r\ncontent-length: -1\r\n\r\n".to_owned(),
        "POST /tokenize HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n".to_owned(),
        "POST /tokenize HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(),
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"),
        format!("GET /{line} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {line}\r\n\r\n"),
    ] {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        // The server may answer, and end the connection, before all is sent.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        let (answer, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{said:?} for {head:.60}"));
        assert!(answer.starts_with("HTTP/1.1 4"), "{said} for {head:.60}");
        assert!(answer.contains("content-type: application/json"), "{said} for {head:.60}");
        assert!(answer.contains(&format!("content-length: {}", body.len())), "{said} for {head:.60}");
        let error = &serde_json::from_str::<Value>(body).unwrap()["error"];
        assert_eq!(error["type"], "invalid_request_error", "{said}");
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    survives(&house).await;
}
