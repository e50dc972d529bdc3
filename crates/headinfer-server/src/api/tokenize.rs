//! POST /tokenize and /detokenize, in vLLM's shape.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::fields::Fields;
use super::request::token_ids;
use super::{ApiError, App, chat, json as answer, models, parse};

/// `{prompt, add_special_tokens}` or `{messages, tools, …}` to `{count, max_model_len, tokens}`.
pub(super) async fn tokenize(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = app.body(&headers, body).await?;
    let tokens = app.aside(bytes, |app, bytes| {
        let value = parse(bytes)?;
        let fields = Fields::of(&value)?;
        if let Some(id) = fields.text("model")? {
            models::check(app, id)?;
        }
        let tokenizer = app.engine.tokenizer();
        let raw = fields.get("add_special_tokens").is_some() && !fields.flag("add_special_tokens")?;
        let tokens = match fields.text("prompt")? {
            Some(text) if raw => tokenizer.encode_raw(text),
            Some(text) => tokenizer.encode(text),
            None if fields.get("messages").is_some() => return chat::prompt(app, &fields, bytes),
            None => {
                return Err(ApiError::field("prompt", "prompt (a string) or messages (a list) is needed"));
            }
        };
        tokens.map_err(|e| ApiError::field("prompt", e.to_string()))
    });
    let tokens = tokens.await?;
    let context = app.ready().ok().map(|(context, _)| context);
    Ok(answer(StatusCode::OK, &json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens})))
}

/// `{tokens}` to `{prompt}`.
pub(super) async fn detokenize(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = app.body(&headers, body).await?;
    let text = app.aside(bytes, |app, bytes| {
        let value = parse(bytes)?;
        let fields = Fields::of(&value)?;
        let needed = || ApiError::field("tokens", "tokens (a list of token ids) is needed");
        let ids = token_ids("tokens", fields.list("tokens")?.ok_or_else(needed)?)?;
        Ok(app.engine.tokenizer().decode(&ids))
    });
    Ok(answer(StatusCode::OK, &json!({"prompt": text.await?})))
}
