//! Cut texts have the tokens of whole ones.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::text::samples::{byte_fallback, byte_level, metaspace, special, words};

fn inner(json: Value) -> tokenizers::Tokenizer {
    serde_json::from_value(json).unwrap()
}

fn with_pattern(pattern: &str) -> Value {
    let mut sample = byte_level();
    sample["normalizer"] = json!({"type": "NFC"});
    sample["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    sample
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn pieces_have_the_tokens_of_the_whole(
        pattern in 0usize..4,
        text in "([a-z]|the|'s|[0-9]|[ \n\r\t]|\n|\n|[.,/]|é|e\u{301}|\u{301}|</s>|<s>|\u{3000}){0,80}",
        piece_bytes in 1usize..20,
    ) {
        let json = PATTERNS.get(pattern).map_or_else(byte_level, |p| with_pattern(p));
        let tokenizer = inner(json);
        let splitter = Splitter { piece_bytes, ..Splitter::new(&tokenizer).expect("known") };
        let parts = splitter.parts(&text);
        prop_assert_eq!(parts.concat(), text.clone());
        let ids = |text: &str| tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
        let pieces: Vec<u32> = parts.into_iter().flat_map(ids).collect();
        prop_assert_eq!(pieces, ids(&text));
    }
}

#[test]
fn a_long_text_is_cut() {
    let splitter = Splitter::new(&inner(byte_level())).unwrap();
    let text = "a line of text\n".repeat(100_000);
    let parts = splitter.parts(&text);
    assert!(parts.len() >= 5 && parts.iter().all(|p| p.ends_with("text\n")));
    assert_eq!(splitter.parts("a\nb"), ["a\nb"]);
    assert_eq!(splitter.parts(&" ".repeat(1 << 20)).len(), 1);
}

#[test]
fn a_tokenizer_that_is_not_known_is_never_cut() {
    for sample in [byte_fallback(), metaspace(), words(), with_pattern("\\w+")] {
        assert!(Splitter::new(&inner(sample)).is_none());
    }
    let mut lines = byte_level();
    lines["added_tokens"].as_array_mut().unwrap().push(special(2, "a\nb"));
    assert!(Splitter::new(&inner(lines)).is_none());
    let mut left = byte_level();
    left["added_tokens"][0]["lstrip"] = json!(true);
    assert!(Splitter::new(&inner(left)).is_none());
    let mut prefix = byte_level();
    prefix["pre_tokenizer"]["add_prefix_space"] = json!(true);
    assert!(Splitter::new(&inner(prefix)).is_none());
}
