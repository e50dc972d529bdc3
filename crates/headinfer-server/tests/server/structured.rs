//! Answers that obey a schema, whatever the model would rather say.

use serde_json::{Value, json};

use crate::house::{Setup, start};

const CHAT: &str = "/v1/chat/completions";

fn asked(seed: u64, schema: &Value) -> Value {
    json!({"messages": [{"role": "user", "content": "Which?"}], "max_tokens": 300, "temperature": 2, "seed": seed,
        "response_format": {"type": "json_schema", "json_schema": {"name": "choice", "schema": schema}}})
}

#[tokio::test]
async fn a_schema_is_obeyed_streamed_and_whole() {
    let house = start(Setup::default()).await;
    let schema = json!({"type": "object", "required": ["city", "when", "tags"], "additionalProperties": false,
        "properties": {"city": {"enum": ["Oslo", "Rome"]}, "when": {"$ref": "#/$defs/day"},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}},
        "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 31}}});
    for seed in 0..5 {
        let mut body = asked(seed, &schema);
        let answer = house.ask(CHAT, &body).await;
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(content).expect(content);
        assert!(["Oslo", "Rome"].contains(&value["city"].as_str().unwrap()));
        assert!((1..=31).contains(&value["when"].as_u64().unwrap()));
        assert!((1..=3).contains(&value["tags"].as_array().unwrap().len()));
        assert_eq!(value.as_object().unwrap().len(), 3);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        body["stream"] = json!(true);
        let chunks = house.stream(CHAT, &body).await.all().await;
        let streamed: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(streamed, content);
    }
}

#[tokio::test]
async fn an_object_is_the_beginning_of_one_even_when_it_is_cut_off() {
    let house = start(Setup::default()).await;
    let body = json!({"prompt": "x", "max_tokens": 40, "temperature": 2, "seed": 1, "ignore_eos": true,
        "response_format": {"type": "json_object"}});
    let answer = house.ask("/v1/completions", &body).await;
    let text = answer["choices"][0]["text"].as_str().unwrap();
    let read = serde_json::from_str::<Value>(text);
    assert!(text.starts_with('{') && read.is_ok_or_else_eof(), "{text}");
}

trait Beginning {
    fn is_ok_or_else_eof(&self) -> bool;
}

impl Beginning for serde_json::Result<Value> {
    fn is_ok_or_else_eof(&self) -> bool {
        self.as_ref().err().is_none_or(serde_json::Error::is_eof)
    }
}

#[tokio::test]
async fn a_schema_that_is_not_supported_is_refused_with_the_keyword() {
    let house = start(Setup::default()).await;
    let deep = (0..40).fold(json!({}), |inner, _| json!({"items": inner}));
    for (schema, word) in [
        (json!({"type": "object", "not": {"required": ["a"]}}), "not"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "object", "patternProperties": {"(": {}}}), "("),
        (json!({"type": "string", "pattern": "("}), "("),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"$ref": "file:///etc/passwd"}), "file"),
        (json!({"type": "pear"}), "pear"),
        (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
        (deep, "nested"),
        (json!({"type": "string", "maxLength": 1e15}), "maxLength"),
    ] {
        let reply = house.post(CHAT, &asked(1, &schema)).await;
        let error = &reply.json["error"];
        assert_eq!(
            (reply.status.as_u16(), &error["param"]),
            (400, &json!("response_format.json_schema.schema")),
            "{schema} {}",
            reply.text
        );
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(word) && !message.contains('\n'), "{message}");
    }
    for (format, param) in [
        (json!({"type": "json_schema"}), "response_format.json_schema"),
        (json!({"type": "json_schema", "json_schema": {"name": "x"}}), "response_format.json_schema.schema"),
        (json!({"type": "json_schema", "json_schema": {"schema": []}}), "response_format.json_schema.schema"),
        (json!("json"), "response_format"),
    ] {
        let reply = house
            .post(CHAT, &json!({"messages": [{"role": "user", "content": "x"}], "response_format": format}))
            .await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["error"]["param"]),
            (400, &json!(param)),
            "{}",
            reply.text
        );
    }
}

#[tokio::test]
async fn what_a_schema_allows_is_said_as_the_model_would_say_it() {
    let house = start(Setup::default()).await;
    let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["v"],
        "additionalProperties": false,
        "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}}});
    let wide = json!({"type": "object", "additionalProperties": {"type": ["string", "null"]}});
    for (schema, text) in [
        (json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}), "-17"),
        (json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}), "null"),
        (json!({"type": "number", "minimum": 0.5, "maximum": 10}), "9.25"),
        (json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}), "\"AB-12\""),
        (json!({"type": "string", "format": "date"}), "\"2024-02-29\""),
        (json!({"type": "string", "minLength": 2}), "\"\u{e9}\\\"\\n\\u0007\""),
        (json!({"const": {"a": [1, true]}}), "{\"a\": [1, true]}"),
        (json!({"type": "array", "items": {"type": "boolean"}, "maxItems": 2}), "[true,\n  false]"),
        (tree, "{\"v\": 1, \"next\": {\"v\": 2, \"next\": {\"v\": 3}}}"),
        (wide, "{\"x\": \"y\", \"\u{e9}\": null}"),
        (json!({}), "[1, {\"a\": 2.5e3}]"),
    ] {
        let mut body = asked(1, &schema);
        body["temperature"] = json!(0);
        house.gate.say(text);
        let answer = house.ask(CHAT, &body).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{schema}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}
