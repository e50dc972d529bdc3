//! No bytes make the reader of stored sessions panic, and what it takes for sound is sealed to the same bytes.
#![no_main]

use headinfer_core::store::format::{open, seal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Ok(contents) = open(file) {
        let mut again = file.to_vec();
        seal(&mut again, &contents.shape, &contents.link, &contents.ids);
        assert_eq!(again, file);
    }
});
