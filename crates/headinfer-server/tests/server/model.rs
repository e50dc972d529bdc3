//! A tiny random model with a tokenizer of single characters, and what it answers when nobody else asks.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::dtype::DType;
use headinfer_core::engine::generate::{Limits, generate};
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::engine::{Decoder, Session};
use headinfer_core::model::ModelDigest;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::rope::{Rope, RopeScaling};
use headinfer_core::model::spec::{Architecture, ModelSpec};
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{DeviceKind, Machine, Overrides, PlacementMode, Plan, Request, WeightsMode};
use headinfer_core::text::Tokenizer;
use serde_json::{Value, json};

/// Tokens of a prefill step.
pub(crate) const CHUNK: usize = 32;
/// Ends a text.
pub(crate) const END: u32 = 98;
const SPECIAL: [&str; 6] = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|tools|>"];
pub(crate) const VOCAB: usize = END as usize + SPECIAL.len();

/// Prints roles, contents, calls, and the tools it is shown.
pub(crate) const TEMPLATE: &str = "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>{% endif %}\
    {% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}\
    {{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

static WEIGHTS: LazyLock<Arc<Weights>> = LazyLock::new(|| Arc::new(random_weights(&spec(), 11)));

pub(crate) fn spec() -> ModelSpec {
    ModelSpec {
        name: "tiny".into(),
        architecture: Architecture::Llama,
        vocab: VOCAB,
        hidden: 32,
        layers: 2,
        q_heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate: 48,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        max_position: 1 << 20,
        tied: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; 2],
        dtype: DType::Bf16,
        bos: None,
        eos: vec![END],
    }
}

/// One token per printable ASCII character and newline, and the two bytes of é; special tokens after.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| tokenizer_of(TEMPLATE));
    TOKENIZER.clone()
}

/// The same with another chat template.
pub(crate) fn tokenizer_of(template: &str) -> Arc<Tokenizer> {
    // As the byte-level alphabet spells them: space, newline, and the bytes C3 and A9.
    let mut spelled: Vec<String> = (0x21u8..=0x7e).map(|b| char::from(b).to_string()).collect();
    spelled.extend(["\u{120}", "\u{10a}", "\u{c3}", "\u{a9}"].map(String::from));
    let vocab: Value = spelled.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let special: Vec<Value> = (END..)
        .zip(SPECIAL)
        .map(|(id, content)| {
            json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    let config = json!({"eos_token": "<|end|>", "chat_template": template}).to_string();
    let (file, config) = (file.to_string(), config.as_bytes());
    let tokenizer = Tokenizer::from_json(file.as_bytes(), Some(config), Path::new("tiny"), &spec());
    Arc::new(tokenizer.expect("the tokenizer is read"))
}

/// The plan of one slot, KV offloaded.
pub(crate) fn plan(context: usize) -> Arc<Plan> {
    let request = Request {
        device: DeviceKind::Cpu,
        context,
        device_budget: 1 << 40,
        host_budget: 1 << 40,
        stored: None,
        guesses: true,
        placement: PlacementMode::Offload,
        weights: WeightsMode::Auto,
        overrides: Overrides { chunk: Some(CHUNK), tile: Some(256), ..Overrides::default() },
        machine: Machine::default_cpu(1),
    };
    Arc::new(Plan::new(&spec(), &request).expect("the plan fits"))
}

pub(crate) fn backend(plan: &Arc<Plan>) -> Cpu {
    let options = CpuOptions { threads: 1, ..CpuOptions::default() };
    Cpu::open(plan.clone(), WEIGHTS.clone(), &options).expect("the backend opens")
}

/// The model, by its content.
pub(crate) fn digest() -> ModelDigest {
    ModelDigest::of_weights(&spec(), &WEIGHTS)
}

/// The tokens that follow `ids` in a session nobody shared, `<|end|>` not among them.
pub(crate) fn alone(ids: &[u32], max_tokens: usize, sampling: Sampling) -> Vec<u32> {
    let plan = plan((ids.len() + max_tokens).next_multiple_of(256));
    let mut session = Session::new(plan.clone(), Box::new(backend(&plan)));
    let logits = session.prefill(ids, &mut |_| ControlFlow::Continue(())).expect("prefill").to_vec();
    let limits = Limits { max_tokens, stop_tokens: vec![END] };
    let mut made = Vec::new();
    let mut keep = |token| {
        made.push(token);
        ControlFlow::Continue(())
    };
    let mut decoder = Decoder::plain(&session, &logits);
    generate(&mut session, &mut decoder, &mut Sampler::new(sampling, VOCAB), &limits, &mut keep)
        .expect("generates");
    made
}

/// The text that follows `prompt`, greedily.
pub(crate) fn greedy(prompt: &str, max_tokens: usize) -> String {
    let ids = tokenizer().encode(prompt).expect("encodes");
    tokenizer().decode(&alone(&ids, max_tokens, Sampling::default()))
}

/// A text of `len` tokens that no other `seed` begins with.
pub(crate) fn text(seed: usize, len: usize) -> String {
    let mut text = format!("{seed}:");
    for i in 0.. {
        if text.len() >= len {
            break;
        }
        // Writing into a String cannot fail.
        let _ = write!(text, "{} ", (i * i + seed * 7919) % 9973);
    }
    text.truncate(len);
    text
}
