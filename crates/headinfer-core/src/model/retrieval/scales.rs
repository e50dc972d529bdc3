//! The few real numbers of the circuit, each to be rounded to bf16 where it becomes a weight: a rounding is the same
//! for every element it meets, so codes keep equal sizes.

use super::Sizes;
use super::clock::Clock;
use super::spaces::Spaces;

/// Between the right key and any other, as softmax sees it: e^-32 times 8 Mi tokens is still 1e-7, and half of it
/// may be lost to rounding.
const SCORE_GAP: f64 = 32.0;
/// Between the logits of the right name and of any other, at least.
const LOGIT_GAP: f64 = 16.0;

/// Weights of the circuit. The RMSNorm before a layer multiplies by about `norm`, which is known because the
/// constant outweighs all else.
#[derive(Clone, Debug)]
pub(super) struct Scales {
    /// The constant in the residual stream.
    pub(super) constant: f32,
    /// Score of one clock pair at distance 1.
    pub(super) tick_score: f64,
    /// Query and key weights of layer 0: length of a clock pair's vector, per unit of the constant.
    pub(super) tick: f64,
    /// Query and key weights of the layers that match.
    pub(super) matching: f32,
    /// Value weights of layer 0 and of the others: they undo the norm.
    pub(super) value: [f32; 2],
    /// Output weights of layer 0 and of the others: the share of one query head.
    pub(super) share: [f32; 2],
    /// The output head.
    pub(super) logit: f32,
    /// Multiplies the random law of the MLPs' last projection.
    pub(super) mlp: f32,
}

impl Scales {
    pub(super) fn new(sizes: &Sizes, clock: &Clock, spaces: &Spaces, distance: u32) -> Self {
        let code = spaces.code() as f64;
        // Squared, at least 16 codes: the norm then moves by 3 % at most with what was found.
        let constant = power_of_two((4.0 * code.sqrt()).log2().ceil());
        // Of codes of squared length `code`, this many are in the stream.
        let norm = |codes: f64| (sizes.hidden as f64 / (constant * constant + codes * code)).sqrt();
        let root = (sizes.head_dim as f64).sqrt();
        let tick_score = SCORE_GAP / clock.gap();
        // Each bit that differs changes a dot product by 2.
        let bit_score = SCORE_GAP / (2.0 * f64::from(distance));
        let least_lead = 2.0 * f64::from(distance) * spaces.slices as f64;
        let sharers = spaces.sharers() as f64;
        let free = (sizes.layers * spaces.free().len().max(1)) as f64;
        Self {
            constant: constant as f32,
            tick_score,
            tick: (tick_score * root).sqrt() / (constant * norm(2.0)),
            matching: ((bit_score * root).sqrt() / norm(3.5)) as f32,
            value: [(1.0 / norm(2.0)) as f32, (1.0 / norm(3.5)) as f32],
            share: [(1.0 / sharers) as f32, (1.0 / (sharers * (sizes.layers - 1) as f64)) as f32],
            logit: (LOGIT_GAP / (least_lead * norm(4.0))) as f32,
            // All layers together write less than one code's square.
            mlp: power_of_two((code / free).sqrt().log2().floor()) as f32,
        }
    }
}

fn power_of_two(exponent: f64) -> f64 {
    2f64.powi(exponent as i32)
}
