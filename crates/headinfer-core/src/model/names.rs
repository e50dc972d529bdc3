//! Tensor names of Hugging Face checkpoints. All families read here share one scheme.

use crate::model::spec::{LayerTensor, TensorId};

/// The name of a tensor in the checkpoint.
pub fn checkpoint_name(id: TensorId) -> String {
    match id {
        TensorId::Embed => "model.embed_tokens.weight".into(),
        TensorId::FinalNorm => "model.norm.weight".into(),
        TensorId::LmHead => "lm_head.weight".into(),
        TensorId::Layer(layer, tensor) => format!("model.layers.{layer}.{}", within_layer(tensor)),
    }
}

fn within_layer(tensor: LayerTensor) -> &'static str {
    match tensor {
        LayerTensor::AttnNorm => "input_layernorm.weight",
        LayerTensor::Q => "self_attn.q_proj.weight",
        LayerTensor::K => "self_attn.k_proj.weight",
        LayerTensor::V => "self_attn.v_proj.weight",
        LayerTensor::QBias => "self_attn.q_proj.bias",
        LayerTensor::KBias => "self_attn.k_proj.bias",
        LayerTensor::VBias => "self_attn.v_proj.bias",
        LayerTensor::QNorm => "self_attn.q_norm.weight",
        LayerTensor::KNorm => "self_attn.k_norm.weight",
        LayerTensor::O => "self_attn.o_proj.weight",
        LayerTensor::OBias => "self_attn.o_proj.bias",
        LayerTensor::MlpNorm => "post_attention_layernorm.weight",
        LayerTensor::Gate => "mlp.gate_proj.weight",
        LayerTensor::Up => "mlp.up_proj.weight",
        LayerTensor::Down => "mlp.down_proj.weight",
        LayerTensor::GateBias => "mlp.gate_proj.bias",
        LayerTensor::UpBias => "mlp.up_proj.bias",
        LayerTensor::DownBias => "mlp.down_proj.bias",
    }
}

/// Whether the checkpoint stores this tensor with one dimension (norms and biases).
pub(crate) fn is_vector(id: TensorId) -> bool {
    use LayerTensor as T;
    match id {
        TensorId::Embed | TensorId::LmHead => false,
        TensorId::FinalNorm => true,
        TensorId::Layer(_, t) => !matches!(t, T::Q | T::K | T::V | T::O | T::Gate | T::Up | T::Down),
    }
}
