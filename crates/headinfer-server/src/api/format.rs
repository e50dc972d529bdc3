//! `response_format`: what an answer must look like.

use serde_json::{Value, json};

use super::ApiError;
use super::fields::Fields;
use crate::grammar::json_rule;

/// The field that errors of a schema name.
pub(super) const SCHEMA: &str = "response_format.json_schema.schema";

/// The Lark rule that the answer must obey; `None`: any text will do.
///
/// # Errors
/// 400, which says what of a schema is not supported.
pub(super) fn read(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    let schema = match format.text("type")? {
        Some("text") => return Ok(None),
        Some("json_object") => json!({"type": "object"}),
        Some("json_schema") => schema(&format)?,
        _ => {
            let message = "response_format.type must be 'text', 'json_object' or 'json_schema'";
            return Err(ApiError::field("response_format.type", message));
        }
    };
    json_rule(&schema).map(Some).map_err(|why| unsupported(SCHEMA, &why))
}

fn schema(format: &Fields<'_>) -> Result<Value, ApiError> {
    let missing = |name: &str| ApiError::field(name, format!("{name} is needed: an object"));
    let outer = format.object("json_schema")?.ok_or_else(|| missing("response_format.json_schema"))?;
    outer.object("schema")?.ok_or_else(|| missing(SCHEMA))?;
    Ok(outer.get("schema").cloned().unwrap_or_default())
}

/// 400 for a schema in the field `param`.
pub(super) fn unsupported(param: &str, why: &str) -> ApiError {
    ApiError::field(param, format!("{param} cannot be used: {why}"))
}
