//! What config.json means, family by family, and what is refused.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::rope::RopeScaling;

fn base(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 1000, "hidden_size": 96, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
    })
}

fn with(mut config: Value, extra: Value) -> Value {
    let extra = extra.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(extra);
    config
}

fn parse(config: &Value) -> Result<ModelSpec, ModelError> {
    parse_config(&config.to_string(), "m")
}

fn good(config: Value) -> ModelSpec {
    parse(&config).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn absent_fields_have_the_defaults_of_the_family() {
    let llama = good(json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    }));
    assert_eq!((llama.kv_heads, llama.head_dim, llama.max_position), (32, 128, 2048));
    assert_eq!((llama.norm_eps, llama.rope.theta, llama.dtype), (1e-6, 1e4, DType::F32));
    assert_eq!((llama.bos, llama.eos.as_slice(), llama.tied), (Some(1), [2].as_slice(), false));
    let mistral = good(base("mistral"));
    assert_eq!((mistral.windows, mistral.max_position), (vec![Some(4096); 4], 131_072));
    let qwen2 = good(base("qwen2"));
    assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
    assert_eq!((qwen2.windows, qwen2.eos, qwen2.head_dim), (vec![None; 4], vec![], 16));
    let qwen3 = good(base("qwen3"));
    assert!(!qwen3.qkv_bias && qwen3.qk_norm);
    assert_eq!(qwen3.head_dim, 128);
}

#[test]
fn both_generations_of_transformers_say_the_same() {
    let four = json!({
        "rope_theta": 5e5, "torch_dtype": "bfloat16",
        "rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192},
    });
    let five = json!({
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    });
    let (four, five) = (good(with(base("llama"), four)), good(with(base("llama"), five)));
    assert_eq!(four, five);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max: 8192.0,
    };
    assert_eq!((five.rope.theta, five.rope.scaling, five.dtype), (5e5, scaling, DType::Bf16));
}

#[test]
fn yarn_resolves_its_defaults_as_transformers_does() {
    let yarn = |extra: Value| {
        let rope = with(json!({"rope_type": "yarn", "factor": 4.0}), extra);
        let config = json!({"max_position_embeddings": 32768, "rope_parameters": rope});
        match good(with(base("qwen3"), config)).rope.scaling {
            RopeScaling::Yarn { attention_factor, beta_fast, beta_slow, original_max, truncate, factor } => {
                (attention_factor, [beta_fast, beta_slow, original_max, factor], truncate)
            }
            other => panic!("{other:?}"),
        }
    };
    let (gain, rest, truncate) = yarn(json!({}));
    assert!((gain - 1.138629436111989).abs() < 1e-12 && truncate);
    assert_eq!(rest, [32.0, 1.0, 32768.0, 4.0]);
    assert_eq!(yarn(json!({"attention_factor": 1.5})).0, 1.5);
    // mscale counts only beside mscale_all_dim, and zero is not given.
    assert_eq!(yarn(json!({"mscale": 0.5})).0, gain);
    assert_eq!(yarn(json!({"mscale": 0.5, "mscale_all_dim": 0.0})).0, gain);
    assert_eq!(yarn(json!({"mscale": 0.7, "mscale_all_dim": 0.7})).0, 1.0);
    let (_, rest, truncate) = yarn(json!({
        "factor": null, "original_max_position_embeddings": 8192, "beta_fast": 0, "truncate": false,
    }));
    assert_eq!((rest, truncate), ([32.0, 1.0, 8192.0, 4.0], false));
}

#[test]
fn windows_follow_each_family() {
    let windows = |kind: &str, extra: Value| good(with(base(kind), extra)).windows;
    assert_eq!(windows("mistral", json!({"sliding_window": null})), vec![None; 4]);
    assert_eq!(windows("mistral", json!({"sliding_window": 7})), vec![Some(7); 4]);
    assert_eq!(windows("llama", json!({"sliding_window": 7})), vec![None; 4]);
    let used = |extra| with(json!({"use_sliding_window": true, "sliding_window": 7}), extra);
    assert_eq!(windows("qwen2", json!({"sliding_window": 7, "max_window_layers": 0})), vec![None; 4]);
    let from_three = windows("qwen2", used(json!({"max_window_layers": 3})));
    assert_eq!(from_three, [None, None, None, Some(7)]);
    let kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"];
    assert_eq!(windows("qwen3", used(json!({"layer_types": kinds}))), [Some(7), None, None, Some(7)]);
    assert_eq!(windows("mistral", used(json!({"layer_types": kinds}))), [Some(7), None, None, Some(7)]);
    let mixed = good(with(base("mistral"), used(json!({"layer_types": kinds}))));
    assert_eq!(good(crate::model::write::config_json(&mixed)), mixed, "it survives being written");
    assert_eq!(windows("mistral", json!({"layer_types": null, "max_window_layers": 2})), [Some(4096); 4]);
}

