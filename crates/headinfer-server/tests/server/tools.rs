//! Calls of tools, wanted and forced.

use serde_json::{Value, json};

use crate::house::{Setup, start};
use crate::model::greedy;

const CHAT: &str = "/v1/chat/completions";

fn tools() -> Value {
    let city = json!({"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "required": ["city"],
        "additionalProperties": false, "$defs": {"city": {"enum": ["Oslo", "Rome"]}}});
    json!([{"type": "function", "function": {"name": "weather", "description": "Rain?", "parameters": city}},
        {"type": "function", "function": {"name": "time"}}])
}

fn asked(choice: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "Now?"}], "max_tokens": 200, "temperature": 2, "seed": 5,
        "tools": tools(), "tool_choice": choice})
}

#[tokio::test]
async fn a_call_that_must_be_is_one_of_those_offered() {
    let house = start(Setup::default()).await;
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    for (choice, names) in [
        (json!("required"), vec!["weather", "time"]),
        (named("weather"), vec!["weather"]),
        (named("time"), vec!["time"]),
    ] {
        let mut body = asked(choice);
        let answer = house.ask(CHAT, &body).await;
        let choice = &answer["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
        let [call] = choice["message"]["tool_calls"].as_array().unwrap().as_slice() else {
            panic!("{answer}")
        };
        assert_eq!(call["type"], "function");
        let name = call["function"]["name"].as_str().unwrap();
        assert!(names.contains(&name));
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        match name {
            "weather" => assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap())),
            _ => assert_eq!(arguments, json!({})),
        }
        body["stream"] = json!(true);
        let chunks = house.stream(CHAT, &body).await.all().await;
        let streamed: Vec<&Value> = chunks
            .iter()
            .map(|c| &c["choices"][0]["delta"]["tool_calls"][0])
            .filter(|c| !c.is_null())
            .collect();
        assert_eq!((streamed.len(), &streamed[0]["index"]), (1, &json!(0)));
        assert_eq!(streamed[0]["function"], call["function"]);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[tokio::test]
async fn tools_that_may_be_called_leave_other_answers_as_they_are() {
    let house = start(Setup::default()).await;
    let mut body = asked(json!("auto"));
    (body["temperature"], body["max_tokens"]) = (json!(0), json!(20));
    let answer = house.ask(CHAT, &body).await;
    let shown = tools().to_string().replace("\":", "\": ").replace(",\"", ", \"").replace(",{", ", {");
    let prompt = format!("<|tools|>{shown}<|end|><|user|>Now?<|end|><|assistant|>");
    assert_eq!(answer["choices"][0]["message"]["content"], greedy(&prompt, 20).as_str());
    assert!(answer["choices"][0]["message"].get("tool_calls").is_none());
    // With a format of the answer, it is that or a call.
    (body["temperature"], body["max_tokens"]) = (json!(2), json!(200));
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}});
    for seed in 0..6 {
        body["seed"] = json!(seed);
        let choice = house.ask(CHAT, &body).await["choices"][0].clone();
        let called = choice["message"]["tool_calls"].is_array();
        let said = choice["message"]["content"].as_str().is_some_and(|c| ["\"yes\"", "\"no\""].contains(&c));
        assert!(called != said, "{choice}");
    }
}

#[tokio::test]
async fn tools_and_choices_that_make_no_sense_are_refused() {
    let house = start(Setup::default()).await;
    let one = |tool: Value| json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool], "tool_choice": "required"});
    let function = |function: Value| one(json!({"type": "function", "function": function}));
    let many: Vec<Value> =
        (0..129).map(|i| json!({"type": "function", "function": {"name": format!("f{i}")}})).collect();
    for (body, param, word) in [
        (one(json!({"type": "retrieval"})), "tools", "tools[0].type"),
        (function(json!({})), "tools", "tools[0].function.name"),
        (function(json!({"name": "two words"})), "tools", "letters"),
        (function(json!({"name": "f", "parameters": "x"})), "tools", "must be an object"),
        (function(json!({"name": "f", "parameters": {"type": "object", "not": {}}})), "tools", "\"not\""),
        (asked(json!("always")), "tool_choice", "must be"),
        (asked(json!({"type": "function", "function": {"name": "other"}})), "tool_choice", "'other'"),
        (json!({"messages": [{"role": "user", "content": "x"}], "tools": many}), "tools", "at most 128"),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"}),
            "tool_choice",
            "with tools",
        ),
    ] {
        let reply = house.post(CHAT, &body).await;
        let error = &reply.json["error"];
        assert_eq!((reply.status.as_u16(), &error["param"]), (400, &json!(param)), "{}", reply.text);
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
}
