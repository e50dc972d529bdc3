//! Codes of tokens: one word of +-1 bits to each slice, drawn so that no name is mistaken for anything else in any
//! one slice.

use super::Kind;
use super::spaces::Spaces;
use crate::model::random::mix;

const SEED: u64 = 0x7265_7472_6965_7665;

/// Key and query codes of all tokens. Bit j of a word set means +1.
#[derive(Clone, Debug)]
pub(super) struct Codes {
    slices: usize,
    names: usize,
    fillers: usize,
    distance: u32,
    /// `[rows, slices]`. Rows: names, key codes of value tokens, key codes of filler, query codes of filler.
    words: Vec<u128>,
}

impl Codes {
    /// Codes of `names` names and `fillers` others.
    pub(super) fn draw(spaces: &Spaces, names: usize, fillers: usize) -> Self {
        let (slices, width) = (spaces.slices, spaces.width);
        let distance = distance(width, names);
        let rows = 2 * names + 2 * fillers;
        let mut words = vec![0u128; rows * slices];
        for slice in 0..slices {
            let mut kept: Vec<u128> = Vec::with_capacity(names);
            let mut stream = mix(SEED ^ mix(((width as u64) << 32) | slice as u64));
            for row in 0..rows {
                // At least half of all draws are far enough from every name: see `distance`.
                let word = loop {
                    stream = stream.wrapping_add(1);
                    let word = draw(stream, width);
                    if kept.iter().all(|name| (name ^ word).count_ones() >= distance) {
                        break word;
                    }
                };
                if row < names {
                    kept.push(word);
                }
                words[row * slices + slice] = word;
            }
        }
        Self { slices, names, fillers, distance, words }
    }

    /// Least bits between a name's code and any other of the same slice.
    pub(super) fn distance(&self) -> u32 {
        self.distance
    }

    /// What a token offers to who looks at its successor, `[slices]`.
    pub(super) fn key(&self, kind: Kind) -> &[u128] {
        self.row(match kind {
            Kind::Key(i) => i,
            Kind::Value(i) => self.names + i,
            Kind::Filler(i) => 2 * self.names + i,
        })
    }

    /// What a token looks for, and what it says when found, `[slices]`.
    pub(super) fn query(&self, kind: Kind) -> &[u128] {
        self.row(match kind {
            Kind::Key(i) | Kind::Value(i) => i,
            Kind::Filler(i) => 2 * self.names + self.fillers + i,
        })
    }

    fn row(&self, row: usize) -> &[u128] {
        &self.words[row * self.slices..][..self.slices]
    }
}

fn draw(stream: u64, width: usize) -> u128 {
    let (low, high) = (mix(2 * stream), mix(2 * stream + 1));
    ((u128::from(high) << 64) | u128::from(low)) >> (128 - width)
}

/// The largest distance at which the balls around all names cover at most half of the words of `width` bits.
fn distance(width: usize, names: usize) -> u32 {
    let budget = 2f64.powi(width as i32 - 1) / names as f64;
    let (mut ball, mut shell, mut radius) = (0.0, 1.0, 0u32);
    while ball + shell <= budget {
        ball += shell;
        radius += 1;
        shell *= (width as f64 - f64::from(radius) + 1.0) / f64::from(radius);
    }
    // A ball of `radius - 1` bits fits, so words can be `radius` apart.
    radius
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances_follow_from_the_size_of_balls() {
        // 16 names of 7 bits: 16 * 1 <= 64 < 16 * (1 + 7). 8 names: 8 * (1 + 7) <= 64 < 8 * (1 + 7 + 21).
        assert_eq!((distance(7, 16), distance(7, 8)), (1, 2));
        // 2^30 / 256 lies between the balls of radius 7 (3.6 million) and 8 (11.5 million) of 31 bits.
        assert_eq!(distance(31, 256), 8);
    }
}
