//! An engine that stands still: clients hear signs of life all the same.

use std::time::{Duration, Instant};

use serde_json::json;

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
#[ignore = "takes a minute"]
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
