//! What a model is, as far as bytes and arithmetic need to know.

use crate::dtype::DType;
use crate::model::rope::Rope;

/// Architectures that are read. Each differs only in what the flags of [`ModelSpec`] say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: QKV bias.
    Qwen2,
    /// Qwen3: QK norm.
    Qwen3,
}

/// Shape and options of a decoder-only transformer with RMSNorm, rotary positions, grouped-query attention
/// and a SwiGLU MLP. Every field has been checked: counts are positive, `q_heads` divides by `kv_heads`,
/// `head_dim` is even.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// For people: the folder, hub id or built-in name.
    pub name: String,
    /// Which family's checkpoint names and defaults apply.
    pub architecture: Architecture,
    /// Rows of the embedding and of the output head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads per layer.
    pub q_heads: usize,
    /// KV heads per layer.
    pub kv_heads: usize,
    /// Elements of one head; need not be `hidden / q_heads`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Longest context the model was trained for.
    pub max_position: usize,
    /// The output head is the embedding.
    pub tied: bool,
    /// Q, K and V projections have a bias.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub o_bias: bool,
    /// Gate, up and down projections have a bias.
    pub mlp_bias: bool,
    /// Q and K are RMS-normalised per head before the rotation.
    pub qk_norm: bool,
    /// Per layer: a query at position p sees keys in (p - window, p]; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// Element type the checkpoint declares (`dtype`, `torch_dtype`).
    pub dtype: DType,
    /// Token put before a text, if any.
    pub bos: Option<u32>,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
}

impl ModelSpec {
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.q_heads * self.head_dim
    }

    /// Width of all K (or V) heads together.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Every tensor the model has, with its shape, in the order of the forward pass. 1-D tensors have one
    /// column: `[n, 1]`.
    pub fn tensors(&self) -> Vec<(TensorId, [usize; 2])> {
        use LayerTensor as T;
        let (h, q, kv, i) = (self.hidden, self.q_dim(), self.kv_dim(), self.intermediate);
        let mut out = vec![(TensorId::Embed, [self.vocab, h])];
        for layer in 0..self.layers {
            let mut add = |tensor, shape| out.push((TensorId::Layer(layer, tensor), shape));
            add(T::AttnNorm, [h, 1]);
            add(T::Q, [q, h]);
            add(T::K, [kv, h]);
            add(T::V, [kv, h]);
            if self.qkv_bias {
                add(T::QBias, [q, 1]);
                add(T::KBias, [kv, 1]);
                add(T::VBias, [kv, 1]);
            }
            if self.qk_norm {
                add(T::QNorm, [self.head_dim, 1]);
                add(T::KNorm, [self.head_dim, 1]);
            }
            add(T::O, [h, q]);
            if self.o_bias {
                add(T::OBias, [h, 1]);
            }
            add(T::MlpNorm, [h, 1]);
            add(T::Gate, [i, h]);
            add(T::Up, [i, h]);
            if self.mlp_bias {
                add(T::GateBias, [i, 1]);
                add(T::UpBias, [i, 1]);
            }
            add(T::Down, [h, i]);
            if self.mlp_bias {
                add(T::DownBias, [h, 1]);
            }
        }
        out.push((TensorId::FinalNorm, [h, 1]));
        if !self.tied {
            out.push((TensorId::LmHead, [self.vocab, h]));
        }
        out
    }

    /// Elements over all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|(_, [r, c])| (*r as u64) * (*c as u64)).sum()
    }
}

/// Names one tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorId {
    /// Token embedding `[vocab, hidden]`.
    Embed,
    /// A tensor of one layer.
    Layer(usize, LayerTensor),
    /// RMSNorm before the output head `[hidden]`.
    FinalNorm,
    /// Output head `[vocab, hidden]`; absent when tied.
    LmHead,
}

/// Names one tensor of a layer. Projections are `[out, in]` as in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerTensor {
    /// RMSNorm before attention `[hidden]`.
    AttnNorm,
    /// Query projection `[q_heads * head_dim, hidden]`.
    Q,
    /// Key projection `[kv_heads * head_dim, hidden]`.
    K,
    /// Value projection `[kv_heads * head_dim, hidden]`.
    V,
    /// Bias of the query projection.
    QBias,
    /// Bias of the key projection.
    KBias,
    /// Bias of the value projection.
    VBias,
    /// RMSNorm of each query head `[head_dim]`.
    QNorm,
    /// RMSNorm of each key head `[head_dim]`.
    KNorm,
    /// Attention output projection `[hidden, q_heads * head_dim]`.
    O,
    /// Bias of the output projection.
    OBias,
    /// RMSNorm before the MLP `[hidden]`.
    MlpNorm,
    /// Gate projection `[intermediate, hidden]`.
    Gate,
    /// Up projection `[intermediate, hidden]`.
    Up,
    /// Down projection `[hidden, intermediate]`.
    Down,
    /// Bias of the gate projection.
    GateBias,
    /// Bias of the up projection.
    UpBias,
    /// Bias of the down projection.
    DownBias,
}