#[test]
fn biases_follow_each_family() {
    let flags = |kind: &str| {
        let spec = good(with(base(kind), json!({"attention_bias": true, "mlp_bias": true})));
        (spec.qkv_bias, spec.o_bias, spec.mlp_bias)
    };
    assert_eq!(flags("llama"), (true, true, true));
    assert_eq!(flags("mistral"), (false, false, false));
    assert_eq!(flags("qwen2"), (true, false, false));
    assert_eq!(flags("qwen3"), (true, true, false));
}

#[test]
fn heads_may_be_odd_explicit_or_single() {
    let heads = |extra: Value| {
        let spec = good(with(base("llama"), extra));
        (spec.q_heads, spec.kv_heads, spec.head_dim)
    };
    assert_eq!(heads(json!({"head_dim": 48, "num_key_value_heads": 1})), (6, 1, 48));
    assert_eq!(heads(json!({"head_dim": null, "num_key_value_heads": null})), (6, 6, 16));
    assert_eq!(
        heads(json!({"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": 32})),
        (7, 7, 32)
    );
}

#[test]
fn token_ids_may_be_one_many_or_none() {
    let eos = |value: Value| good(with(base("llama"), json!({"eos_token_id": value}))).eos;
    assert_eq!(eos(json!(5)), [5]);
    assert_eq!(eos(json!([5, 6, 5])), [5, 6]);
    assert_eq!(eos(json!(null)), [] as [u32; 0]);
    assert_eq!(eos(json!([-1, 999, 1000])), [999]);
}

