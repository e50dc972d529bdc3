//! The rotary part of a `config.json`: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters`
//! of transformers 5, with the precedence and the defaults of its `modeling_rope_utils`.

use serde_json::{Map, Value};

use crate::model::config::non_empty;
use crate::model::error::ModelError;
use crate::model::json::Object;
use crate::model::rope::{Rope, RopeScaling};

const SUPPORTED_KINDS: &str = "default, linear, llama3, yarn";

/// `max_position` stands in for an absent `original_max_position_embeddings`.
pub(crate) fn parse(
    config: Object<'_>,
    top: &Map<String, Value>,
    max_position: usize,
) -> Result<Rope, ModelError> {
    // transformers: a non-empty `rope_scaling` replaces `rope_parameters`.
    let (prefix, map) = match non_empty(config, "rope_scaling")? {
        Some(map) => ("rope_scaling.", Some(map)),
        None => ("rope_parameters.", non_empty(config, "rope_parameters")?),
    };
    let none = Map::new();
    let rope = Object::new(config.path(), prefix, map.unwrap_or(&none));
    if let Some((key, _)) = rope.entries().find(|(_, v)| v.is_object()) {
        return Err(rope.error(key, "gives one kind of layer its own positions, which is not supported"));
    }
    let top = Object::new(config.path(), "", top);
    for object in [top, rope] {
        if let Some(part) = object.number("partial_rotary_factor")?.filter(|&x| x != 1.0) {
            let value = part.to_string();
            return Err(object.unsupported("partial_rotary_factor", "partial rotation", &value, "1"));
        }
    }
    let theta = match rope.positive("rope_theta")? {
        Some(theta) => theta,
        None => top.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let original = match top.positive("original_max_position_embeddings")? {
        Some(n) => n,
        None => rope.positive("original_max_position_embeddings")?.unwrap_or(max_position as f64),
    };
    let key = if rope.has("rope_type") { "rope_type" } else { "type" };
    let scaling = match rope.text(key)?.unwrap_or("default") {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: rope.required_positive("factor")? },
        "llama3" => llama3(rope, original)?,
        "yarn" => yarn(rope, original, theta, max_position)?,
        other => return Err(rope.unsupported(key, "rope kind", other, SUPPORTED_KINDS)),
    };
    Ok(Rope { theta, scaling })
}

fn llama3(rope: Object<'_>, original_max: f64) -> Result<RopeScaling, ModelError> {
    let low = rope.required_positive("low_freq_factor")?;
    let high = rope.required_positive("high_freq_factor")?;
    if high <= low {
        return Err(
            rope.error("high_freq_factor", format!("is {high}, must be above `low_freq_factor` {low}"))
        );
    }
    let factor = rope.required_positive("factor")?;
    Ok(RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max })
}

fn yarn(
    rope: Object<'_>,
    original_max: f64,
    theta: f64,
    max_position: usize,
) -> Result<RopeScaling, ModelError> {
    if theta <= 1.0 {
        return Err(rope.error("rope_theta", format!("is {theta}, must be above 1 for yarn")));
    }
    let factor = match rope.positive("factor")? {
        Some(factor) => factor,
        // transformers reads an explicit null as the ratio of the two context lengths.
        None if rope.is_null("factor") => max_position as f64 / original_max,
        None => return Err(rope.error("factor", "is missing")),
    };
    // Zero means "not given" for these four, as in transformers.
    let given = |key| Ok::<_, ModelError>(rope.number(key)?.filter(|&x| x != 0.0));
    let gain = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor =
        match (rope.number("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
            (Some(x), _, _) => x,
            (None, Some(mscale), Some(all_dim)) => gain(mscale) / gain(all_dim),
            _ => gain(1.0),
        };
    if !(f64::EPSILON..=1e6).contains(&attention_factor) {
        let problem = format!("comes to {attention_factor}, must be above 0 and at most 1e6");
        return Err(rope.error("attention_factor", problem));
    }
    let beta = |key, default| match given(key)? {
        Some(x) if x < 0.0 => Err(rope.error(key, format!("is {x}, must be above 0"))),
        x => Ok(x.unwrap_or(default)),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        original_max,
        attention_factor,
        truncate: if rope.is_null("truncate") { false } else { rope.flag("truncate")?.unwrap_or(true) },
    })
}
