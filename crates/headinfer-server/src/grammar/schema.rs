//! JSON schemas: what is refused before it is compiled, and the rule that a schema becomes.

use serde_json::{Value, json};

/// Deepest nesting of a schema.
const DEPTH_MAX: usize = 32;
/// Most values in a schema.
const VALUES_MAX: usize = 4096;
/// Longest schema as JSON.
const BYTES_MAX: usize = 128 << 10;
/// Most repetitions that a schema may ask for.
const REPEAT_MAX: u64 = 10_000;
/// Keywords that repeat something.
const REPEATS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];
/// White space between the parts of an answer: enough to indent, and an end to it.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// The body of a Lark rule for values that obey `schema`, which must be an object.
///
/// # Errors
/// A sentence that says what is too much or not supported.
pub(crate) fn json_rule(schema: &Value) -> Result<String, String> {
    let mut values = 0;
    check(schema, 1, &mut values)?;
    let Value::Object(map) = schema else { return Err("a schema must be an object".into()) };
    let mut map = map.clone();
    map.insert("x-guidance".into(), json!({"whitespace_pattern": SPACE}));
    let text = Value::Object(map).to_string();
    match text.len() > BYTES_MAX {
        true => Err(format!("the schema has {} bytes, more than {BYTES_MAX}", text.len())),
        false => Ok(format!("%json {text}")),
    }
}

fn check(value: &Value, depth: usize, values: &mut usize) -> Result<(), String> {
    *values += 1;
    if depth > DEPTH_MAX {
        return Err(format!("the schema is nested deeper than {DEPTH_MAX}"));
    }
    if *values > VALUES_MAX {
        return Err(format!("the schema has more than {VALUES_MAX} values"));
    }
    match value {
        Value::Array(list) => list.iter().try_for_each(|value| check(value, depth + 1, values)),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            if key == "x-guidance" {
                return Err("keywords that are not supported: [\"x-guidance\"]".into());
            }
            let repeats =
                REPEATS.contains(&key.as_str()) && value.as_f64().is_some_and(|n| n > REPEAT_MAX as f64);
            match repeats {
                true => Err(format!("{key} is {value}, more than {REPEAT_MAX}")),
                false => check(value, depth + 1, values),
            }
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_beyond_the_limits_is_refused_with_the_limit() {
        let deep = (0..40).fold(json!({"type": "null"}), |inner, _| json!({"items": inner}));
        let wide: Value = (0..5000).map(|i| (i.to_string(), json!(true))).collect();
        let long = json!({"const": "x".repeat(BYTES_MAX)});
        for (schema, word) in [
            (deep, "nested deeper than 32"),
            (json!({"properties": wide}), "more than 4096 values"),
            (long, "more than 131072"),
            (json!({"items": {"maxLength": 1e12}}), "maxLength is 1000000000000"),
            (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
            (json!([]), "must be an object"),
        ] {
            let refused = json_rule(&schema).expect_err("refused");
            assert!(refused.contains(word), "{refused}");
        }
        assert!(json_rule(&json!({"type": "object"})).is_ok_and(|rule| rule.starts_with("%json {")));
    }
}
