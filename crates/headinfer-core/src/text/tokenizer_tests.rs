//! Tokenizer files: what they mean, and which are refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::text::samples::{
    bos_processor, build, byte_fallback, byte_level, metaspace, spec, special, words,
};

fn refused(tokenizer: &Value, config: Option<&Value>) -> String {
    let error = build(tokenizer, config).err().expect("refused");
    assert!(error.is_input() && !error.to_string().contains('\n'), "{error}");
    error.to_string()
}

#[test]
fn the_bos_token_is_put_before_a_text_once() {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
    let tokenizer = build(&byte_level(), Some(&config)).unwrap();
    let text = tokenizer.encode_raw("the inn").unwrap();
    let with_bos = [&[0], text.as_slice()].concat();
    assert_eq!(tokenizer.encode("the inn").unwrap(), with_bos);
    assert_eq!(tokenizer.encode("<s>the inn").unwrap(), with_bos);
    assert_eq!(tokenizer.encode_raw("<s>the inn").unwrap(), with_bos);
    assert_eq!(tokenizer.encode("").unwrap(), [0]);
    assert_eq!(tokenizer.encode("<s>").unwrap(), [0]);
    assert_eq!(tokenizer.encode_raw("").unwrap(), [] as [u32; 0]);
    assert_eq!(tokenizer.end_tokens(), [1]);
}

#[test]
fn ids_are_those_of_the_reference() {
    for sample in [byte_level(), byte_fallback(), metaspace(), words()] {
        let tokenizer = build(&sample, None).unwrap();
        let reference: tokenizers::Tokenizer = serde_json::from_value(sample).unwrap();
        for text in ["the inn's  é 😀\n\nthe", " a b", "one two four", "</s> the<s>"] {
            let whole = reference.encode(text, true).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), whole.get_ids(), "{text}");
            let raw = reference.encode(text, false).unwrap();
            assert_eq!(tokenizer.encode_raw(text).unwrap(), raw.get_ids(), "{text}");
        }
    }
}

#[test]
fn nothing_is_cut_off_padded_or_random() {
    let mut sample = byte_level();
    let plain = build(&sample, None).unwrap();
    sample["truncation"] =
        json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    sample["padding"] = json!({"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>"});
    sample["model"]["dropout"] = json!(0.9);
    let tokenizer = build(&sample, None).unwrap();
    let text = "the the the the the the";
    assert_eq!(tokenizer.encode(text).unwrap(), plain.encode(text).unwrap());
}

#[test]
fn the_flags_of_the_llama_classes_hold() {
    let config = |class: &str, bos: bool, eos: bool| {
        json!({"tokenizer_class": class, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": bos,
            "add_eos_token": eos})
    };
    let ids = |config: Value| build(&byte_fallback(), Some(&config)).unwrap().encode("").unwrap();
    assert_eq!(ids(config("LlamaTokenizerFast", true, true)), [1, 2]);
    assert_eq!(ids(config("LlamaTokenizer", false, false)), [] as [u32; 0]);
    assert_eq!(ids(config("PreTrainedTokenizerFast", false, true)), [1]);
}

#[test]
fn a_token_the_configuration_calls_special_is() {
    let config = json!({"eos_token": "three", "pad_token": "<absent>"});
    let tokenizer = build(&words(), Some(&config)).unwrap();
    assert_eq!(tokenizer.decode(&[3, 5, 4]), "one two");
    assert_eq!(tokenizer.end_tokens(), [5]);
    assert_eq!(build(&words(), None).unwrap().end_tokens(), [] as [u32; 0]);
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let mut sample = words();
    sample["model"]["vocab"]["far"] = json!(400);
    sample["model"]["vocab"]["farther"] = json!(401);
    let error = refused(&sample, None);
    assert!(error.starts_with("m/tokenizer.json: `model.vocab` has token 'far' with id 400"), "{error}");
    assert!(error.contains("`vocab_size` is 400"), "{error}");
    let mut sample = byte_level();
    sample["post_processor"] = bos_processor(400);
    assert!(refused(&sample, None).contains("`post_processor` adds token 400"));
    // An added token gets the next free id, whatever the file says.
    let mut small = spec();
    small.vocab = 7;
    let mut sample = words();
    sample["added_tokens"].as_array_mut().unwrap().push(special(7, "<more>"));
    let error =
        Tokenizer::from_json(sample.to_string().as_bytes(), None, Path::new("m"), &small).err().unwrap();
    assert!(error.to_string().contains("'<more>' with id 7"), "{error}");
}

