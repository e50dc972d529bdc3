//! What answers look like, and that they are the model's.

use headinfer_core::engine::sample::Sampling;
use serde_json::json;

use crate::house::{Setup, start};
use crate::model::{alone, greedy, text, tokenizer};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[tokio::test]
async fn a_completion_is_the_models_own() {
    let house = start(Setup::default()).await;
    let prompt = text(1, 100);
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0});
    let answer = house.ask(COMPLETIONS, &body).await;
    let expected = greedy(&prompt, 12);
    assert_eq!(answer["choices"][0]["text"], expected.as_str());
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "tiny");
    assert_eq!(answer["choices"][0]["index"], 0);
    assert_eq!(answer["usage"]["prompt_tokens"], 100);
    let made = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["total_tokens"], 100 + made);
    assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let ids = tokenizer().encode(&prompt).unwrap();
    for prompt in [json!(ids), json!([ids]), json!([prompt])] {
        let again =
            house.ask(COMPLETIONS, &json!({"prompt": prompt, "max_tokens": 12, "temperature": 0})).await;
        assert_eq!(again["choices"][0]["text"], expected.as_str());
    }
}

#[tokio::test]
async fn a_chat_goes_through_the_template() {
    let house = start(Setup::default()).await;
    let messages = json!([{"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]);
    let answer = house.ask(CHAT, &json!({"messages": messages, "max_tokens": 9, "temperature": 0})).await;
    let prompt = "<|system|>Be brief.<|end|><|user|>Why?<|end|><|assistant|>";
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["message"]["content"], greedy(prompt, 9).as_str());
    let tokens = house.ask("/tokenize", &json!({"messages": messages})).await;
    assert_eq!(tokens["tokens"], json!(tokenizer().encode_raw(prompt).unwrap()));
}

#[tokio::test]
async fn tools_and_calls_reach_the_template_in_the_order_they_came() {
    let house = start(Setup::default()).await;
    let tool = r#"{"type": "function", "function": {"name": "weather", "description": "b", "a": 1}}"#;
    let body = format!(
        r#"{{"tools": [{tool}], "messages": [{{"role": "user", "content": "Rain?"}},
        {{"role": "assistant", "content": null, "tool_calls": [{{"id": "1", "type": "function",
        "function": {{"name": "weather", "arguments": "{{\"city\": \"Oslo\"}}"}}}}]}},
        {{"role": "tool", "tool_call_id": "1", "content": "yes"}}]}}"#
    );
    let reply = house.raw(hyper::Method::POST, "/tokenize", body.into_bytes()).await;
    let prompt = format!(
        "<|tools|>[{tool}]<|end|><|user|>Rain?<|end|><|assistant|>weather(Oslo)<|end|><|tool|>yes<|end|><|assistant|>"
    );
    assert_eq!(reply.json["tokens"], json!(tokenizer().encode_raw(&prompt).unwrap()), "{}", reply.text);
    let none = json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}],
        "tool_choice": "none"});
    let without = house.ask("/tokenize", &none).await;
    assert_eq!(without["tokens"], json!(tokenizer().encode_raw("<|user|>x<|end|><|assistant|>").unwrap()));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_answer() {
    let house = start(Setup::default()).await;
    let prompt = text(2, 40);
    let ids = tokenizer().encode(&prompt).unwrap();
    let ask = async |seed: i64| {
        let body = json!({"prompt": prompt, "max_tokens": 24, "temperature": 1.5, "top_k": 50, "top_p": 0.99,
            "min_p": 0.001, "seed": seed});
        house.ask(COMPLETIONS, &body).await["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let sampling = Sampling {
        temperature: 1.5,
        top_k: Some(50),
        top_p: Some(0.99),
        min_p: Some(0.001),
        repetition_penalty: None,
        seed: 7,
    };
    assert_eq!(ask(7).await, tokenizer().decode(&alone(&ids, 24, sampling)));
    assert_eq!(ask(7).await, ask(7).await);
    assert_ne!(ask(7).await, ask(-8).await);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_is_not_in_it() {
    let house = start(Setup::default()).await;
    let prompt = text(3, 50);
    let whole = greedy(&prompt, 40);
    let stop: String = whole.chars().skip(6).take(2).collect();
    let at = whole.find(&stop).unwrap();
    let body = json!({"prompt": prompt, "max_tokens": 40, "temperature": 0, "stop": [stop, "never seen"],
        "logprobs": 0});
    let answer = house.ask(COMPLETIONS, &body).await;
    assert_eq!(answer["choices"][0]["text"], &whole[..at]);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|t| t.as_str().unwrap()).collect::<String>(), whole[..at]);
}

#[tokio::test]
async fn logprobs_are_those_of_the_model() {
    let house = start(Setup::default()).await;
    let body = json!({"messages": [{"role": "user", "content": "Hm"}], "max_tokens": 5, "temperature": 0,
        "logprobs": true, "top_logprobs": 3});
    let answer = house.ask(CHAT, &body).await;
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), answer["usage"]["completion_tokens"].as_u64().unwrap() as usize);
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        // Greedy takes the likeliest.
        assert_eq!((top.len(), &top[0]["token"]), (3, &token["token"]));
        assert_eq!(top[0]["logprob"], token["logprob"]);
        let p: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(p[0] >= p[1] && p[1] >= p[2] && p[0] <= 0.0 && p.iter().map(|p| p.exp()).sum::<f64>() <= 1.0);
    }
}

