//! Shapes, requests and random draws that the tests share.

use headinfer_core::dtype::DType;
use headinfer_core::model::rope::{Rope, RopeScaling};
use headinfer_core::model::spec::{Architecture, ModelSpec};
use headinfer_core::plan::{DeviceKind, Machine, Overrides, PlacementMode, Request, WeightsMode};

/// A small Llama.
pub(crate) fn tiny(layers: usize, q_heads: usize, kv_heads: usize, head_dim: usize) -> ModelSpec {
    ModelSpec {
        name: "tiny".into(),
        architecture: Architecture::Llama,
        vocab: 97,
        hidden: 48,
        layers,
        q_heads,
        kv_heads,
        head_dim,
        intermediate: 80,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        max_position: 1 << 20,
        tied: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; layers],
        dtype: DType::Bf16,
        bos: None,
        eos: Vec::new(),
    }
}

/// Llama-3-8B.
pub(crate) fn llama_3_8b() -> ModelSpec {
    ModelSpec {
        name: "llama-3-8b".into(),
        vocab: 128_256,
        hidden: 4096,
        intermediate: 14_336,
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::Default },
        ..tiny(32, 32, 8, 128)
    }
}

/// A request without limits.
pub(crate) fn request(device: DeviceKind, context: usize) -> Request {
    let machine = match device {
        DeviceKind::Cpu => Machine::default_cpu(2),
        DeviceKind::Cuda => Machine::default_cuda(),
    };
    Request {
        device,
        context,
        device_budget: 1 << 50,
        host_budget: 1 << 50,
        stored: None,
        placement: PlacementMode::Auto,
        weights: WeightsMode::Auto,
        overrides: Overrides::default(),
        machine,
    }
}

/// splitmix64: draws for random configurations.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub(crate) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
