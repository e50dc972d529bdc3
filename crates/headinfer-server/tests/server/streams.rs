//! Answers in pieces: the same as whole ones, and signs of life while there is nothing to say.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::house::{Setup, start};
use crate::model::{CHUNK, text};

fn joined(chunks: &[Value], text: impl Fn(&Value) -> &Value) -> String {
    chunks.iter().filter_map(|chunk| text(chunk).as_str()).collect()
}

#[tokio::test]
async fn a_streamed_completion_equals_the_whole() {
    let house = start(Setup::default()).await;
    // Hot enough for the bytes of é to come apart from each other.
    for seed in 0..4 {
        let mut body = json!({"prompt": text(seed, 60), "max_tokens": 60, "temperature": 2, "seed": seed,
            "logprobs": 2, "stop": ["qz", "\u{e9}"]});
        let whole = house.ask("/v1/completions", &body).await;
        body["stream"] = json!(true);
        let chunks = house.stream("/v1/completions", &body).await.all().await;
        let choice = |chunk: &'_ Value| chunk["choices"][0].clone();
        assert_eq!(whole["choices"][0]["text"], joined(&chunks, |c| &c["choices"][0]["text"]).as_str());
        assert_eq!(choice(&whole)["finish_reason"], choice(chunks.last().unwrap())["finish_reason"]);
        for part in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let streamed: Vec<Value> = chunks
                .iter()
                .flat_map(|c| c["choices"][0]["logprobs"][part].as_array().cloned().unwrap_or_default())
                .collect();
            assert_eq!(whole["choices"][0]["logprobs"][part], json!(streamed), "{part}");
        }
        assert!(chunks.iter().all(|c| c["id"] == chunks[0]["id"] && c["object"] == "text_completion"));
    }
}

#[tokio::test]
async fn a_streamed_chat_begins_with_the_role_and_ends_with_the_usage() {
    let house = start(Setup::default()).await;
    let mut body =
        json!({"messages": [{"role": "user", "content": text(5, 40)}], "max_tokens": 20, "seed": 1});
    let whole = house.ask("/v1/chat/completions", &body).await;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let chunks = house.stream("/v1/chat/completions", &body).await.all().await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk"));
    let content = joined(&chunks, |c| &c["choices"][0]["delta"]["content"]);
    assert_eq!(whole["choices"][0]["message"]["content"], content.as_str());
    let [.., end, usage] = chunks.as_slice() else { panic!("{chunks:?}") };
    assert_eq!(end["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!((&usage["choices"], &end["usage"]), (&json!([]), &Value::Null));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
}

#[tokio::test]
async fn progress_counts_the_prompt_chunk_by_chunk() {
    let house = start(Setup::default()).await;
    let body =
        json!({"prompt": text(6, 3 * CHUNK + 5), "max_tokens": 1, "stream": true, "return_progress": true});
    let processed = |chunks: Vec<Value>| -> Vec<u64> {
        let progress = chunks.iter().map(|c| &c["prompt_progress"]).filter(|p| !p.is_null());
        progress
            .map(|p| {
                assert_eq!(p["total"], 3 * CHUNK + 5);
                assert!(p["time_ms"].is_u64() && p["cache"].as_u64() <= p["processed"].as_u64());
                p["processed"].as_u64().unwrap()
            })
            .collect()
    };
    let first = house.stream("/v1/completions", &body).await.all().await;
    assert_eq!(processed(first), [0, 32, 64, 96, 101]);
    let second = house.stream("/v1/completions", &body).await.all().await;
    assert_eq!(processed(second), [96, 101]);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_left() {
    let mut setup = Setup::default();
    setup.config.limits.write_time = Duration::from_millis(100);
    let house = start(setup).await;
    // Far more is said than the system holds for a client with a small window.
    const TOKENS: usize = 6_000_000;
    let tokens = format!("{{\"tokens\": [93{}]}}", ", 93".repeat(TOKENS - 1));
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(house.address).await.unwrap();
    let head =
        format!("POST /detokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", tokens.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(tokens.as_bytes()).await.unwrap();
    house.until("it is left", async || house.metric("connections").await == 1.0).await;
    let mut said = Vec::new();
    let read = stream.read_to_end(&mut said).await;
    assert!(read.is_err() || said.len() < TOKENS, "{read:?}");
}
