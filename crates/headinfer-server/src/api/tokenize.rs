//! POST /tokenize and /detokenize, in vLLM's shape.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::fields::Fields;
use super::parse::parse;
use super::request::{token_ids, within};
use super::tools::Tools;
use super::{ApiError, App, chat, models, written};

/// `{prompt, add_special_tokens}` or `{messages, tools, …}` to `{count, max_model_len, tokens}`.
pub(super) async fn tokenize(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = app.body(&headers, body).await?;
    let reply = app.aside(bytes, |app, bytes| {
        let tokens = tokens(app, bytes)?;
        let context = app.ready().ok().map(|(context, _)| context);
        let (count, limit) = (json!(tokens.len()), json!(context));
        // Without a JSON value of each.
        let list = serde_json::to_string(&tokens).unwrap_or_default();
        Ok(format!("{{\"count\":{count},\"max_model_len\":{limit},\"tokens\":{list}}}"))
    });
    Ok(written(StatusCode::OK, reply.await?))
}

fn tokens(app: &App, bytes: &[u8]) -> Result<Vec<u32>, ApiError> {
    let value = parse(bytes)?;
    let fields = Fields::of(&value)?;
    if let Some(id) = fields.text("model")? {
        models::check(app, id)?;
    }
    let tokenizer = app.engine.tokenizer();
    let raw = !fields.flag_or("add_special_tokens", true)?;
    let tokens = match fields.text("prompt")? {
        Some(text) if raw => tokenizer.encode_raw(text),
        Some(text) => tokenizer.encode(text),
        None if fields.get("messages").is_some() => {
            let tools = Tools::read(app, &fields)?;
            return chat::prompt(app, &fields, bytes, tools.is_some());
        }
        None => {
            return Err(ApiError::field("prompt", "prompt (a string) or messages (a list) is needed"));
        }
    };
    tokens.map_err(|e| ApiError::field("prompt", e.to_string()))
}

/// `{tokens}` to `{prompt}`.
pub(super) async fn detokenize(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = app.body(&headers, body).await?;
    let reply = app.aside(bytes, |app, bytes| {
        let value = parse(bytes)?;
        let fields = Fields::of(&value)?;
        if let Some(id) = fields.text("model")? {
            models::check(app, id)?;
        }
        let needed = || ApiError::field("tokens", "tokens (a list of token ids) is needed");
        let ids = token_ids("tokens", fields.list("tokens")?.ok_or_else(needed)?)?;
        // While the model is loading its size is not known, and what has no text is left out.
        if let Ok((_, vocab)) = app.ready() {
            within("tokens", &ids, vocab)?;
        }
        Ok(json!({"prompt": app.engine.tokenizer().decode(&ids)}).to_string())
    });
    Ok(written(StatusCode::OK, reply.await?))
}