#[tokio::test]
async fn logprobs_have_the_bytes_of_tokens_that_are_parts_of_characters() {
    let house = start(Setup::default()).await;
    // Hot enough for the two bytes of \u{e9} to be among the tokens.
    let mut parts = 0;
    for seed in 0..6 {
        let body = json!({"prompt": text(7, 30), "max_tokens": 60, "temperature": 2, "seed": seed, "logprobs": 20,
            "ignore_eos": true});
        let choice = house.ask(COMPLETIONS, &body).await["choices"][0].clone();
        let bytes: Vec<Vec<u8>> = serde_json::from_value(choice["logprobs"]["bytes"].clone()).unwrap();
        let shown: Vec<u8> = bytes.iter().filter(|own| !own.starts_with(b"<|")).flatten().copied().collect();
        assert_eq!(choice["text"], String::from_utf8_lossy(&shown).as_ref());
        for (at, own) in bytes.iter().enumerate().filter(|(_, own)| std::str::from_utf8(own).is_err()) {
            let spelled = format!("bytes:\\x{:02x}", own[0]);
            assert_eq!(choice["logprobs"]["tokens"][at], spelled.as_str());
            parts += 1;
        }
        // No two tokens look the same, so none is lost.
        for top in choice["logprobs"]["top_logprobs"].as_array().unwrap() {
            assert_eq!(top.as_object().unwrap().len(), 20);
        }
    }
    assert!(parts > 0);
    let body = json!({"messages": [{"role": "user", "content": "Hm"}], "max_tokens": 20, "logprobs": true, "seed": 2,
        "ignore_eos": true, "temperature": 2});
    let choice = house.ask(CHAT, &body).await["choices"][0].clone();
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let shown = |t: &serde_json::Value| serde_json::from_value::<Vec<u8>>(t["bytes"].clone()).unwrap();
    let special = |t: &&serde_json::Value| t["token"].as_str().unwrap().starts_with("<|");
    let bytes = tokens.iter().filter(|t| !special(t)).flat_map(shown).collect::<Vec<u8>>();
    assert_eq!(choice["message"]["content"], String::from_utf8_lossy(&bytes).as_ref());
}

#[tokio::test]
async fn the_end_of_an_answer_says_why() {
    let house = start(Setup::default()).await;
    let body = |max: serde_json::Value| {
        let mut body =
            json!({"messages": [{"role": "user", "content": "x"}], "temperature": 0, "stop": ["9"]});
        body.as_object_mut().unwrap().extend(max.as_object().unwrap().clone());
        body
    };
    for (text, max, content, reason, made) in [
        ("1234567890", json!({"max_tokens": 4}), "1234", "length", 4),
        // The newer name wins.
        ("1234567890", json!({"max_tokens": 4, "max_completion_tokens": 5}), "12345", "length", 5),
        ("1234567890", json!({"max_completion_tokens": 8}), "12345678", "length", 8),
        // At once the last token there is room for and the stop string.
        ("1234567890", json!({"max_tokens": 9}), "12345678", "stop", 9),
        ("1234", json!({"max_tokens": 9}), "1234", "stop", 5),
        ("1234", json!({}), "1234", "stop", 5),
    ] {
        house.gate.say(text);
        let answer = house.ask(CHAT, &body(max)).await;
        let choice = &answer["choices"][0];
        assert_eq!(
            (choice["message"]["content"].as_str(), choice["finish_reason"].as_str()),
            (Some(content), Some(reason))
        );
        assert_eq!(answer["usage"]["completion_tokens"], made);
    }
}

#[tokio::test]
async fn text_and_tokens_are_two_names_of_one_thing() {
    let house = start(Setup::default()).await;
    let tokens = house.ask("/tokenize", &json!({"prompt": "caf\u{e9}!"})).await;
    assert_eq!((&tokens["count"], &tokens["max_model_len"]), (&json!(6), &json!(1024)));
    let back = house.ask("/detokenize", &json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back["prompt"], "caf\u{e9}!");
}

#[tokio::test]
async fn the_model_is_listed_and_the_metrics_count() {
    let house = start(Setup::default()).await;
    let list = house.get("/v1/models").await.json;
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(house.get("/v1/models/tiny").await.json["object"], "model");
    let body = json!({"prompt": text(4, 70), "max_tokens": 3, "ignore_eos": true});
    house.ask(COMPLETIONS, &body).await;
    house.ask(COMPLETIONS, &body).await;
    assert_eq!(house.metric("prompt_tokens_total").await, 140.0);
    assert_eq!(house.metric("prefix_cache_hits_total").await, 64.0);
    assert_eq!(house.metric("generation_tokens_total").await, 6.0);
    assert_eq!(house.metric("time_to_first_token_seconds_count").await, 2.0);
    let finished = "request_success_total{model_name=\"tiny\",finished_reason=\"length\"} ";
    assert_eq!(house.labelled(finished).await, 2.0);
    assert!(house.labelled("lane_bytes_total{model_name=\"tiny\",lane=\"out\"} ").await > 0.0);
    assert!(house.labelled("memory_bytes{model_name=\"tiny\",tier=\"host\"} ").await > 0.0);
}
