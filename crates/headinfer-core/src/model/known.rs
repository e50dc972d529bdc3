//! Shapes of well-known models, for `random:SHAPE` and for planning without a checkpoint.
//!
//! They have the sizes and options of the published models but no trained context limit and no special
//! tokens, since random weights know neither.

use crate::dtype::DType;
use crate::model::rope::{Rope, RopeScaling};
use crate::model::spec::{Architecture, ModelSpec};

/// Context allowed for random weights: 8 Mi tokens.
const MAX_POSITION: usize = 1 << 23;

struct Shape {
    name: &'static str,
    family: Architecture,
    vocab: usize,
    hidden: usize,
    layers: usize,
    /// Query heads, KV heads, elements of one head.
    heads: [usize; 3],
    intermediate: usize,
    theta: f64,
    /// Factor of Llama 3.1's rope scaling, 0 for none.
    llama3_factor: f64,
    tied: bool,
}

#[rustfmt::skip] // One line per model reads as the table it is.
const SHAPES: [Shape; 14] = {
    use Architecture::{Llama, Mistral, Qwen2, Qwen3};
    #[allow(clippy::too_many_arguments, reason = "a row of the table below")]
    const fn row(
        name: &'static str, family: Architecture, vocab: usize, hidden: usize, layers: usize,
        heads: [usize; 3], intermediate: usize, theta: f64, llama3_factor: f64, tied: bool,
    ) -> Shape {
        Shape { name, family, vocab, hidden, layers, heads, intermediate, theta, llama3_factor, tied }
    }
    [
        //  name            family   vocab    hidden layers q   kv  dim  mlp    theta  scale  tied
        row("tiny",         Llama,   512,     64,   2,  [4,  2,  16],  128,   1e4,   0.0,  false),
        row("small",        Llama,   8_192,   512,  8,  [8,  4,  64],  1_408, 5e5,   0.0,  false),
        row("llama-2-7b",   Llama,   32_000,  4096, 32, [32, 32, 128], 11_008, 1e4,  0.0,  false),
        row("llama-3-8b",   Llama,   128_256, 4096, 32, [32, 8,  128], 14_336, 5e5,  0.0,  false),
        row("llama-3-70b",  Llama,   128_256, 8192, 80, [64, 8,  128], 28_672, 5e5,  0.0,  false),
        row("llama-3.1-8b", Llama,   128_256, 4096, 32, [32, 8,  128], 14_336, 5e5,  8.0,  false),
        row("llama-3.2-1b", Llama,   128_256, 2048, 16, [32, 8,  64],  8_192,  5e5,  32.0, true),
        row("llama-3.2-3b", Llama,   128_256, 3072, 28, [24, 8,  128], 8_192,  5e5,  32.0, true),
        row("mistral-7b",   Mistral, 32_768,  4096, 32, [32, 8,  128], 14_336, 1e6,  0.0,  false),
        row("qwen2-7b",     Qwen2,   152_064, 3584, 28, [28, 4,  128], 18_944, 1e6,  0.0,  false),
        row("qwen2.5-7b",   Qwen2,   152_064, 3584, 28, [28, 4,  128], 18_944, 1e6,  0.0,  false),
        row("qwen2.5-0.5b", Qwen2,   151_936, 896,  24, [14, 2,  64],  4_864,  1e6,  0.0,  true),
        row("qwen3-8b",     Qwen3,   151_936, 4096, 36, [32, 8,  128], 12_288, 1e6,  0.0,  false),
        row("qwen3-0.6b",   Qwen3,   151_936, 1024, 28, [16, 8,  128], 3_072,  1e6,  0.0,  true),
    ]
};

/// The spec of a known shape, in bf16, or of its first N layers as `name/N`: so that a context can be measured whose KV
/// over all layers would not fit. `None` for an unknown name, or layers it does not have.
pub fn known_shape(name: &str) -> Option<ModelSpec> {
    let (whole, layers) = match name.split_once('/') {
        Some((whole, layers)) => (whole, Some(layers.parse::<usize>().ok()?)),
        None => (name, None),
    };
    let shape = SHAPES.iter().find(|s| s.name == whole)?;
    let layers = layers.unwrap_or(shape.layers);
    if layers == 0 || layers > shape.layers {
        return None;
    }
    let scaling = if shape.llama3_factor == 0.0 {
        RopeScaling::Default
    } else {
        RopeScaling::Llama3 {
            factor: shape.llama3_factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max: 8192.0,
        }
    };
    let is_qwen = matches!(shape.family, Architecture::Qwen2 | Architecture::Qwen3);
    let [q_heads, kv_heads, head_dim] = shape.heads;
    Some(ModelSpec {
        name: name.into(),
        architecture: shape.family,
        vocab: shape.vocab,
        hidden: shape.hidden,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        intermediate: shape.intermediate,
        norm_eps: if is_qwen { 1e-6 } else { 1e-5 },
        rope: Rope { theta: shape.theta, scaling },
        max_position: MAX_POSITION,
        tied: shape.tied,
        qkv_bias: shape.family == Architecture::Qwen2,
        o_bias: false,
        mlp_bias: false,
        qk_norm: shape.family == Architecture::Qwen3,
        windows: vec![None; layers],
        dtype: DType::Bf16,
        bos: None,
        eos: Vec::new(),
    })
}

/// All names that [`known_shape`] takes, small ones first.
pub fn known_names() -> Vec<&'static str> {
    SHAPES.iter().map(|s| s.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::parse_config;
    use crate::model::write::config_json;

    #[test]
    fn shapes_have_their_published_parameter_counts() {
        let counts = [
            ("llama-2-7b", 6_738_415_616),
            ("llama-3-8b", 8_030_261_248),
            ("llama-3-70b", 70_553_706_496),
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("mistral-7b", 7_248_023_552),
            ("qwen2-7b", 7_615_616_512),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-8b", 8_190_735_360),
            ("qwen3-0.6b", 596_049_920),
        ];
        for (name, parameters) in counts {
            assert_eq!(known_shape(name).unwrap().parameters(), parameters, "{name}");
        }
    }

    #[test]
    fn every_known_shape_survives_its_own_config() {
        for name in known_names() {
            let spec = known_shape(name).unwrap();
            assert_eq!(parse_config(&config_json(&spec).to_string(), name).unwrap(), spec);
        }
        let eight = known_shape("llama-3-8b/24").unwrap();
        assert_eq!((eight.layers, eight.windows.len(), eight.name.as_str()), (24, 24, "llama-3-8b/24"));
        for bad in ["llama-9", "llama-3-8b/0", "llama-3-8b/33", "llama-3-8b/", "llama-3-8b/8/8"] {
            assert_eq!(known_shape(bad), None);
        }
    }
}
