//! An engine that stands still: clients hear signs of life all the same.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::client::{Events, Said};
use crate::house::{House, Setup, start};
use crate::model::text;

/// Those of a minute at the interval a server has by default.
const PINGS: usize = 12;

/// A house whose only slot is stalled within its first chunk, and three streams: what is at work, a chat that waits for
/// a slot, and a work with a name.
async fn stalled(ping: Duration) -> (House, [Events; 3]) {
    let mut setup = Setup { slots: 1, ..Setup::default() };
    setup.config.ping = ping;
    let house = start(setup).await;
    house.gate.close();
    let body = json!({"prompt": text(7, 50), "max_tokens": 2, "stream": true, "ignore_eos": true});
    let chat = json!({"messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 2, "stream": true});
    // Headers are there although the engine has not finished a single chunk.
    let first = house.stream("/v1/completions", &body).await;
    house.until("the engine is stalled", async || !house.gate.steps().is_empty()).await;
    let named = house.with("x-session-id", "named").stream("/v1/completions", &body).await;
    let chat = house.stream("/v1/chat/completions", &chat).await;
    // A stream may begin before its request is read.
    house.until("both wait", async || house.metric("num_requests_waiting").await == 2.0).await;
    (house, [first, chat, named])
}

/// Reads up to the next ping; the role that a chat begins with may come before it.
async fn ping(events: &mut Events) {
    loop {
        match events.next().await {
            Some(Said::Ping) => return,
            Some(Said::Chunk(chunk)) => assert_eq!(chunk["choices"][0]["delta"]["role"], "assistant"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn pings_come_while_the_engine_is_stalled() {
    let (house, mut streams) = stalled(Duration::from_millis(10)).await;
    for _ in 0..PINGS {
        for events in &mut streams {
            ping(events).await;
        }
        // What needs no engine is answered.
        assert_eq!(house.get("/health").await.status, 200);
        assert_eq!(house.metric("num_requests_waiting").await, 2.0);
        assert_eq!(house.ask("/tokenize", &json!({"prompt": "ab"})).await["count"], 2);
    }
    assert_eq!(house.gate.steps().len(), 1);
    house.gate.open();
    for events in streams {
        assert!(!events.all().await.is_empty());
    }
}

#[tokio::test]
async fn a_stream_begins_before_a_long_prompt_is_read() {
    // Reading takes far longer than a ping: tens of thousands of turns of a loop, and a prompt that is far too long.
    let template = "{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}";
    let mut setup = Setup { template, ..Setup::default() };
    setup.config.ping = Duration::from_millis(1);
    let house = start(setup).await;
    let mut chat =
        json!({"messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 9, "temperature": 0});
    let whole = house.ask("/v1/chat/completions", &chat).await;
    chat["stream"] = json!(true);
    let chunks = house.stream("/v1/chat/completions", &chat).await.all().await;
    let content: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], content.as_str());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let mut long = json!({"prompt": "x".repeat(3 << 20), "stream": true});
    let mut events = house.stream("/v1/completions", &long).await;
    assert_eq!(events.next().await, Some(Said::Ping));
    let told = events.until(|chunk| !chunk["error"].is_null()).await;
    assert_eq!(told["error"]["code"], "context_length_exceeded");
    assert_eq!(events.next().await, None);
    // Who waits for a whole answer gets a status.
    long["stream"] = json!(false);
    assert_eq!(house.post("/v1/completions", &long).await.status, 400);
}

#[tokio::test]
async fn a_work_with_a_name_begins_though_its_client_leaves_while_it_is_read() {
    let template = "{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}";
    let house = start(Setup { template, ..Setup::default() }).await;
    let chat = json!({"messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 3, "ignore_eos": true});
    let sent = chat.to_string();
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-session-id: book\r\ncontent-length: ";
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(format!("{head}{}\r\n\r\n{sent}", sent.len()).as_bytes()).await.unwrap();
    house.until("it is heard", async || house.metric("connections").await == 2.0).await;
    drop(stream);
    house.until("it is done", async || house.metric("generation_tokens_total").await == 3.0).await;
    assert_eq!(
        house.with("x-session-id", "book").ask("/v1/chat/completions", &chat).await["usage"]["completion_tokens"],
        3
    );
    assert_eq!(house.metric("generation_tokens_total").await, 3.0);
}

#[tokio::test]
#[ignore = "takes a minute"]
#[allow(clippy::print_stdout, reason = "a run that is kept")]
async fn pings_come_for_a_minute_at_the_default_interval() {
    let default = headinfer_server::ServerConfig::default().ping;
    assert_eq!(default, Duration::from_secs(60) / PINGS as u32);
    let (house, streams) = stalled(default).await;
    let begun = Instant::now();
    let end = tokio::time::Instant::now() + Duration::from_secs(61);
    let listeners = streams.map(|mut events| {
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for _ in 0..PINGS {
                let since = Instant::now();
                tokio::time::timeout_at(end, ping(&mut events)).await.expect("in time");
                longest = longest.max(since.elapsed());
            }
            (events, longest)
        })
    });
    let mut heard = Vec::new();
    for listener in listeners {
        heard.push(listener.await.expect("a listener was content"));
    }
    assert_eq!(house.gate.steps().len(), 1);
    let longest = heard.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    println!(
        "engine stalled for {:.2} s: {PINGS} pings on each of {} streams, longest silence {:.3} s",
        begun.elapsed().as_secs_f64(),
        heard.len(),
        longest.as_secs_f64()
    );
    house.gate.open();
    for (events, _) in heard {
        assert!(!events.all().await.is_empty());
    }
}
