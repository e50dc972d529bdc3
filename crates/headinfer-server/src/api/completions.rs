//! POST /v1/completions.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::Value;

use super::fields::Fields;
use super::parse::parse;
use super::request::{self, Request, token_ids, top_logprobs};
use super::respond::respond;
use super::shape::Shape;
use super::{ApiError, App, format};

/// OpenAI's default of this endpoint.
const MAX_TOKENS: usize = 16;

pub(super) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.ready()?;
    let session = request::session(&headers)?;
    let body = app.body(&headers, body).await?;
    let how = (Shape::Text, session.is_some());
    respond(app, how, body, |app, bytes, early| {
        let value = parse(bytes)?;
        let fields = Fields::of(&value)?;
        request::check(app, &fields)?;
        let logprobs = top_logprobs(&fields, "logprobs")?;
        let grammar = format::read(&fields)?.map(|rule| format!("start: {rule}"));
        let ids = || prompt(app, &fields);
        let request = Request::read(app, &fields, early, ("prompt", ids), Some(MAX_TOKENS))?.scored(logprobs);
        Ok((request.obeying(app, format::SCHEMA, grammar)?.named(session, "text", &fields), None))
    })
    .await
}

/// A string, ids, or a list of one of these.
fn prompt(app: &App, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let wrong = |message: &str| Err(ApiError::field("prompt", message));
    match fields.get("prompt") {
        None => wrong("prompt is needed: a string or a list of token ids"),
        Some(Value::String(text)) => encode(app, text),
        Some(Value::Array(list)) => match list.as_slice() {
            [Value::String(text)] => encode(app, text),
            [Value::Array(ids)] => token_ids("prompt", ids),
            [Value::String(_) | Value::Array(_), ..] => wrong("only one prompt per request is supported"),
            ids => token_ids("prompt", ids),
        },
        Some(_) => wrong("prompt must be a string or a list of token ids"),
    }
}

fn encode(app: &App, text: &str) -> Result<Vec<u32>, ApiError> {
    app.engine.tokenizer().encode(text).map_err(|e| ApiError::field("prompt", e.to_string()))
}
