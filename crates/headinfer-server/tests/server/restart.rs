//! A server that ends and begins again: what was prefilled is there, and no bit of an answer changes.

use headinfer_core::store::StoreOptions;
use serde_json::json;

use crate::house::{House, Setup, start};
use crate::model::{CHUNK, greedy, text};
use crate::reuse::ask;
use crate::store::{Stalled, chunks, folder, kept, open};

/// Ends it as a signal does.
pub(crate) async fn end(mut house: House) {
    house.shutdown.request();
    house.gate.open();
    house.task.take().unwrap().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_restart_changes_no_bit_and_computes_nothing_twice() {
    let dir = folder();
    let book = text(1, 10 * CHUNK + 7);
    let house = kept(dir.path(), 1).await;
    ask(&house, &format!("{book} First?")).await;
    end(house).await;
    let house = kept(dir.path(), 1).await;
    let restored = ask(&house, &format!("{book} And second?")).await;
    let alone = start(Setup { slots: 1, ..Setup::default() }).await;
    let fresh = ask(&alone, &format!("{book} And second?")).await;
    assert_eq!((fresh.2, restored.2), (0, chunks(10)));
    assert_eq!((restored.0, restored.1), (fresh.0, fresh.1));
    assert_eq!(house.gate.steps().iter().filter(|rows| **rows == CHUNK).count(), 0);
}

#[tokio::test]
async fn what_is_behind_at_the_end_is_written_then() {
    let dir = folder();
    let book = text(2, 16 * CHUNK);
    let house = kept(dir.path(), 1).await;
    let stalled = Stalled::new(dir.path());
    ask(&house, &book).await;
    assert!(house.metric("store_behind_tokens").await > 0.0);
    drop(stalled);
    end(house).await;
    let house = kept(dir.path(), 1).await;
    assert_eq!(ask(&house, &format!("{book}?")).await.2, chunks(16));
}

#[tokio::test]
async fn a_work_with_a_name_that_was_cut_off_is_resumed_by_who_asks_again() {
    let dir = folder();
    let prompt = text(3, 20 * CHUNK);
    let body = json!({"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": true, "stream": true,
        "return_progress": true, "stream_options": {"include_usage": true}});
    let house = kept(dir.path(), 1).await;
    house.gate.allow(6);
    let mut events = house.with("x-session-id", "book").stream("/v1/completions", &body).await;
    events.until(|c| c["prompt_progress"]["processed"] == 6 * CHUNK).await;
    drop(events);
    end(house).await;
    let house = kept(dir.path(), 1).await;
    // Its name is gone, and whoever asks for it hears what to do.
    let gone = house.get("/v1/sessions/book").await;
    assert_eq!((gone.status.as_u16(), &gone.json["error"]["code"]), (404, &json!("session_not_found")));
    let message = gone.json["error"]["message"].as_str().unwrap();
    assert!(["process", "POST", "X-Session-Id"].iter().all(|word| message.contains(word)), "{message}");
    let named = house.with("x-session-id", "book");
    let chunks = named.stream("/v1/completions", &body).await.all().await;
    let cached = chunks.last().unwrap()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!((6 * CHUNK as u64..20 * CHUNK as u64).contains(&cached), "{cached}");
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert!(said.starts_with(&greedy(&prompt, 4)));
    // And by its name alone from now on.
    let heard = house.get("/v1/sessions/book").await.text;
    assert!(heard.contains(&format!("\"cached_tokens\":{cached}")), "{heard}");
}

#[tokio::test]
async fn another_interval_or_model_finds_nothing_and_disturbs_nothing() {
    let dir = folder();
    let book = text(4, 8 * CHUNK);
    let house = kept(dir.path(), 1).await;
    ask(&house, &book).await;
    end(house).await;
    let coarse = StoreOptions { interval_min: 2 * CHUNK, ..StoreOptions::default() };
    let store = headinfer_core::store::Store::open(dir.path(), &coarse).unwrap();
    let house = start(Setup { slots: 1, store: Some(store), ..Setup::default() }).await;
    assert_eq!(ask(&house, &book).await.2, 0);
    assert_eq!(house.metric("store_warnings_total").await, 0.0);
    end(house).await;
    assert_eq!(open(dir.path()).stats().warnings, 0);
    let house = kept(dir.path(), 1).await;
    assert_eq!(ask(&house, &book).await.2, chunks(7));
}
