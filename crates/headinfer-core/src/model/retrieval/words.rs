//! Words for tokens: lower-case, pronounceable, each of its own.

use std::collections::HashSet;

use crate::model::random::mix;

const SEED: u64 = 0x776f_7264;
const CONSONANTS: &[u8; 10] = b"bdflmnrstv";
const VOWELS: &[u8; 5] = b"aeiou";

/// Names have three syllables, filler words two.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub(super) names: Vec<String>,
    pub(super) fillers: Vec<String>,
}

impl Words {
    /// At most 1250 fillers: half of what two syllables allow, so that the draw ends soon.
    pub(super) fn make(names: usize, fillers: usize) -> Self {
        Self { names: distinct(names, 3), fillers: distinct(fillers, 2) }
    }
}

fn distinct(count: usize, syllables: u64) -> Vec<String> {
    let mut seen = HashSet::with_capacity(count);
    let draws = (0u64..).map(|i| {
        let bits = mix(SEED ^ mix((syllables << 32) | i));
        (0..syllables).flat_map(|s| syllable((bits >> (16 * s)) as usize % 50)).collect::<String>()
    });
    draws.filter(|word| seen.insert(word.clone())).take(count).collect()
}

fn syllable(i: usize) -> [char; 2] {
    [char::from(CONSONANTS[i % 10]), char::from(VOWELS[i / 10])]
}