#[test]
fn generation_config_has_the_last_word_on_stop_tokens() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), base("llama").to_string()).unwrap();
    assert_eq!(load_config(dir.path()).unwrap().eos, [2]);
    let generation = dir.path().join("generation_config.json");
    std::fs::write(&generation, r#"{"eos_token_id": [7, 9]}"#).unwrap();
    assert_eq!(load_config(dir.path()).unwrap().eos, [7, 9]);
    std::fs::write(&generation, r#"{"eos_token_id": "x"}"#).unwrap();
    let error = load_config(dir.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("eos_token_id"), "{error}");
}

#[test]
fn what_cannot_be_used_is_refused_by_field_and_value() {
    let rope = |kind: &str| json!({"rope_scaling": {"rope_type": kind, "factor": 2.0}});
    let cases = [
        (json!({"architectures": ["GemmaForCausalLM"]}), "GemmaForCausalLM"),
        (json!({"model_type": "phi3"}), "phi3"),
        (json!({"architectures": ["MistralForCausalLM"]}), "model_type"),
        (json!({"architectures": "LlamaForCausalLM"}), "architectures"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (rope("dynamic"), "dynamic"),
        (rope("longrope"), "longrope"),
        (rope("llama3"), "rope_scaling.low_freq_factor"),
        (json!({"rope_scaling": {"type": "su"}}), "su"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope_scaling.factor"),
        (json!({"rope_scaling": []}), "rope_scaling"),
        (json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}), "full_attention"),
        (json!({"rope_parameters": {"rope_theta": -1.0}}), "rope_parameters.rope_theta"),
        (
            json!({"num_hidden_layers": 4096, "num_key_value_heads": 6, "head_dim": 1024}),
            "num_key_value_heads",
        ),
        (json!({"rope_theta": 1e-320}), "rope_theta"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"rms_norm_eps": -1e-5}), "rms_norm_eps"),
        (json!({"rms_norm_eps": "nan"}), "rms_norm_eps"),
        (json!({"torch_dtype": "float8_e4m3fn"}), "float8_e4m3fn"),
        (json!({"hidden_size": 0}), "hidden_size"),
        (json!({"hidden_size": null}), "hidden_size"),
        (json!({"hidden_size": 1 << 21}), "hidden_size"),
        (json!({"vocab_size": -5}), "vocab_size"),
        (json!({"vocab_size": 1u64 << 60}), "vocab_size"),
        (json!({"num_hidden_layers": 4.5}), "num_hidden_layers"),
        (json!({"num_attention_heads": "6"}), "num_attention_heads"),
        (json!({"num_key_value_heads": 4}), "num_key_value_heads"),
        (json!({"head_dim": 15}), "head_dim"),
        (json!({"num_attention_heads": 100, "num_key_value_heads": 100}), "head_dim"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings"),
        (json!({"eos_token_id": "</s>"}), "eos_token_id"),
    ];
    for (extra, named) in cases {
        let error = parse(&with(base("llama"), extra.clone())).expect_err(&extra.to_string()).to_string();
        assert!(error.contains("m/config.json") && error.contains(named), "{extra}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let qwen = json!({"layer_types": ["sliding_attention", "full_attention", "chunked", "full_attention"]});
    assert!(parse(&with(base("qwen3"), qwen)).unwrap_err().to_string().contains("layer_types"));
}

#[test]
fn what_is_not_an_object_is_refused() {
    let deep = "[".repeat(100_000);
    for text in ["", "[]", "null", "{", "{\"hidden_size\": 1e999}", "{\"rms_norm_eps\": NaN}", &deep] {
        let error = parse_config(text, "m").unwrap_err().to_string();
        assert!(error.starts_with("m/config.json"), "{error}");
    }
}

/// What the doc of `ModelSpec` promises.
fn consistent(spec: &ModelSpec) {
    assert!(spec.tensors().iter().all(|(_, [r, c])| *r > 0 && *c > 0));
    assert_eq!(spec.q_heads % spec.kv_heads, 0);
    assert_eq!(spec.head_dim % 2, 0);
    assert_eq!(spec.windows.len(), spec.layers);
    assert!(spec.windows.iter().flatten().all(|&w| w > 0));
    assert!(spec.norm_eps.is_finite() && spec.norm_eps >= 0.0);
    assert!(spec.rope.inv_freq(spec.head_dim).iter().all(|f| f.is_finite()));
    assert!(spec.eos.iter().chain(&spec.bos).all(|&id| (id as usize) < spec.vocab));
    assert!(spec.parameters() < 1 << 61);
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!([])),
        Just(json!({})),
        Just(json!(["sliding_attention", "full_attention", "full_attention", "sliding_attention"])),
        any::<bool>().prop_map(|b| json!(b)),
        (-2i64..300).prop_map(|n| json!(n)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
        proptest::sample::select(vec!["yarn", "linear", "llama3", "silu", "bfloat16", "qwen2", "x"])
            .prop_map(|s| json!(s)),
    ]
}

const FIELDS: [&str; 24] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "eos_token_id",
    "bos_token_id",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "dtype",
    "model_type",
    "tie_word_embeddings",
    "rope/rope_type",
    "rope/factor",
    "rope/beta_fast",
    "rope/mscale",
    "rope/original_max_position_embeddings",
];

proptest! {
    #[test]
    fn any_text_is_a_spec_or_an_error(text in "\\PC{0,200}") {
        if let Ok(spec) = parse_config(&text, "m") {
            consistent(&spec);
        }
    }

    #[test]
    fn mutated_configs_are_consistent_or_refused(
        family in proptest::sample::select(vec!["llama", "mistral", "qwen2", "qwen3"]),
        changes in proptest::collection::vec((proptest::sample::select(FIELDS.to_vec()), any_value()), 0..5),
    ) {
        let mut config = base(family);
        config["rope_parameters"] = json!({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e5});
        for (field, value) in changes {
            match field.strip_prefix("rope/") {
                Some(key) => config["rope_parameters"][key] = value,
                None => config[field] = value,
            }
        }
        if let Ok(spec) = parse(&config) {
            consistent(&spec);
            let again = parse(&crate::model::write::config_json(&spec)).unwrap();
            assert_eq!(again, spec, "a spec survives being written");
        }
    }
}
