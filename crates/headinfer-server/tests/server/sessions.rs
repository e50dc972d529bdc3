//! Works with a name: they go on without a client, and who comes back hears all of the answer.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Client, Events};
use crate::house::{House, Setup, start};
use crate::model::{CHUNK, greedy, text};

const COMPLETIONS: &str = "/v1/completions";

fn body(seed: usize, chunks: usize) -> Value {
    json!({"prompt": text(seed, chunks * CHUNK), "max_tokens": 4, "temperature": 0, "ignore_eos": true,
        "stream": true, "return_progress": true})
}

async fn attach(client: &Client, name: &str) -> Events {
    Events::of(client.open(Method::GET, &format!("/v1/sessions/{name}"), Vec::new()).await)
}

fn said(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect()
}

/// A house with one slot whose engine did two chunks of the work `name`, which its client then left.
async fn left_alone(name: &str, body: &Value) -> (House, Client, Value) {
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    let named = house.with("x-session-id", name);
    house.gate.allow(2);
    let mut events = named.stream(COMPLETIONS, body).await;
    let chunk = events.until(|c| c["prompt_progress"]["processed"] == 2 * CHUNK).await;
    drop(events);
    house.until("the server knows", async || house.metric("connections").await == 1.0).await;
    house.until("the third chunk is begun", async || house.gate.steps().len() == 3).await;
    (house, named, chunk["id"].clone())
}

#[tokio::test]
async fn who_comes_back_mid_prefill_hears_the_same_work_go_on() {
    let body = body(1, 10);
    let (house, named, id) = left_alone("book", &body).await;
    let again = named.stream(COMPLETIONS, &body).await;
    house.gate.open();
    let chunks = again.all().await;
    assert!(chunks.iter().all(|chunk| chunk["id"] == id));
    // It hears how far the work is at once; nothing was done twice.
    assert_eq!(chunks[0]["prompt_progress"]["processed"], 2 * CHUNK);
    assert!(said(&chunks).starts_with(&greedy(body["prompt"].as_str().unwrap(), 4)));
    assert_eq!(house.gate.steps().len(), 10 + 3);
    assert_eq!(house.metric("prompt_tokens_total").await, 10.0 * CHUNK as f64);
}

#[tokio::test]
async fn a_work_goes_on_alone_and_its_answer_is_there_afterwards() {
    let body = body(2, 5);
    let (house, named, id) = left_alone("book", &body).await;
    house.gate.open();
    house.until("it is finished", async || house.metric("generation_tokens_total").await == 4.0).await;
    let chunks = attach(&house, "book").await.all().await;
    let expected = said(&chunks);
    assert!(expected.starts_with(&greedy(body["prompt"].as_str().unwrap(), 4)) && chunks[0]["id"] == id);
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 4);
    // Whole or streamed is not part of the question.
    let mut whole = body.clone();
    (whole["stream"], whole["return_progress"]) = (json!(false), json!(false));
    let answer = named.ask(COMPLETIONS, &whole).await;
    assert_eq!((&answer["choices"][0]["text"], &answer["id"]), (&json!(expected), &id));
    assert_eq!(house.metric("generation_tokens_total").await, 4.0);
    assert_eq!(
        named.with("x-session-id", "other").ask(COMPLETIONS, &whole).await["usage"]["total_tokens"],
        164
    );
}

