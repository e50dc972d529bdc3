//! No text makes the config parser panic, and every spec it accepts survives being written and read.
#![no_main]

use headinfer_core::model::config::parse_config;
use headinfer_core::model::write::config_json;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(spec) = parse_config(text, "fuzz") {
        assert_eq!(spec.q_heads % spec.kv_heads, 0);
        assert_eq!(spec.head_dim % 2, 0);
        assert_eq!(spec.windows.len(), spec.layers);
        assert!(spec.parameters() < 1 << 61);
        let again = parse_config(&config_json(&spec).to_string(), "fuzz");
        assert_eq!(again.expect("a written spec is read"), spec);
    }
});