#[test]
fn files_that_are_no_tokenizer_are_refused() {
    let load =
        |json: &[u8]| Tokenizer::from_json(json, None, Path::new("m"), &spec()).err().unwrap().to_string();
    for json in [&b""[..], b"{", b"\xff", b"[]", b"{}", b"{\"model\": 3}", b"{\"model\": {}}"] {
        let error = load(json);
        assert!(error.starts_with("m/tokenizer.json: ") && !error.contains('\n'), "{error}");
    }
    let deep = ["{\"decoder\":".repeat(100_000), "}".repeat(100_000)].concat();
    assert!(load(deep.as_bytes()).contains("is not JSON"));
    let with = |key: &str, value: Value| {
        let mut sample = byte_level();
        sample["model"][key] = value;
        refused(&sample, None)
    };
    assert!(with("merges", json!(["q q q"])).contains("`model.merges` has 'q q q'"));
    assert!(with("merges", json!([["Ġthe", "Ġthe"]])).contains("`model.merges` has 'Ġthe Ġthe'"));
    assert!(with("merges", json!(["q"])).contains("not a tokenizer that can be read"));
    assert!(with("type", json!("Unigram")).contains("'Unigram' is not supported; supported: BPE, WordLevel"));
    assert!(with("continuing_subword_prefix", json!("##")).contains("`model.continuing_subword_prefix`"));
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let absent = json!({"SpecialToken": {"id": "<x>", "type_id": 0}});
    for (single, problem) in [
        (json!([text("A"), text("A")]), "must keep the text once"),
        (json!([]), "must keep the text once"),
        (json!([text("B")]), "must keep the text once"),
        (json!([absent, text("A")]), "adds '<x>', which is not in its `special_tokens`"),
    ] {
        let mut sample = byte_level();
        let template =
            json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        sample["post_processor"] = json!({"type": "Sequence", "processors": [template]});
        assert_eq!(refused(&sample, None), format!("m/tokenizer.json: `post_processor` {problem}"));
    }
}

#[test]
fn a_missing_file_is_named_with_the_way_round_it() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(dir.path(), &spec()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json: is missing") && error.contains("logits --ids"), "{error}");
    std::fs::create_dir(dir.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::load(dir.path(), &spec()).err().unwrap().to_string();
    assert!(error.ends_with("tokenizer.json: is not a file"), "{error}");
}

#[test]
fn a_folder_is_read_with_its_configuration_and_template() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer.json", byte_level().to_string());
    let tokenizer = Tokenizer::load(dir.path(), &spec()).unwrap();
    assert!(!tokenizer.has_chat_template());
    write(
        "tokenizer_config.json",
        json!({"bos_token": "<s>", "chat_template": "from the configuration"}).to_string(),
    );
    let prompt = |t: &Tokenizer| t.chat_prompt(&[], None, false).unwrap();
    assert_eq!(prompt(&Tokenizer::load(dir.path(), &spec()).unwrap()), "from the configuration");
    write("chat_template.jinja", "from the file {{ bos_token }}\n".into());
    assert_eq!(prompt(&Tokenizer::load(dir.path(), &spec()).unwrap()), "from the file <s>");
    write("chat_template.jinja", "x".repeat((1 << 20) + 1));
    let error = Tokenizer::load(dir.path(), &spec()).err().unwrap().to_string();
    assert!(error.contains("chat_template.jinja: has 1048577 bytes"), "{error}");
}

/// What a valid file becomes when bytes of it are lost, doubled or changed.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, any::<u8>(), 0u8..4), 1..6);
    (0usize..4, edits).prop_map(|(sample, edits)| {
        let mut json = [byte_level(), byte_fallback(), metaspace(), words()][sample].clone();
        // Without its vocabulary the file is short, so that edits meet all of it.
        if edits.len() % 2 == 0 {
            json["model"]["vocab"] = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3});
            json["model"]["merges"] = json!([]);
        }
        let mut bytes = json.to_string().into_bytes();
        for (at, length, byte, kind) in edits {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            match kind {
                0 => drop(bytes.drain(at..end)),
                1 => bytes[at] = byte,
                2 => bytes.insert(at, b"0123456789\"{}[],:tfn-"[usize::from(byte) % 21]),
                _ => {
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_damaged_file_is_refused_or_works(bytes in mutated()) {
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes, None, Path::new("m"), &spec()) {
            let ids = tokenizer.encode("<s>the inn's é\n").unwrap_or_default();
            prop_assert!(ids.iter().all(|id| (*id as usize) < spec().vocab));
            tokenizer.decode(&ids);
        }
    }

    #[test]
    fn random_bytes_are_no_tokenizer(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Tokenizer::from_json(&bytes, Some(&bytes), Path::new("m"), &spec()).is_err());
    }
}

#[test]
fn the_bytes_of_tokens_are_the_bytes_of_their_text() {
    for sample in [byte_level(), byte_fallback(), metaspace()] {
        let tokenizer = build(&sample, None).unwrap();
        let text = "the inn, caf\u{e9} \u{1f600}\n";
        let ids = tokenizer.encode_raw(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap()).collect();
        // What some tokenizers put before a text is dropped from its beginning only.
        let bytes = String::from_utf8(bytes).unwrap();
        assert_eq!(bytes.trim_start(), text, "{bytes:?}");
        assert!(ids.iter().any(|id| std::str::from_utf8(&tokenizer.token_bytes(*id).unwrap()).is_err()));
    }
    let tokenizer = build(&byte_level(), None).unwrap();
    assert_eq!((tokenizer.token_bytes(0), tokenizer.special_token(0)), (None, Some("<s>".into())));
    assert_eq!((tokenizer.token_bytes(9999), tokenizer.special_token(2)), (None, None));
}
