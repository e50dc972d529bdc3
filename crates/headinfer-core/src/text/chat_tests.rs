//! Prompts of small templates in the manner of three families. The expected texts are those of jinja2 3.1 as
//! transformers sets it up (`trim_blocks`, `lstrip_blocks`, loop controls, its `tojson`).

use serde_json::{Value, json};

use super::*;
use crate::text::samples::{build, byte_level};

const LLAMA3: &str = include_str!("templates/llama3.jinja");
const QWEN: &str = include_str!("templates/qwen.jinja");
const MISTRAL: &str = include_str!("templates/mistral.jinja");

const PLAIN: &str = r#"[{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi\n"},
    {"role": "assistant", "content": "<think>a</think>\n\nHello"}, {"role": "user", "content": "Bye & <b>"}]"#;
const CALLS: &str = r#"[{"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
        "function": {"name": "look", "arguments": "{\"where\": \"dér\", \"a\": [1, 2.0, true, null]}"}}]},
    {"role": "tool", "content": "there", "name": "look", "tool_call_id": "1"}]"#;
const TOOLS: &str = r#"[{"type": "function", "function": {"name": "look", "description":
    "Looks <there> & 'here' é", "parameters": {"type": "object", "properties": {"where": {"type": "string"},
    "far": {"type": "number", "default": 1e-05}}, "required": ["where"], "none": [], "x": {}}}}]"#;

fn messages(json: &str) -> Vec<Message> {
    serde_json::from_str(json).unwrap()
}

fn with_template(template: impl Into<Value>) -> Tokenizer {
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template.into()});
    build(&byte_level(), Some(&config)).unwrap()
}

