//! `config.json` of transformers 4 and 5 to [`ModelSpec`], with the defaults and the meaning that
//! transformers' configuration classes give each family. What is not implemented is refused by name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::dtype::DType;
use crate::model::config_rope;
use crate::model::error::{ModelError, printable};
use crate::model::json::{Object, parse_object, read_text};
use crate::model::spec::{Architecture, ModelSpec};
use crate::model::weights_files::stored_dtype;

/// Most rows an embedding may have.
pub const VOCAB_MAX: usize = 1 << 24;
/// Widest residual stream.
pub const HIDDEN_MAX: usize = 1 << 20;
/// Widest MLP.
pub const INTERMEDIATE_MAX: usize = 1 << 22;
/// Most decoder layers.
pub const LAYERS_MAX: usize = 1 << 12;
/// Most query heads per layer.
pub const HEADS_MAX: usize = 1 << 12;
/// Most elements of one head.
pub const HEAD_DIM_MAX: usize = 1 << 12;
/// Most elements of K over all layers for one token, a hundred times those of published models: with the longest context
/// the bytes of a cache are still far from the end of 64 bits.
pub const KV_WIDTH_MAX: usize = 1 << 24;
/// Longest context a config may state, and widest window.
pub const POSITION_MAX: usize = 1 << 40;
/// Radians per position: published models have 1 at most; above this, angles of far positions mean nothing.
const FREQUENCY_MAX: f64 = 1e6;

const SUPPORTED_ARCHITECTURES: &str =
    "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM";

/// Reads `dir/config.json`, and the stop tokens of `dir/generation_config.json` where that exists. An element type that
/// the config does not declare is that of the weights, where they are there.
///
/// # Errors
/// [`ModelError`] naming the file and the field.
pub fn load_config(dir: &Path) -> Result<ModelSpec, ModelError> {
    let name = dir.display().to_string();
    let text = read_text(&dir.join("config.json"))?;
    let mut spec = read_spec(&text, &name, || stored_dtype(dir))?;
    let generation = dir.join("generation_config.json");
    if generation.exists() {
        let map = parse_object(&read_text(&generation)?, &generation)?;
        let config = Object::new(&generation, "", &map);
        if config.get("eos_token_id").is_some() {
            spec.eos = token_ids(config, "eos_token_id", &[], spec.vocab)?;
        }
    }
    Ok(spec)
}

/// Parses the text of a `config.json`. `name` becomes the spec's name and, with `/config.json`, the path in
/// errors. An element type that it does not declare is f32.
///
/// # Errors
/// [`ModelError`] naming the field: not JSON, an unknown architecture, rope kind or activation, a quantised
/// checkpoint, a size that is zero, absent or past the limits above, heads that do not divide, an odd head.
pub fn parse_config(text: &str, name: &str) -> Result<ModelSpec, ModelError> {
    read_spec(text, name, || None)
}

/// `stored` tells the element type that the weights have, when the config is silent.
fn read_spec(
    text: &str,
    name: &str,
    stored: impl FnOnce() -> Option<DType>,
) -> Result<ModelSpec, ModelError> {
    let path = Path::new(name).join("config.json");
    let map = parse_object(text, &path)?;
    let config = Object::new(&path, "", &map);
    let architecture = architecture(config)?;
    refuse_unsupported(config)?;
    let defaults = Defaults::of(architecture);

    let hidden = config.required_count("hidden_size", HIDDEN_MAX)?;
    let layers = config.required_count("num_hidden_layers", LAYERS_MAX)?;
    let vocab = config.required_count("vocab_size", VOCAB_MAX)?;
    let heads = heads(config, &defaults, hidden, layers)?;
    let max_position =
        config.count("max_position_embeddings", POSITION_MAX)?.unwrap_or(defaults.max_position);
    let rope = config_rope::parse(config, &map, max_position)?;
    if !rope.inv_freq(heads.dim).iter().all(|f| (0.0..=FREQUENCY_MAX).contains(f)) {
        let problem = format!("and the rope scaling give a frequency that is not in 0..{FREQUENCY_MAX}");
        return Err(config.error("rope_theta", problem));
    }
    let flag = |key| Ok::<bool, ModelError>(config.flag(key)?.unwrap_or(false));
    let attention_bias = match architecture {
        Architecture::Llama | Architecture::Qwen3 => flag("attention_bias")?,
        Architecture::Mistral | Architecture::Qwen2 => false,
    };
    Ok(ModelSpec {
        name: name.into(),
        architecture,
        vocab,
        hidden,
        layers,
        q_heads: heads.q,
        kv_heads: heads.kv,
        head_dim: heads.dim,
        intermediate: config.required_count("intermediate_size", INTERMEDIATE_MAX)?,
        norm_eps: norm_eps(config)?,
        rope,
        max_position,
        tied: flag("tie_word_embeddings")?,
        qkv_bias: attention_bias || architecture == Architecture::Qwen2,
        o_bias: attention_bias,
        mlp_bias: architecture == Architecture::Llama && flag("mlp_bias")?,
        qk_norm: architecture == Architecture::Qwen3,
        windows: windows(config, architecture, layers)?,
        dtype: dtype(config)?.or_else(stored).unwrap_or(DType::F32),
        bos: token_ids(config, "bos_token_id", defaults.bos, vocab)?.first().copied(),
        eos: token_ids(config, "eos_token_id", defaults.eos, vocab)?,
    })
}

