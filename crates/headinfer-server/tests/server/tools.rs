//! Calls of tools, wanted and forced.

use serde_json::{Value, json};

use crate::house::{House, Setup, start};
use crate::model::{TEMPLATE, greedy};

const CHAT: &str = "/v1/chat/completions";

/// Templates of models that write calls in other ways.
const TAGGED: &str =
    "{{ tools }}<tool_call>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>";
const PARAMETERS: &str = "{{ tools }}{\"name\": \"n\", \"parameters\": {}}{% for m in messages %}<|{{ m.role }}|>\
    {{ m.content }}{% endfor %}<|assistant|>";

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

/// The calls of a stream, put together as OpenAI's clients do: what has an index begins or goes on.
fn calls(chunks: &[Value]) -> Vec<Value> {
    let mut calls: Vec<Value> = Vec::new();
    let deltas = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array()).flatten();
    for delta in deltas {
        let at = delta["index"].as_u64().unwrap() as usize;
        if at == calls.len() {
            calls.push(delta.clone());
            continue;
        }
        assert!(delta.get("id").is_none() && delta["function"].get("name").is_none(), "{delta}");
        let known = &mut calls[at]["function"]["arguments"];
        *known = json!(known.as_str().unwrap().to_owned() + delta["function"]["arguments"].as_str().unwrap());
    }
    calls
}

/// The answer to `body` when the model would rather say `text`: content, calls as (name, arguments), finish reason. It
/// is the same streamed and whole.
async fn said(house: &House, body: &Value, text: &str) -> (Value, Vec<(String, String)>, String) {
    house.gate.say(text);
    let choice = house.ask(CHAT, body).await["choices"][0].clone();
    let pair =
        |call: &Value| ["name", "arguments"].map(|key| call["function"][key].as_str().unwrap().to_owned());
    let read =
        |calls: &[Value]| calls.iter().map(|call| pair(call).into()).collect::<Vec<(String, String)>>();
    let whole = read(choice["message"]["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default());
    house.gate.say(text);
    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    let chunks = house.stream(CHAT, &streaming).await.all().await;
    assert_eq!(read(&calls(&chunks)), whole);
    let content: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(choice["message"]["content"].as_str().unwrap_or_default(), content);
    let reason = choice["finish_reason"].as_str().unwrap();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], reason);
    (choice["message"]["content"].clone(), whole, reason.into())
}

#[tokio::test]
async fn strict_arguments_obey_their_schema_wherever_the_model_calls() {
    for (template, open, key, close) in [
        (TAGGED, "<tool_call>\n", "arguments", "\n</tool_call>"),
        (PARAMETERS, "", "parameters", ""),
        (TEMPLATE, "", "arguments", ""),
    ] {
        let house = start(Setup { template, ..Setup::default() }).await;
        let call = |name: &str, arguments: &str| {
            format!("{open}{{\"name\": \"{name}\", \"{key}\": {arguments}}}{close}")
        };
        let mut body = asked(json!("auto"));
        (body["temperature"], body["parallel_tool_calls"]) = (json!(0), json!(false));
        let foreign = call("weather", "{\"city\": \"Paris\", \"x\": 1}");
        // What is not strict is the model's.
        let (_, calls, reason) = said(&house, &body, &foreign).await;
        assert_eq!(calls, [("weather".into(), "{\"city\": \"Paris\", \"x\": 1}".into())]);
        assert_eq!(reason, "tool_calls");
        body["tools"][0]["function"]["strict"] = json!(true);
        let (content, calls, reason) = said(&house, &body, &foreign).await;
        assert_eq!((content, reason.as_str()), (Value::Null, "tool_calls"));
        let [(name, arguments)] = calls.as_slice() else { panic!("{calls:?}") };
        let arguments: Value = serde_json::from_str(arguments).expect(arguments);
        assert_eq!((name.as_str(), &arguments), ("weather", &json!({"city": "Oslo"})));
        // A tool that is not offered cannot be called.
        body["tools"][1]["function"]["strict"] = json!(true);
        let (_, calls, _) = said(&house, &body, &call("rain", "{}")).await;
        assert!(["weather", "time"].contains(&calls[0].0.as_str()), "{calls:?}");
        // Other texts are as they were.
        for text in ["It rains.\n\nA lot: 1 < 2 > 0, \"so\" {there}", "", " \u{e9}<tool"] {
            let (content, calls, reason) = said(&house, &body, text).await;
            assert_eq!((content.as_str(), calls.len(), reason.as_str()), (Some(text), 0, "stop"));
        }
    }
}

