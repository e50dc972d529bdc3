//! No bytes make the tokenizer parser panic, and what it accepts makes only ids that the model has.
#![no_main]

use std::path::Path;

use headinfer_core::model::known::known_shape;
use headinfer_core::text::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let spec = known_shape("tiny").expect("a known shape");
    if let Ok(tokenizer) = Tokenizer::from_json(file, Some(file), Path::new("fuzz"), &spec) {
        let ids = tokenizer.encode("<s>the inn's é\n").unwrap_or_default();
        assert!(ids.iter().all(|id| (*id as usize) < spec.vocab));
        tokenizer.decode(&ids);
    }
});