fn prompt(template: &str, messages: &[Message], options: &ChatOptions) -> String {
    with_template(template).chat_prompt_with(messages, options).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn llama_3_prompts_are_those_of_jinja() {
    let today = Date::new(2024, 7, 6);
    let options = ChatOptions { add_generation_prompt: true, today, ..ChatOptions::default() };
    let turn =
        |role: &str, text: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>");
    let open = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    let expected = [
        "<s>",
        &turn("system", "Today: 06 Jul 2024\n\nBe brief."),
        &turn("user", "Hi"),
        &turn("assistant", "<think>a</think>\n\nHello"),
        &turn("user", "Bye & <b>"),
        open,
    ];
    assert_eq!(prompt(LLAMA3, &messages(PLAIN), &options), expected.concat());
    let undated = ChatOptions { today: None, ..options };
    assert!(prompt(LLAMA3, &messages(PLAIN), &undated).contains("Today: 26 Jul 2024"));

    let tools: Json = serde_json::from_str(TOOLS).unwrap();
    let options = ChatOptions { tools: Some(&tools), ..options };
    let listed = "{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"look\",\n        \
        \"description\": \"Looks <there> & 'here' é\",\n        \"parameters\": {\n            \
        \"type\": \"object\",\n            \"properties\": {\n                \"where\": {\n                    \
        \"type\": \"string\"\n                },\n                \"far\": {\n                    \
        \"type\": \"number\",\n                    \"default\": 1e-05\n                }\n            },\n            \
        \"required\": [\n                \"where\"\n            ],\n            \"none\": [],\n            \
        \"x\": {}\n        }\n    }\n}\n\n";
    let call = "{\"name\": \"look\", \"parameters\": {\"where\": \"dér\", \"a\": [1, 2.0, true, null]}}";
    let expected = [
        "<s>",
        &turn("system", &format!("Today: 06 Jul 2024\n\n{listed}")),
        &turn("user", "Where?"),
        &turn("assistant", call),
        &turn("ipython", "\"there\""),
        open,
    ];
    assert_eq!(prompt(LLAMA3, &messages(CALLS), &options), expected.concat());
}

#[test]
fn qwen_prompts_are_those_of_jinja() {
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let open = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let plain = [
        turn("system", " Be brief. "),
        turn("user", "Hi\n"),
        turn("assistant", "Hello"),
        turn("user", "Bye & <b>"),
        "<|im_start|>assistant\n".into(),
    ];
    assert_eq!(prompt(QWEN, &messages(PLAIN), &open), plain.concat());
    let variables: Json = serde_json::from_str(r#"{"enable_thinking": false}"#).unwrap();
    let silent = ChatOptions { variables: Some(&variables), ..open };
    assert_eq!(prompt(QWEN, &messages(PLAIN), &silent), plain.concat() + "<think>\n\n</think>\n\n");

    let tools: Json = serde_json::from_str(TOOLS).unwrap();
    let listed = "{\"type\": \"function\", \"function\": {\"name\": \"look\", \"description\": \
        \"Looks <there> & 'here' é\", \"parameters\": {\"type\": \"object\", \"properties\": {\"where\": \
        {\"type\": \"string\"}, \"far\": {\"type\": \"number\", \"default\": 1e-05}}, \"required\": [\"where\"], \
        \"none\": [], \"x\": {}}}}";
    let call = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"where\": \"dér\", \"a\": [1, 2.0, true, null]}}\n\
        </tool_call>";
    let expected = [
        turn("system", &format!("# Tools\n<tools>\n{listed}\n</tools>")),
        turn("user", "Where?"),
        turn("assistant", call),
        turn("user", "<tool_response>\nthere\n</tool_response>"),
    ];
    let found = with_template(QWEN).chat_prompt(&messages(CALLS), Some(&tools), false).unwrap();
    assert_eq!(found, expected.concat());
}

#[test]
fn mistral_prompts_are_those_of_jinja_and_its_refusals_are_told() {
    let all = messages(PLAIN);
    let expected = "<s>\n[INST] Hi\n [/INST] <think>a</think>\n\nHello</s>\n[INST] Bye & <b> [/INST]";
    assert_eq!(prompt(MISTRAL, &all[1..], &ChatOptions::default()), expected);
    match with_template(MISTRAL).chat_prompt(&all[2..], None, true) {
        Err(ChatError::Refused(message)) => {
            assert_eq!(message, "roles must alternate: user, assistant, user")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_prompt_begins_with_one_bos_token() {
    let tokenizer = with_template(MISTRAL);
    let prompt = tokenizer.chat_prompt(&messages(PLAIN)[1..], None, false).unwrap();
    let ids = tokenizer.encode_raw(&prompt).unwrap();
    assert_eq!(ids, tokenizer.encode(&prompt).unwrap());
    assert!(ids[0] == 0 && ids[1] != 0);
}

#[test]
fn tools_have_a_template_of_their_own_where_there_is_one() {
    let list = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    let (tokenizer, tools) = (with_template(list), Json::from(vec![1]));
    assert_eq!(tokenizer.chat_prompt(&[], None, false).unwrap(), "d");
    assert_eq!(tokenizer.chat_prompt(&[], Some(&tools), false).unwrap(), "t");
    let named = with_template(json!([{"name": "rag", "template": "r"}]));
    let error = named.chat_prompt(&[], None, false).unwrap_err().to_string();
    assert_eq!(error, "m/tokenizer_config.json: `chat_template` has no template named 'default', only: rag");
}

#[test]
fn a_model_without_a_template_says_so() {
    let tokenizer = build(&byte_level(), None).unwrap();
    assert!(!tokenizer.has_chat_template());
    let error = tokenizer.chat_prompt(&[], None, true).unwrap_err();
    assert!(matches!(error, ChatError::NoTemplate { .. }));
    assert!(error.to_string().contains("no chat template"), "{error}");
}

#[test]
fn content_is_text_or_parts_of_text() {
    let read = |content: &str| {
        serde_json::from_str::<Message>(&format!(r#"{{"role": "user", "content": {content}}}"#))
    };
    let parts = r#"[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]"#;
    assert_eq!(read(parts).unwrap().content.as_deref(), Some("a\nb"));
    assert_eq!(read("null").unwrap().content, None);
    assert_eq!(serde_json::from_str::<Message>(r#"{"role": "user"}"#).unwrap().content, None);
    let refused = |content: &str| read(content).unwrap_err().to_string();
    assert!(refused(r#"[{"type": "image_url"}]"#).contains("'image_url'; only text"));
    assert!(refused(r#"[{"type": "text"}]"#).contains("needs a string `text`"));
    assert!(refused("3").contains("must be a string, null or a list"));
    assert!(refused(r#"{"a": 1}"#).contains("must be a string, null or a list"));
}

#[test]
fn too_many_messages_are_refused() {
    let many = vec![Message::default(); MESSAGES_MAX + 1];
    let error = with_template("x").chat_prompt(&many, None, true).unwrap_err();
    assert!(matches!(error, ChatError::TooLong { messages: 65_537, .. }));
}