/// What each family's configuration class assumes for absent fields (transformers 4 and 5 agree).
struct Defaults {
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position: usize,
    bos: &'static [i64],
    eos: &'static [i64],
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let (kv_heads, head_dim, max_position) = match architecture {
            Architecture::Llama => (None, None, 2048),
            Architecture::Mistral => (Some(8), None, 131_072),
            Architecture::Qwen2 => (Some(32), None, 32_768),
            Architecture::Qwen3 => (Some(32), Some(128), 32_768),
        };
        let (bos, eos): (&[i64], &[i64]) = match architecture {
            Architecture::Llama | Architecture::Mistral => (&[1], &[2]),
            Architecture::Qwen2 | Architecture::Qwen3 => (&[], &[]),
        };
        Defaults { kv_heads, head_dim, max_position, bos, eos }
    }
}

fn architecture(config: Object<'_>) -> Result<Architecture, ModelError> {
    let model_type = config.text("model_type")?;
    let class = match config.get("architectures") {
        None => None,
        Some(Value::Array(list)) if list.is_empty() => None,
        Some(Value::Array(list)) => {
            let first = list.first().and_then(Value::as_str);
            Some(first.ok_or_else(|| config.error("architectures", "must be a list of strings"))?)
        }
        Some(_) => return Err(config.error("architectures", "must be a list of strings")),
    };
    let unsupported = |key, value| config.unsupported(key, "architecture", value, SUPPORTED_ARCHITECTURES);
    let by_class = match class {
        None => None,
        Some("LlamaForCausalLM") => Some(Architecture::Llama),
        Some("MistralForCausalLM") => Some(Architecture::Mistral),
        Some("Qwen2ForCausalLM") => Some(Architecture::Qwen2),
        Some("Qwen3ForCausalLM") => Some(Architecture::Qwen3),
        Some(other) => return Err(unsupported("architectures", other)),
    };
    let by_type = match model_type {
        None => None,
        Some("llama") => Some(Architecture::Llama),
        Some("mistral") => Some(Architecture::Mistral),
        Some("qwen2") => Some(Architecture::Qwen2),
        Some("qwen3") => Some(Architecture::Qwen3),
        Some(other) => return Err(unsupported("model_type", other)),
    };
    match (by_class, by_type) {
        (Some(a), Some(b)) if a != b => Err(config.error("model_type", "contradicts `architectures`")),
        (Some(a), _) | (None, Some(a)) => Ok(a),
        (None, None) => Err(config.error("architectures", "is missing")),
    }
}

fn refuse_unsupported(config: Object<'_>) -> Result<(), ModelError> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(value) = config.get(key) {
            let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
            return Err(config.unsupported(key, "quantisation", method, "bf16, f16 and f32 checkpoints"));
        }
    }
    match config.text("hidden_act")? {
        // transformers gives SiLU both names.
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(config.unsupported("hidden_act", "activation", other, "silu")),
    }
}

struct Heads {
    q: usize,
    kv: usize,
    dim: usize,
}

fn heads(config: Object<'_>, defaults: &Defaults, hidden: usize, layers: usize) -> Result<Heads, ModelError> {
    let q = config.required_count("num_attention_heads", HEADS_MAX)?;
    let kv = match config.count("num_key_value_heads", HEADS_MAX)? {
        Some(n) => n,
        None if config.is_null("num_key_value_heads") => q,
        None => defaults.kv_heads.unwrap_or(q),
    };
    if !q.is_multiple_of(kv) {
        let problem = format!("is {kv}, which does not divide `num_attention_heads` {q}");
        return Err(config.error("num_key_value_heads", problem));
    }
    let dim = match config.count("head_dim", HEAD_DIM_MAX)? {
        Some(n) => n,
        None if config.is_null("head_dim") => hidden / q,
        None => defaults.head_dim.unwrap_or(hidden / q),
    };
    if dim == 0 || dim > HEAD_DIM_MAX || !dim.is_multiple_of(2) {
        return Err(config.error("head_dim", format!("is {dim}, must be even and from 2 to {HEAD_DIM_MAX}")));
    }
    let width = layers * kv * dim;
    if width > KV_WIDTH_MAX {
        let problem =
            format!("times `num_hidden_layers` and the head's size is {width}, more than {KV_WIDTH_MAX}");
        return Err(config.error("num_key_value_heads", problem));
    }
    Ok(Heads { q, kv, dim })
}

