//! Shapes, requests, random draws and steps that the tests share, here and in the CUDA crate.

use headinfer_core::dtype::DType;
use headinfer_core::engine::Session;
use headinfer_core::model::rope::{Rope, RopeScaling};
use headinfer_core::model::spec::{Architecture, ModelSpec};
use headinfer_core::plan::{DeviceKind, Machine, Overrides, PlacementMode, Request, Together, WeightsMode};

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
        guesses: true,
        placement: PlacementMode::Auto,
        weights: WeightsMode::Auto,
        overrides: Overrides::default(),
        machine,
    }
}

/// Rates by which the CPU pays even for a small model, and for more heads in every split.
pub(crate) fn slow_link(device: DeviceKind) -> Machine {
    let (link_bytes_s, host_bytes_s) = (1e9, 1e9);
    let together = Some(Together { link_bytes_s, host_bytes_s, host_flops: 1e12 });
    Machine { device_bytes_s: 1e15, link_bytes_s, host_bytes_s, together, ..request(device, 1).machine }
}

/// Logits of `ids` after what the session holds, in steps of the sizes that `rows` gives; K and V of all tokens.
pub(crate) fn stepwise(
    session: &mut Session,
    ids: &[u32],
    rows: &mut dyn FnMut() -> usize,
) -> (Vec<u32>, Vec<u8>) {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < ids.len() {
        let take = rows().min(ids.len() - at);
        all.extend(session.step(&ids[at..at + take], take).unwrap().iter().map(|x| x.to_bits()));
        at += take;
    }
    let (tokens, token_bytes) = (session.tokens().len(), session.plan().kv_bytes_per_token() as usize);
    let mut kv = vec![0; tokens * token_bytes];
    session.read_rows(0..tokens, &mut kv).unwrap();
    (all, kv)
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
