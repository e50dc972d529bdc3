//! A prefix that is in a cache is not taken in again, and the answer is the same to the bit.

use serde_json::{Value, json};

use crate::house::{House, Setup, start};
use crate::model::{CHUNK, greedy, text};

/// Text, logprobs, and cached tokens.
pub(crate) async fn ask(house: &House, prompt: &str) -> (Value, Value, u64) {
    let body =
        json!({"prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 5, "ignore_eos": true});
    let answer = house.ask("/v1/completions", &body).await;
    let choice = &answer["choices"][0];
    let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (choice["text"].clone(), choice["logprobs"].clone(), cached)
}

#[tokio::test]
async fn the_next_question_on_a_document_reuses_it_bit_for_bit() {
    let document = text(1, 10 * CHUNK + 7);
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    ask(&house, &format!("{document} First?")).await;
    let (words, logprobs, cached) = ask(&house, &format!("{document} And second?")).await;
    assert_eq!(cached, 10 * CHUNK as u64);
    let fresh = start(Setup { slots: 1, ..Setup::default() }).await;
    let (words_alone, logprobs_alone, cached_alone) = ask(&fresh, &format!("{document} And second?")).await;
    assert_eq!(cached_alone, 0);
    assert_eq!((words, logprobs), (words_alone, logprobs_alone));
}

#[tokio::test]
async fn what_decode_or_a_short_chunk_left_is_not_reused() {
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    let first = text(2, CHUNK + 10);
    let (words, ..) = ask(&house, &first).await;
    // A second turn that repeats the answer, whose rows were made one by one.
    let turn = format!("{first}{}{}", words.as_str().unwrap(), text(3, 2 * CHUNK));
    let (_, logprobs, cached) = ask(&house, &turn).await;
    assert_eq!(cached, CHUNK as u64);
    let fresh = start(Setup { slots: 1, ..Setup::default() }).await;
    assert_eq!(logprobs, ask(&fresh, &turn).await.1);
}

#[tokio::test]
async fn the_same_prompt_again_takes_in_its_last_chunk_only() {
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    let prompt = text(4, 3 * CHUNK);
    let first = ask(&house, &prompt).await;
    let again = ask(&house, &prompt).await;
    assert_eq!((first.2, again.2), (0, 2 * CHUNK as u64));
    assert_eq!((first.0, first.1), (again.0, again.1));
}

#[tokio::test]
async fn a_short_request_does_not_cost_a_long_document_its_cache() {
    let house = start(Setup::default()).await;
    let document = text(5, 8 * CHUNK);
    ask(&house, &document).await;
    for seed in 10..14 {
        ask(&house, &text(seed, CHUNK + 3)).await;
    }
    assert_eq!(ask(&house, &format!("{document}?")).await.2, 8 * CHUNK as u64);
}

#[tokio::test]
async fn a_prefill_that_was_cut_off_is_continued_by_a_retry() {
    let house = start(Setup { slots: 1, ..Setup::default() }).await;
    let prompt = text(6, 20 * CHUNK);
    let body = json!({"prompt": prompt, "max_tokens": 1, "stream": true, "return_progress": true});
    house.gate.allow(2);
    let mut events = house.stream("/v1/completions", &body).await;
    events.until(|c| c["prompt_progress"]["processed"] == 2 * CHUNK).await;
    drop(events);
    house.gate.open();
    let (words, _, cached) = ask(&house, &prompt).await;
    assert!((2 * CHUNK as u64..20 * CHUNK as u64).contains(&cached), "{cached}");
    assert_eq!(words.as_str().unwrap().chars().next(), greedy(&prompt, 1).chars().next());
}