fn norm_eps(config: Object<'_>) -> Result<f32, ModelError> {
    let eps = config.number("rms_norm_eps")?.unwrap_or(1e-6);
    if !(0.0..1.0).contains(&eps) {
        return Err(config.error("rms_norm_eps", format!("is {eps}, must be at least 0 and below 1")));
    }
    Ok(eps as f32)
}

/// Mistral: a window (4096 where the field is absent, none where it is null). Qwen: only with `use_sliding_window`, and
/// from `max_window_layers` on. In both `layer_types`, where given, says which layers have it: such a Mistral is what
/// transformers calls a Ministral.
fn windows(
    config: Object<'_>,
    architecture: Architecture,
    layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let default = if config.is_null("sliding_window") { None } else { Some(4096) };
    let used = match architecture {
        Architecture::Llama => return Ok(vec![None; layers]),
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => config.flag("use_sliding_window")?.unwrap_or(false),
    };
    let window = if used { config.count("sliding_window", POSITION_MAX)?.or(default) } else { None };
    if let Some(kinds) = config.get("layer_types") {
        return listed_windows(config, kinds, layers, window);
    }
    let first = match (architecture, config.get("max_window_layers")) {
        (Architecture::Mistral, _) => 0,
        (_, None) => 28,
        (_, Some(v)) => v.as_u64().ok_or_else(|| {
            config.error("max_window_layers", format!("is {}, must be a count", printable(&v.to_string())))
        })?,
    };
    Ok((0..layers).map(|i| window.filter(|_| i as u64 >= first)).collect())
}

fn listed_windows(
    config: Object<'_>,
    kinds: &Value,
    layers: usize,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, ModelError> {
    let kinds = kinds.as_array().ok_or_else(|| config.error("layer_types", "must be a list of strings"))?;
    if kinds.len() != layers {
        let problem = format!("has {} entries, `num_hidden_layers` is {layers}", kinds.len());
        return Err(config.error("layer_types", problem));
    }
    let one = |kind: &Value| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(n)) => Ok(Some(n)),
        (Some("sliding_attention"), None) => {
            Err(config.error("layer_types", "has a sliding layer, but the config gives no window"))
        }
        (Some(other), _) => {
            Err(config.unsupported("layer_types", "layer kind", other, "full_attention, sliding_attention"))
        }
        (None, _) => Err(config.error("layer_types", "must be a list of strings")),
    };
    kinds.iter().map(one).collect()
}

fn dtype(config: Object<'_>) -> Result<Option<DType>, ModelError> {
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    let Some(text) = config.text(key)? else {
        return Ok(None);
    };
    let known = match text.strip_prefix("torch.").unwrap_or(text) {
        "bfloat16" => DType::Bf16,
        "float16" | "half" => DType::F16,
        "float32" | "float" => DType::F32,
        other => return Err(config.unsupported(key, "element type", other, "bfloat16, float16, float32")),
    };
    Ok(Some(known))
}

/// One id or a list of them. Ids outside the vocabulary can never be met, and some checkpoints have them
/// (-1 for "none"), so they are left out.
fn token_ids(config: Object<'_>, key: &str, default: &[i64], vocab: usize) -> Result<Vec<u32>, ModelError> {
    let id = |v: &Value| {
        v.as_i64().ok_or_else(|| config.error(key, "must be a token id, a list of them, or null"))
    };
    let ids: Vec<i64> = match config.get(key) {
        None if config.is_null(key) => Vec::new(),
        None => default.to_vec(),
        Some(Value::Array(list)) => list.iter().map(id).collect::<Result<_, _>>()?,
        Some(one) => vec![id(one)?],
    };
    let mut known: Vec<u32> = Vec::new();
    for id in ids {
        match u32::try_from(id) {
            Ok(id) if (id as usize) < vocab && !known.contains(&id) => known.push(id),
            _ => tracing::debug!(field = key, id, "left out: repeated or outside the vocabulary"),
        }
    }
    Ok(known)
}

/// The object under `key`, where present, not null and not empty.
pub(crate) fn non_empty<'a>(
    config: Object<'a>,
    key: &str,
) -> Result<Option<&'a Map<String, Value>>, ModelError> {
    match config.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) if map.is_empty() => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(config.error(key, "must be an object or null")),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
