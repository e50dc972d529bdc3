//! What the rotary positions are used for. Pairs of dimensions that turn fast are a clock: layer 0 points them
//! one token back. Pairs that hardly turn within the longest context hold content, at any distance.

use std::f64::consts::PI;

/// A class of head dimensions: from how many pairs on it holds, how fast successive clock pairs slow down, the
/// longest context, and a lower bound of what the clock tells apart (see [`Clock::lag`]), found by scanning all
/// distances for all head dimensions of the class up to 256.
struct Class {
    pairs: usize,
    ratio: f64,
    max_position: usize,
    gap: f64,
}

#[rustfmt::skip] // A table.
const CLASSES: [Class; 3] = [
    Class { pairs: 32, ratio: 6.5,  max_position: 1 << 23, gap: 0.41 },
    Class { pairs: 16, ratio: 11.5, max_position: 1 << 23, gap: 0.16 },
    Class { pairs: 8,  ratio: 24.5, max_position: 1 << 16, gap: 0.028 },
];

/// The base is to be at most ratio^46, about 1e38: others form it in f32.
const RATIO_POWER_MAX: usize = 46;
/// Most radians that a content pair turns over the longest context.
const TURN_MAX: f64 = 0.5;

/// How the pairs (i, i + head_dim / 2) of a head are used.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    theta: f64,
    max_position: usize,
    gap: f64,
    /// Radians per token of every pair, and whether it is part of the clock.
    pairs: Vec<(f64, bool)>,
}

impl Clock {
    /// # Errors
    /// A sentence when heads are too small, too large or odd.
    pub(super) fn new(head_dim: usize) -> Result<Self, String> {
        let pairs = head_dim / 2;
        let class = CLASSES.iter().find(|c| pairs >= c.pairs);
        let Some(class) = class.filter(|_| head_dim.is_multiple_of(2) && head_dim <= 256) else {
            return Err(format!("needs an even head dimension within 16..=256, not {head_dim}"));
        };
        // Wide heads have pairs to spare: every stride-th fast one is part of the clock.
        let stride = pairs.div_ceil(RATIO_POWER_MAX);
        // A power of ten reads back from any JSON exactly.
        let power = (class.ratio.log10() * pairs as f64 / stride as f64).round();
        let theta = 10f64.powi(power as i32);
        let pair = |i: usize| {
            let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64);
            let is_slow = frequency * class.max_position as f64 <= TURN_MAX;
            (frequency, !is_slow && i.is_multiple_of(stride))
        };
        let pairs = (0..pairs).map(pair).collect();
        Ok(Self { theta, max_position: class.max_position, gap: class.gap, pairs })
    }

    /// Base of the rotary positions.
    pub(super) fn theta(&self) -> f64 {
        self.theta
    }

    /// Longest context over which the clock is unambiguous and content stays put.
    pub(super) fn max_position(&self) -> usize {
        self.max_position
    }

    /// Pairs of the clock and their radians per token.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (usize, f64)> {
        self.pairs
            .iter()
            .enumerate()
            .filter(|(_, (_, tick))| *tick)
            .map(|(i, (frequency, _))| (i, *frequency))
    }

    /// Dimensions that hold content, slowest first.
    pub(super) fn slow(&self) -> Vec<usize> {
        let is_slow = |frequency: f64| frequency * self.max_position as f64 <= TURN_MAX;
        let pairs = (0..self.pairs.len()).rev().filter(|i| is_slow(self.pairs[*i].0));
        pairs.flat_map(|i| [i, i + self.pairs.len()]).collect()
    }

    /// At least this much lies between [`Clock::lag`] of distance 1 and of any other.
    pub(super) fn gap(&self) -> f64 {
        self.gap
    }

    /// Sum over the clock of cos(frequency * (distance - 1)) - 1: 0 at distance 1, and negative elsewhere.
    pub(super) fn lag(&self, distance: usize) -> f64 {
        let off = distance as f64 - 1.0;
        self.ticks().map(|(_, frequency)| (off * frequency % (2.0 * PI)).cos() - 1.0).sum()
    }
}
