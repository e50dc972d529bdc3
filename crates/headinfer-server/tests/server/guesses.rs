//! Guesses save passes and change no answer.

use serde_json::{Value, json};

use crate::house::{House, Setup, start};
use crate::model::{CHUNK, text};

const COMPLETIONS: &str = "/v1/completions";

async fn house(guesses: usize) -> House {
    start(Setup { slots: 1, guesses, ..Setup::default() }).await
}

/// What is asked: greedily and drawn, with logprobs, up to a stop string, by a grammar, with a penalty.
fn questions() -> Vec<Value> {
    let prompt = text(1, 40).repeat(5);
    let base =
        json!({"prompt": prompt, "max_tokens": 90, "temperature": 0, "ignore_eos": true, "logprobs": 3});
    let with = |more: Value| {
        let mut body = base.clone();
        more.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    vec![
        base.clone(),
        with(json!({"max_tokens": 1})),
        with(json!({"temperature": 0.6, "seed": 5})),
        with(json!({"temperature": 1.2, "seed": 6, "top_p": 0.8, "ignore_eos": false})),
        with(json!({"temperature": 0.9, "seed": 7, "min_p": 0.05})),
        with(json!({"temperature": 1, "seed": 8, "response_format": {"type": "json_object"}})),
    ]
}

/// All of an answer but its name and time.
async fn answer(house: &House, body: &Value) -> Value {
    let mut answer = house.ask(COMPLETIONS, body).await;
    for field in ["id", "created", "timings"] {
        answer.as_object_mut().unwrap().remove(field);
    }
    answer
}

#[tokio::test]
async fn answers_usage_and_logprobs_are_the_same_with_guesses() {
    let (plain, guessing) = (house(0).await, house(9).await);
    for body in questions() {
        let expected = answer(&plain, &body).await;
        assert_eq!(answer(&guessing, &body).await, expected, "{body}");
        let mut stopped = body.clone();
        let words = expected["choices"][0]["text"].as_str().unwrap();
        if let Some((at, _)) = words.char_indices().nth(words.chars().count() / 2) {
            stopped["stop"] = json!([words[at..].chars().take(2).collect::<String>()]);
            assert_eq!(answer(&guessing, &stopped).await, answer(&plain, &stopped).await, "{stopped}");
        }
    }
    let counts = async |house: &House| {
        let of = async |what: &str| house.metric(&format!("spec_decode_num_{what}_total")).await;
        [of("drafts").await, of("draft_tokens").await, of("accepted_tokens").await]
    };
    assert_eq!(counts(&plain).await, [0.0; 3]);
    let [drafts, guessed, accepted] = counts(&guessing).await;
    assert!(drafts > 0.0 && guessed >= drafts && (1.0..=guessed).contains(&accepted), "{drafts} {accepted}");
    for name in ["generation_tokens_total", "prompt_tokens_total", "prefix_cache_hits_total"] {
        assert_eq!(plain.metric(name).await, guessing.metric(name).await, "{name}");
    }
}

#[tokio::test]
async fn a_stream_of_several_tokens_a_pass_is_the_whole_answer() {
    let (plain, guessing) = (house(0).await, house(15).await);
    let mut body = questions()[0].clone();
    let whole = answer(&plain, &body).await;
    body["stream"] = json!(true);
    let chunks = guessing.stream(COMPLETIONS, &body).await.all().await;
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, whole["choices"][0]["text"].as_str().unwrap());
    assert!(
        guessing.gate.steps().iter().filter(|rows| **rows < CHUNK).count() < 90,
        "every token took a pass"
    );
}

#[tokio::test]
async fn whoever_leaves_amid_guesses_leaves_a_clean_slot() {
    let guessing = house(15).await;
    let mut body = questions()[0].clone();
    body["stream"] = json!(true);
    body["max_tokens"] = json!(600);
    let mut events = guessing.stream(COMPLETIONS, &body).await;
    events.until(|c| c["choices"][0]["text"].as_str().is_some_and(|t| !t.is_empty())).await;
    drop(events);
    let plain = house(0).await;
    let body = json!({"prompt": format!("{}?", text(1, 40).repeat(5)), "max_tokens": 30, "temperature": 0});
    let (got, expected) = (answer(&guessing, &body).await, answer(&plain, &body).await);
    assert_eq!(got["choices"], expected["choices"]);
}
