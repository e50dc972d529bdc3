//! Short requests beside long ones.

use serde_json::json;

use crate::house::{Setup, start};
use crate::model::{CHUNK, greedy, text};

const COMPLETIONS: &str = "/v1/completions";

#[tokio::test]
async fn a_short_request_finishes_while_a_long_prefill_is_under_way() {
    let house = start(Setup { context: 8192, ..Setup::default() }).await;
    let long =
        json!({"prompt": text(1, 200 * CHUNK), "max_tokens": 1, "stream": true, "return_progress": true});
    house.gate.allow(2);
    let mut slow = house.stream(COMPLETIONS, &long).await;
    slow.until(|c| c["prompt_progress"]["processed"] == 2 * CHUNK).await;
    let prompt = text(2, 20);
    let short =
        json!({"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": true, "stream": true});
    let quick = house.stream(COMPLETIONS, &short).await;
    house.gate.open();
    quick.all().await;
    let left = slow.until(|c| c["prompt_progress"]["processed"].as_u64() >= Some(2 * CHUNK as u64)).await;
    assert!(left["prompt_progress"]["processed"].as_u64() < Some(200 * CHUNK as u64));
    slow.all().await;
    // The steps themselves: the short one's last token came before the long one's last chunks.
    let steps = house.gate.steps();
    let last_token = steps.iter().rposition(|rows| *rows == 1).unwrap();
    assert!(last_token < 150, "{last_token}");
    let answer = house.ask(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 6, "temperature": 0})).await;
    assert_eq!(answer["choices"][0]["text"], greedy(&prompt, 6).as_str());
}

#[tokio::test]
async fn long_prompts_leave_a_slot_to_short_ones() {
    let house = start(Setup { context: 8192, ..Setup::default() }).await;
    house.gate.close();
    let long = |seed| json!({"prompt": text(seed, 100 * CHUNK), "max_tokens": 1, "stream": true});
    let first = house.stream(COMPLETIONS, &long(1)).await;
    house.until("it runs", async || !house.gate.steps().is_empty()).await;
    let second = house.stream(COMPLETIONS, &long(2)).await;
    let short = house.stream(COMPLETIONS, &json!({"prompt": "hi", "max_tokens": 1, "stream": true})).await;
    house.gate.open();
    // It came last, and was neither behind the first nor behind the second.
    short.all().await;
    let long_chunks = house.gate.steps().iter().filter(|rows| **rows == CHUNK).count();
    assert!(long_chunks < 50, "{long_chunks}");
    first.all().await;
    second.all().await;
}