#[tokio::test]
async fn calls_are_one_or_several_as_asked_for() {
    let house = start(Setup { template: TAGGED, ..Setup::default() }).await;
    let call =
        |name: &str| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{}}}}\n</tool_call>");
    let both = format!("Well.{}\n{}", call("time"), call("time"));
    let two = [("time".to_owned(), "{}".to_owned()), ("time".to_owned(), "{}".to_owned())];
    for strict in [false, true] {
        let mut body = asked(json!("auto"));
        (body["temperature"], body["tools"][1]["function"]["strict"]) = (json!(0), json!(strict));
        let (content, calls, _) = said(&house, &body, &both).await;
        assert_eq!((content.as_str(), calls.as_slice()), (Some("Well."), two.as_slice()));
        body["tool_choice"] = json!("required");
        let (content, calls, _) = said(&house, &body, &both["Well.".len()..]).await;
        assert_eq!((content, calls.as_slice()), (Value::Null, two.as_slice()));
        body["parallel_tool_calls"] = json!(false);
        assert_eq!(said(&house, &body, &both["Well.".len()..]).await.1, two[..1]);
        body["tool_choice"] = json!("auto");
        let (content, calls, reason) = said(&house, &body, &both).await;
        assert_eq!((content.as_str(), calls.as_slice()), (Some("Well."), &two[..1]));
        assert_eq!(reason, "tool_calls");
        body["tool_choice"] = json!("none");
        let (content, calls, reason) = said(&house, &body, &both).await;
        assert_eq!((content.as_str(), calls.len(), reason.as_str()), (Some(both.as_str()), 0, "stop"));
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    let house = start(Setup { template: TAGGED, ..Setup::default() }).await;
    let mut body = asked(json!("required"));
    body["temperature"] = json!(0);
    let text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    // Within the name there is no call yet, and nothing is lost.
    for (max_tokens, content, calls) in [
        (30, json!(&text[..30]), vec![]),
        (60, Value::Null, vec![("weather".to_owned(), text[45..60].to_owned())]),
    ] {
        body["max_tokens"] = json!(max_tokens);
        assert_eq!(said(&house, &body, text).await, (content, calls, "length".to_owned()));
    }
}

#[tokio::test]
async fn arguments_are_streamed_while_they_are_made() {
    let house = start(Setup { template: TAGGED, ..Setup::default() }).await;
    let mut body = asked(json!("required"));
    (body["temperature"], body["stream"]) = (json!(0), json!(true));
    let text = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    house.gate.say(text);
    let chunks = house.stream(CHAT, &body).await.all().await;
    let deltas: Vec<&Value> =
        chunks.iter().map(|c| &c["choices"][0]["delta"]["tool_calls"][0]).filter(|c| !c.is_null()).collect();
    // A token is a character here.
    assert_eq!(deltas.len(), 1 + "{\"city\": \"Oslo\"}".len());
    assert_eq!(
        (&deltas[0]["function"]["name"], &deltas[0]["function"]["arguments"]),
        (&json!("weather"), &json!(""))
    );
}

#[tokio::test]
async fn tools_are_refused_where_the_template_does_not_show_them() {
    let template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>";
    let house = start(Setup { template, ..Setup::default() }).await;
    for choice in ["auto", "required"] {
        let reply = house.post(CHAT, &asked(json!(choice))).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!("tools")));
        let message = reply.json["error"]["message"].as_str().unwrap();
        assert_eq!(message, "the model's chat template does not show tools: leave them out");
    }
    house.ask(CHAT, &asked(json!("none"))).await;
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
        body["parallel_tool_calls"] = json!(false);
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
        let [mut streamed] = calls(&chunks).try_into().expect("one call");
        assert_eq!(streamed["function"], call["function"]);
        assert_eq!((streamed["type"].take(), streamed["id"].is_string()), (json!("function"), true));
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
    let mut twice = function(json!({"name": "f"}));
    twice["tools"] = json!([twice["tools"][0], twice["tools"][0]]);
    let mut uncountable = asked(json!("auto"));
    uncountable["parallel_tool_calls"] = json!(1);
    let mut strict =
        function(json!({"name": "f", "strict": true, "parameters": {"type": "object", "not": {}}}));
    strict["tool_choice"] = json!("auto");
    for (body, param, word) in [
        (one(json!({"type": "retrieval"})), "tools", "tools[0].type"),
        (function(json!({})), "tools", "tools[0].function.name"),
        (function(json!({"name": "two words"})), "tools", "letters"),
        (function(json!({"name": "f", "parameters": "x"})), "tools", "must be an object"),
        (function(json!({"name": "f", "strict": 1})), "tools", "strict must be true or false"),
        (function(json!({"name": "f", "parameters": {"type": "object", "not": {}}})), "tools", "\"not\""),
        (twice, "tools", "two tools have the name 'f'"),
        (uncountable, "parallel_tool_calls", "true or false"),
        (strict, "tools", "\"not\""),
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
