//! Rotary position embedding: frequencies of each kind, and the table of angles for a range of positions.

use std::f64::consts::PI;

/// How the base frequencies are scaled for long contexts (`rope_scaling` / `rope_parameters` of
/// transformers).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Unscaled.
    Default,
    /// All positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1's frequency-dependent interpolation.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Below `original_max / low_freq_factor` wavelengths interpolate.
        low_freq_factor: f64,
        /// Above `original_max / high_freq_factor` wavelengths stay.
        high_freq_factor: f64,
        /// Context the base model was trained for.
        original_max: f64,
    },
    /// YaRN (arXiv 2309.00071), by-parts interpolation with an attention factor.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations above which a dimension stays.
        beta_fast: f64,
        /// Rotations below which a dimension interpolates fully.
        beta_slow: f64,
        /// Context the base model was trained for.
        original_max: f64,
        /// Multiplies cos and sin (already resolved from mscale and defaults).
        attention_factor: f64,
        /// Whether the correction range is rounded to whole dimensions (transformers: `truncate`).
        truncate: bool,
    },
}

/// Rotary embedding over `head_dim` elements: pairs (i, i + head_dim/2), the layout of Hugging Face
/// checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}

impl Rope {
    /// Angle per position of each pair of dimensions `[head_dim / 2]`, scaling applied, in radians.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        match self.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => plain
                .map(|f| {
                    // Rotations within the original context decide: many stay, few are divided, between is
                    // mixed.
                    let rotations = original_max * f / (2.0 * PI);
                    let keep = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let keep = keep.clamp(0.0, 1.0);
                    (1.0 - keep) * f / factor + keep * f
                })
                .collect(),
            RopeScaling::Yarn { factor, .. } => {
                let (low, high) = self.yarn_range(head_dim);
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let interpolate = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        interpolate * f / factor + (1.0 - interpolate) * f
                    })
                    .collect()
            }
        }
    }

    /// First and last pair of the ramp between kept and interpolated frequencies; never equal.
    fn yarn_range(&self, head_dim: usize) -> (f64, f64) {
        let RopeScaling::Yarn { beta_fast, beta_slow, original_max, truncate, .. } = self.scaling else {
            return (0.0, 1.0);
        };
        let dim = head_dim as f64;
        let pair_with =
            |rotations: f64| dim * (original_max / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair_with(beta_fast), pair_with(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high { (low, high + 0.001) } else { (low, high) }
    }

    /// Multiplies cos and sin; 1 for all kinds but YaRN.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Fills `cos` and `sin`, each `[rows, head_dim / 2]`, for positions `start..start + rows`. Angles are
    /// formed in f64 and only the results are rounded: at a million positions an f32 angle is wrong by whole
    /// degrees.
    ///
    /// # Panics
    /// When a table's length is not `rows * head_dim / 2`.
    pub fn table(&self, head_dim: usize, start: u64, rows: usize, cos: &mut [f32], sin: &mut [f32]) {
        let half = head_dim / 2;
        assert_eq!(
            (cos.len(), sin.len()),
            (rows * half, rows * half),
            "rope tables hold rows * head_dim / 2"
        );
        let inv_freq = self.inv_freq(head_dim);
        let scale = self.attention_factor();
        for row in 0..rows {
            let position = (start + row as u64) as f64;
            let range = row * half..(row + 1) * half;
            let out = cos[range.clone()].iter_mut().zip(&mut sin[range]);
            for ((cos, sin), f) in out.zip(&inv_freq) {
                let (s, c) = (position * f).sin_cos();
                *cos = (c * scale) as f32;
                *sin = (s * scale) as f32;
            }
        }
    }
}

#[cfg(test)]
#[path = "rope_tests.rs"]
mod tests;
