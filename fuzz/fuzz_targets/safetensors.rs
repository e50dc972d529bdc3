//! No bytes make the header parser panic or place a tensor outside the file.
#![no_main]

use headinfer_core::model::safetensors::parse_header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    for entry in parse_header(file).unwrap_or_default().values() {
        assert!(file.get(entry.begin as usize..entry.end as usize).is_some());
    }
});
