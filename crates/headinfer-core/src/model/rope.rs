//! Rotary position embedding: frequencies of each kind, and the table of angles for a range of positions.

/// How the base frequencies are scaled for long contexts (`rope_scaling` / `rope_parameters` of transformers).
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

/// Rotary embedding over `head_dim` elements: pairs (i, i + head_dim/2), the layout of Hugging Face checkpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Long-context scaling.
    pub scaling: RopeScaling,
}
