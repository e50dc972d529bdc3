//! A past that nobody computed: keys and values drawn from a counter-based law, for measurements at depths that
//! would take hours to reach. Any device can reproduce it bit for bit, wherever a head is kept.
//!
//! Arithmetic on integers is modulo 2^64, `mix` and `G` are those of the random weights:
//!
//! ```text
//! key    = mix(seed ^ mix(2 * (layer * kv_heads + head) + (0 for K, 1 for V) + G))
//! z      = mix(key + (index + 1) * G),  index = row * head_dim + element
//! v      = f32(2 * (sum of the four 16-bit parts of z) - 4 * 65535)      exact
//! value  = bf16(f32(v * scale)),  scale = f32(sqrt(3 / (4 * (2^32 - 1))))
//! ```
//!
//! A sum of four uniform numbers is close to normal: mean 0, deviation 1, nothing beyond 3.5.

use half::bf16;
use rayon::prelude::*;

use super::random::{GOLDEN, mix};

/// Elements made by one task.
const CHUNK: usize = 1 << 16;

/// K or V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Keys.
    Key,
    /// Values.
    Value,
}

/// The law of the keys or of the values of one head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyntheticKv {
    /// Start of the half's stream.
    pub key: u64,
}

impl SyntheticKv {
    /// The law of one half of head number `head` = layer · kv_heads + KV head.
    pub fn new(seed: u64, head: usize, half: Half) -> Self {
        let stream = 2 * head as u64 + u64::from(half == Half::Value);
        Self { key: mix(seed ^ mix(stream.wrapping_add(GOLDEN))) }
    }

    /// Element `index` = row · head_dim + element, as the bits of a bf16.
    pub fn value(self, index: u64) -> u16 {
        let z = mix(self.key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)));
        let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
        bf16::from_f32((2 * sum as i64 - 4 * 0xffff) as f32 * Self::scale()).to_bits()
    }

    /// What the integer is multiplied by.
    pub fn scale() -> f32 {
        (3.0 / (4.0 * f64::from(u32::MAX))).sqrt() as f32
    }

    /// Fills `out` with the elements from `first` on, with all threads.
    pub fn fill(self, first: u64, out: &mut [u16]) {
        out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            let first = first + (chunk * CHUNK) as u64;
            values.iter_mut().zip(first..).for_each(|(value, index)| *value = self.value(index));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_close_to_normal() {
        let law = SyntheticKv::new(5, 3, Half::Key);
        let mut bits = vec![0; 1 << 18];
        law.fill(0, &mut bits);
        let values: Vec<f64> = bits.iter().map(|b| bf16::from_bits(*b).to_f64()).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / n;
        // Standard errors: 1/512 and at most sqrt(2)/512; five of them.
        assert!(mean.abs() < 5.0 / 512.0, "{mean}");
        assert!((variance - 1.0).abs() < 7.1 / 512.0, "{variance}");
        assert!(values.iter().all(|v| v.abs() < 3.5));
    }

    #[test]
    fn a_piece_is_a_piece_of_the_whole() {
        let law = SyntheticKv::new(5, 3, Half::Value);
        let (mut whole, mut piece) = (vec![0; 3 * CHUNK], vec![0; CHUNK + 9]);
        law.fill(0, &mut whole);
        law.fill(1000, &mut piece);
        assert_eq!(piece, whole[1000..][..piece.len()]);
    }

    #[test]
    fn heads_halves_and_seeds_differ() {
        let laws = (0..4u64).flat_map(|seed| {
            (0..16).flat_map(move |head| {
                [Half::Key, Half::Value].map(|half| SyntheticKv::new(seed, head, half).key)
            })
        });
        let keys: std::collections::HashSet<u64> = laws.collect();
        assert_eq!(keys.len(), 4 * 16 * 2);
    }
}
