//! What `tokenizer_config.json` may say.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn parse(config: &Value) -> Result<TextConfig, ModelError> {
    TextConfig::parse(Some(config.to_string().as_bytes()), Path::new("tokenizer_config.json"))
}

#[test]
fn special_tokens_are_strings_or_objects() {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "unk_token": null,
        "pad_token": ""});
    let config = parse(&config).unwrap();
    assert_eq!((config.token("bos_token"), config.token("eos_token")), (Some("<s>"), Some("</s>")));
    assert_eq!(config.special_tokens().count(), 2);
}

#[test]
fn wrong_fields_are_named() {
    for (config, field) in [
        (json!({"bos_token": 3}), "bos_token"),
        (json!({"eos_token": {"text": "x"}}), "eos_token"),
        (json!({"chat_template": 3}), "chat_template"),
        (json!({"chat_template": [{"name": "default"}]}), "chat_template"),
        (json!({"chat_template": ["x"]}), "chat_template"),
        (json!({"chat_template": "x".repeat(TEMPLATE_BYTES_MAX + 1)}), "chat_template"),
        (
            json!({"chat_template": vec![json!({"name": "a", "template": "b"}); TEMPLATES_MAX + 1]}),
            "chat_template",
        ),
        (json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": "yes"}), "add_bos_token"),
    ] {
        let error = parse(&config).unwrap_err().to_string();
        assert!(error.starts_with(&format!("tokenizer_config.json: `{field}` ")), "{error}");
        assert!(error.len() < 300, "{error}");
    }
    assert!(TextConfig::parse(Some(b"\xff"), Path::new("c")).unwrap_err().to_string().contains("UTF-8"));
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in "(\\{|\\}|\"chat_template\"|\"name\"|:|,|\\[|\\]|\"x\"|1|null){0,20}") {
        let _ = TextConfig::parse(Some(text.as_bytes()), Path::new("c"));
    }
}