#[tokio::test]
async fn another_question_under_the_same_name_takes_over_at_once() {
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    let named = house.with("x-session-id", "book");
    let body = body(3, 20);
    house.gate.allow(2);
    let mut first = named.stream(COMPLETIONS, &body).await;
    first.until(|c| c["prompt_progress"]["processed"] == 2 * CHUNK).await;
    let mut other = body.clone();
    (other["stream"], other["max_tokens"]) = (json!(false), json!(3));
    let waiting =
        house.stream(COMPLETIONS, &json!({"prompt": "who waits", "max_tokens": 1, "stream": true})).await;
    let second = tokio::spawn({
        let named = named.clone();
        async move { named.ask(COMPLETIONS, &other).await }
    });
    house.until("both wait", async || house.metric("num_requests_waiting").await == 2.0).await;
    house.gate.open();
    let told = first.until(|c| !c["error"].is_null()).await;
    assert!(told["error"]["message"].as_str().unwrap().contains("took over"));
    let answer = second.await.unwrap();
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 3 * CHUNK);
    assert_eq!(answer["choices"][0]["text"], greedy(body["prompt"].as_str().unwrap(), 3).as_str());
    waiting.all().await;
    let failed = "request_success_total{model_name=\"tiny\",finished_reason=\"error\"} ";
    assert_eq!(house.labelled(failed).await, 0.0);
}

#[tokio::test]
async fn a_work_can_be_cancelled_by_name_and_its_prefill_is_kept() {
    let body = body(4, 20);
    let (house, named, _) = left_alone("book", &body).await;
    let mut listener = attach(&house, "book").await;
    let cancelled = house.raw(Method::DELETE, "/v1/sessions/book", Vec::new()).await;
    assert_eq!((cancelled.status.as_u16(), &cancelled.json["deleted"]), (200, &json!(true)));
    let told = listener.until(|c| !c["error"].is_null()).await;
    assert_eq!(told["error"]["message"], "the work was cancelled");
    house.gate.open();
    let aborted = "request_success_total{model_name=\"tiny\",finished_reason=\"abort\"} ";
    house.until("it ends", async || house.labelled(aborted).await == 1.0).await;
    assert_eq!(house.gate.steps().len(), 3);
    for method in [Method::GET, Method::DELETE] {
        let reply = house.raw(method, "/v1/sessions/book", Vec::new()).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["code"]), (404, &json!("session_not_found")));
    }
    let chunks = named.stream(COMPLETIONS, &body).await.all().await;
    assert_eq!(chunks[0]["prompt_progress"]["cache"], 3 * CHUNK);
}

#[tokio::test]
async fn answers_that_are_kept_have_limits() {
    let mut setup = Setup::default();
    (setup.config.limits.sessions, setup.config.limits.session_bytes) = (2, 3);
    let house = start(setup).await;
    let ask = async |name: &str, max_tokens: usize| {
        let body =
            json!({"prompt": text(5, 40), "max_tokens": max_tokens, "ignore_eos": true, "logprobs": null});
        house.with("x-session-id", name).ask(COMPLETIONS, &body).await
    };
    for name in ["a", "b", "c"] {
        ask(name, 1).await;
    }
    let status = async |name: &str| {
        house.open(Method::GET, &format!("/v1/sessions/{name}"), Vec::new()).await.status()
    };
    assert_eq!(
        (status("a").await, status("b").await, status("c").await),
        (404.try_into().unwrap(), 200.try_into().unwrap(), 200.try_into().unwrap())
    );
    // Too long to be kept: who comes back asks again.
    let first = ask("long", 30).await;
    assert_eq!(status("long").await, 410);
    assert_ne!(ask("long", 30).await["id"], first["id"]);
}

#[tokio::test]
async fn who_listens_to_a_work_that_dies_with_the_engine_hears_of_it() {
    let mut setup = Setup::default();
    setup.config.ping = Duration::from_millis(10);
    let house = start(setup).await;
    house.gate.close();
    let named = house.with("x-session-id", "book");
    let mut events = named.stream(COMPLETIONS, &body(6, 3)).await;
    house.until("it works", async || !house.gate.steps().is_empty()).await;
    house.gate.panic();
    house.gate.open();
    let told = events.until(|c| !c["error"].is_null()).await;
    assert_eq!(told["error"]["type"], "server_error");
    house.until("the server knows", async || house.get("/health").await.json["status"] == "failed").await;
}
