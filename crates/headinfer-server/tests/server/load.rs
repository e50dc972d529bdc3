//! Many clients at once, a third of them impatient: every answer is the one given alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::client::Client;
use crate::house::{Setup, start};
use crate::model::{CHUNK, greedy, text};

const CLIENTS: usize = 16;
const ROUNDS: usize = 6;
const PROMPTS: usize = 8;

fn prompt(which: usize) -> String {
    // Every second one is a question on a document that others ask about too.
    match which % 2 {
        0 => text(which, 5 + 11 * which),
        _ => format!("{} {which}?", text(1, 9 * CHUNK)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_get_the_answers_given_alone() {
    let house = start(Setup { slots: 3, queue: 8, ..Setup::default() }).await;
    let expected: Arc<Vec<String>> = Arc::new((0..PROMPTS).map(|which| greedy(&prompt(which), 10)).collect());
    let answered = Arc::new(AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|number| {
        let (client, expected, answered) = ((*house).clone(), expected.clone(), answered.clone());
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                let which = (number * 5 + round * 3) % PROMPTS;
                let impatient = (number + round) % 3 == 0;
                if visit(&client, which, impatient, &expected[which]).await {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("a client was content");
    }
    assert_eq!(answered.load(Ordering::Relaxed), CLIENTS * ROUNDS / 3 * 2);
    assert_eq!(
        house.labelled("request_success_total{model_name=\"tiny\",finished_reason=\"error\"} ").await,
        0.0
    );
    house.until("all is quiet", async || house.metric("num_requests_running").await == 0.0).await;
    assert_eq!(house.metric("num_requests_waiting").await, 0.0);
}

/// Asks until it is served; whether it stayed for the answer, which must then be right.
async fn visit(client: &Client, which: usize, impatient: bool, expected: &str) -> bool {
    let body = json!({"prompt": prompt(which), "max_tokens": 10, "temperature": 0, "stream": impatient});
    loop {
        if impatient {
            let response =
                client.open(hyper::Method::POST, "/v1/completions", body.to_string().into_bytes()).await;
            if response.status() == 200 {
                return false;
            }
            assert_eq!(response.status(), 429);
        } else {
            let reply = client.post("/v1/completions", &body).await;
            if reply.status == 200 {
                assert_eq!(reply.json["choices"][0]["text"], expected);
                return true;
            }
            assert_eq!(reply.status, 429, "{}", reply.text);
        }
        tokio::task::yield_now().await;
    }
}
