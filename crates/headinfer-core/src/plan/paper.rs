//! Device memory of the layouts that the HeadInfer paper compares (arXiv 2502.12574, section 4), for any model:
//! what a figure of ours is drawn against.

use super::kv_bytes_per_token;
use crate::model::spec::ModelSpec;

/// Prefill chunk of the paper's chunked runs, tokens.
const PAPER_CHUNK: u64 = 10_000;

/// A way to place KV and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaperLayout {
    /// Everything on the device, the prompt in one piece.
    Standard,
    /// Everything on the device, the prompt in chunks.
    Chunked,
    /// KV in 4 bits, the prompt in one piece.
    FourBit,
    /// Two layers of KV on the device, the prompt in one piece.
    LayerWise,
    /// Two heads of KV on the device, the prompt in chunks.
    HeadInfer,
}

impl PaperLayout {
    /// All, in the paper's order.
    pub const ALL: [PaperLayout; 5] =
        [Self::Standard, Self::Chunked, Self::FourBit, Self::LayerWise, Self::HeadInfer];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Chunked => "chunked",
            Self::FourBit => "4-bit KV",
            Self::LayerWise => "layer-wise",
            Self::HeadInfer => "paper's head-wise",
        }
    }

    /// Device bytes: weights, KV and activations. Activations are the MLP's gate and up rows and one hidden row
    /// per token in flight, bf16, which gives the paper's 64 GiB at 1 Mi tokens of Llama-3-8B.
    pub fn device_bytes(self, spec: &ModelSpec, context: u64) -> u64 {
        let weights = spec.parameters() * 2;
        let kv = kv_bytes_per_token(spec) * context;
        let kv = match self {
            Self::Standard | Self::Chunked => kv,
            Self::FourBit => kv / 4,
            Self::LayerWise => kv / spec.layers as u64 * spec.layers.min(2) as u64,
            Self::HeadInfer => kv / (spec.layers * spec.kv_heads) as u64 * 2,
        };
        let in_flight = match self {
            Self::Standard | Self::FourBit | Self::LayerWise => context,
            Self::Chunked | Self::HeadInfer => context.min(PAPER_CHUNK),
        };
        weights + kv + in_flight * (2 * spec.intermediate + spec.hidden) as u64 * 2
    }
}
