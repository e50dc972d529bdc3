//! Decoding in pieces against decoding whole, by the reference.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::text::samples::{build, byte_fallback, byte_level, metaspace, words};

fn pieces(tokenizer: &crate::text::Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer();
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

fn with_decoder(mut sample: Value, decoder: Value) -> Value {
    sample["decoder"] = decoder;
    sample
}

fn strip(start: usize, stop: usize) -> Value {
    json!({"type": "Strip", "content": "t", "start": start, "stop": stop})
}

/// Every kind of decoder that is read.
fn samples() -> Vec<Value> {
    let bytes = byte_level()["decoder"].clone();
    let sequence = |steps: Value| json!({"type": "Sequence", "decoders": steps});
    let replace = json!({"type": "Replace", "pattern": {"Regex": "h+"}, "content": "<h>"});
    vec![
        byte_level(),
        byte_fallback(),
        metaspace(),
        words(),
        with_decoder(byte_level(), sequence(json!([bytes, strip(2, 1), {"type": "Fuse"}]))),
        with_decoder(byte_fallback(), sequence(json!([replace, {"type": "ByteFallback"}, strip(1, 0)]))),
        with_decoder(words(), sequence(json!([{"type": "Fuse"}, strip(1, 2)]))),
    ]
}

proptest! {
    #[test]
    fn pieces_are_what_the_reference_decodes(
        sample in 0usize..7,
        ids in prop::collection::vec(0u32..300, 0..40),
        short in any::<bool>(),
    ) {
        let json = &samples()[sample];
        let tokenizer = build(json, None).unwrap();
        let reference: tokenizers::Tokenizer = serde_json::from_value(json.clone()).unwrap();
        let ids: Vec<u32> = if short { ids.iter().map(|id| id % 12).collect() } else { ids };
        // The reference subtracts beyond zero where a stripped text is too short for all it would cut.
        let strips = json["decoder"].to_string().contains("\"stop\":1") || json["decoder"].to_string().contains("\"stop\":2");
        let whole = tokenizer.decode(&ids);
        if !strips || whole.chars().count() > 3 {
            prop_assert_eq!(&whole, &reference.decode(&ids, true).unwrap());
        }
        prop_assert_eq!(pieces(&tokenizer, &ids).concat(), whole);
    }

    #[test]
    fn text_comes_back(text in "[ -~é€😀\\n\u{0}-\u{20}]{0,60}") {
        let tokenizer = build(&byte_level(), None).unwrap();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text.clone());
        for sample in [byte_fallback(), metaspace()] {
            let tokenizer = build(&sample, None).unwrap();
            if !text.starts_with(' ') && !text.contains('▁') && !text.is_empty() {
                prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text.clone());
            }
        }
    }
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let tokenizer = build(&byte_level(), None).unwrap();
    let ids = tokenizer.encode_raw("é😀x").unwrap();
    assert_eq!(pieces(&tokenizer, &ids), ["é", "", "", "😀", "x", ""]);
    assert_eq!(pieces(&tokenizer, &ids[..3]), ["é", "", "", "\u{fffd}"]);
    // The bytes that were begun and not ended are one mistake, and what follows is not lost.
    let broken = [ids[1], *ids.last().unwrap()];
    assert_eq!(pieces(&tokenizer, &broken), ["", "\u{fffd}x", ""]);
    let tokenizer = build(&byte_fallback(), None).unwrap();
    let ids = tokenizer.encode_raw("a😀b").unwrap();
    assert_eq!(pieces(&tokenizer, &ids), ["", "a", "", "", "", "", "😀b", ""]);
}

#[test]
fn the_space_before_the_first_word_is_not_of_the_text() {
    for sample in [byte_fallback(), metaspace()] {
        let tokenizer = build(&sample, None).unwrap();
        let ids = tokenizer.encode("the the").unwrap();
        assert_eq!(tokenizer.decode(&ids), "the the");
        // Two spaces lose one, and only at the start.
        let (space, a) = (3, 4);
        assert_eq!(pieces(&tokenizer, &[space, a, space, a]).concat(), "a a");
    }
}

#[test]
fn special_and_unknown_ids_are_no_text() {
    let tokenizer = build(&byte_level(), None).unwrap();
    assert_eq!(tokenizer.decode(&[0, 1, 399, u32::MAX]), "");
    let tokenizer = build(&words(), None).unwrap();
    assert_eq!(tokenizer.decode(&[1, 3, 2, 4, 0, 5]), "one two three");
}

#[test]
fn a_decoder_that_is_not_supported_is_named() {
    let ctc = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    let error = build(&with_decoder(words(), ctc), None).err().unwrap().to_string();
    assert!(error.contains("'CTC' is not supported; supported: ByteLevel"), "{error}");
    let steps = json!([{"type": "Fuse"}, {"type": "ByteFallback"}]);
    let late = json!({"type": "Sequence", "decoders": steps});
    let error = build(&with_decoder(words(), late), None).err().unwrap().to_string();
    assert!(error.contains("'ByteFallback after a step that fuses'"), "{error}");
}

#[test]
fn a_long_text_costs_the_same_for_each_token() {
    // 2^20 tokens, all bytes of one run or all of one character's begin: quadratic work would not end.
    for (sample, id) in [(byte_level(), 200), (byte_fallback(), 200), (metaspace(), 200), (words(), 3)] {
        let tokenizer = build(&sample, None).unwrap();
        assert!(tokenizer.decode(&vec![id; 1 << 20]).len() >= 1 << 20);
    }
}
