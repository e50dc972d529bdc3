//! Writes a model in the Hugging Face layout: `config.json` of transformers 5 and one `model.safetensors`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::dtype::DType;
use crate::model::config::parse_config;
use crate::model::error::ModelError;
use crate::model::names::{checkpoint_name, is_vector};
use crate::model::rope::{Rope, RopeScaling};
use crate::model::spec::{Architecture, ModelSpec, TensorId};
use crate::model::weights::Weights;
use crate::model::weights_files::{SINGLE_FILE, is_plain_name};

/// Writes `config.json`, `model.safetensors` and `extra_files` (name, content) to `dir`, which is made when
/// absent. Everything is written under temporary names and renamed at the end: after an error no part is
/// left. Tensors go straight from where they are to the file.
///
/// # Errors
/// [`ModelError::Write`] naming the file; [`ModelError::File`] when the spec has options that its family's
/// `config.json` cannot express.
pub fn write_model(
    dir: &Path,
    spec: &ModelSpec,
    weights: &Weights,
    extra_files: &[(&str, &[u8])],
) -> Result<(), ModelError> {
    let config = format!("{:#}\n", config_json(spec));
    let path = dir.join("config.json");
    if parse_config(&config, &spec.name)? != *spec {
        return Err(ModelError::file(&path, "cannot express the options of this model"));
    }
    let made = !dir.exists();
    std::fs::create_dir_all(dir).map_err(|e| ModelError::write(dir, e))?;
    let written = write_files(dir, path, config.as_bytes(), spec, weights, extra_files);
    if written.is_err() && made {
        // Only an empty folder goes, and one that stays does no harm.
        let _ = std::fs::remove_dir(dir);
    }
    written
}

fn write_files(
    dir: &Path,
    config_path: PathBuf,
    config: &[u8],
    spec: &ModelSpec,
    weights: &Weights,
    extra_files: &[(&str, &[u8])],
) -> Result<(), ModelError> {
    let mut staged = Vec::with_capacity(2 + extra_files.len());
    for (name, content) in extra_files {
        if !is_plain_name(name) {
            return Err(ModelError::file(&dir.join(name), "is not the name of a file in the folder"));
        }
        staged.push(Staged::write(dir.join(name), |out| out.write_all(content))?);
    }
    staged.push(Staged::write(dir.join(SINGLE_FILE), |out| write_safetensors(out, spec, weights))?);
    // Last, so that a folder with a config is whole.
    staged.push(Staged::write(config_path, |out| out.write_all(config))?);
    staged.into_iter().try_for_each(Staged::publish)
}

/// A file under a temporary name, removed unless published.
struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    fn write(
        path: PathBuf,
        fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<Self, ModelError> {
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.partial", std::process::id()));
        let staged = Staged { temporary: temporary.into(), path };
        let filled = File::create(&staged.temporary).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            fill(&mut out)?;
            // A disk that is full may say so only now.
            out.into_inner().map_err(|e| e.into_error())?.sync_all()
        });
        filled.map_err(|e| ModelError::write(&staged.path, e))?;
        Ok(staged)
    }

    fn publish(self) -> Result<(), ModelError> {
        std::fs::rename(&self.temporary, &self.path).map_err(|e| ModelError::write(&self.path, e))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After publishing there is nothing under this name, and nothing can be done about another failure.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Wider elements first, and the header padded to 8 bytes, so that every tensor is aligned in the file.
fn write_safetensors(out: &mut impl Write, spec: &ModelSpec, weights: &Weights) -> io::Result<()> {
    let mut ids: Vec<TensorId> = spec.tensors().into_iter().map(|(id, _)| id).collect();
    ids.sort_by_key(|&id| std::cmp::Reverse(weights.tensor(id).dtype.bytes()));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for &id in &ids {
        let view = weights.tensor(id);
        let end = offset + view.bytes.len();
        let shape = if is_vector(id) { json!([view.rows]) } else { json!([view.rows, view.cols]) };
        let dtype = match view.dtype {
            DType::Bf16 => "BF16",
            DType::F16 => "F16",
            DType::F32 => "F32",
        };
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]});
        header.insert(checkpoint_name(id), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    ids.iter().try_for_each(|&id| out.write_all(weights.tensor(id).bytes))
}

/// The `config.json` of a spec, as transformers 5 writes it.
pub fn config_json(spec: &ModelSpec) -> Value {
    let (class, model_type) = match spec.architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Mistral => ("MistralForCausalLM", "mistral"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let dtype = match spec.dtype {
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
        DType::F32 => "float32",
    };
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "dtype": dtype,
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.q_heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": spec.max_position,
        "rms_norm_eps": shortest(spec.norm_eps),
        "rope_parameters": rope_json(&spec.rope),
        "tie_word_embeddings": spec.tied,
        "bos_token_id": spec.bos,
        "eos_token_id": eos_json(&spec.eos),
    });
    let window = spec.windows.iter().flatten().next();
    match spec.architecture {
        Architecture::Llama => {
            config["attention_bias"] = json!(spec.o_bias);
            config["mlp_bias"] = json!(spec.mlp_bias);
        }
        Architecture::Mistral => {
            config["sliding_window"] = json!(window);
            // With this field it is something else to transformers, so it is there only where it says something.
            if window.is_some() && spec.windows.contains(&None) {
                config["layer_types"] = layer_types(spec);
            }
        }
        Architecture::Qwen2 | Architecture::Qwen3 => {
            config["sliding_window"] = json!(window);
            config["use_sliding_window"] = json!(window.is_some());
            config["layer_types"] = layer_types(spec);
            if spec.architecture == Architecture::Qwen3 {
                config["attention_bias"] = json!(spec.o_bias);
            }
        }
    }
    config
}

fn layer_types(spec: &ModelSpec) -> Value {
    let kind = |w: &Option<usize>| if w.is_some() { "sliding_attention" } else { "full_attention" };
    spec.windows.iter().map(kind).collect()
}

/// The f64 that prints as the f32 does: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn eos_json(eos: &[u32]) -> Value {
    match eos {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn rope_json(rope: &Rope) -> Value {
    let theta = rope.theta;
    match rope.scaling {
        RopeScaling::Default => json!({"rope_type": "default", "rope_theta": theta}),
        RopeScaling::Linear { factor } => {
            json!({"rope_type": "linear", "rope_theta": theta, "factor": factor})
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max } => json!({
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": positions(original_max),
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max, attention_factor, truncate } => {
            json!({
                "rope_type": "yarn",
                "rope_theta": theta,
                "factor": factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "original_max_position_embeddings": positions(original_max),
                "attention_factor": attention_factor,
                "truncate": truncate,
            })
        }
    }
}

/// A length as the whole number it nearly always is.
fn positions(x: f64) -> Value {
    if x.fract() == 0.0 && x < 9e15 { json!(x as u64) } else { json!(x) }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
