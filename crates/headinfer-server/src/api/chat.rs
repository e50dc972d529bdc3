//! POST /v1/chat/completions.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use headinfer_core::text::chat::{ChatOptions, Json, Message};
use serde::Deserialize;

use super::fields::Fields;
use super::parse::parse;
use super::request::{self, Request, top_logprobs};
use super::respond::respond;
use super::shape::Shape;
use super::tools::Tools;
use super::{ApiError, App, format};
use crate::model::today;

pub(super) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.ready()?;
    let session = request::session(&headers)?;
    let body = app.body(&headers, body).await?;
    let how = (Shape::Chat, session.is_some());
    respond(app, how, body, |app, bytes, early| {
        let value = parse(bytes)?;
        let fields = Fields::of(&value)?;
        request::check(app, &fields)?;
        let tools = Tools::read(app, &fields)?;
        let (logprobs, format) = (logprobs(&fields)?, format::read(&fields)?);
        let ids = || prompt(app, &fields, bytes, tools.is_some());
        let request = Request::read(app, &fields, early, ("messages", ids), None)?.scored(logprobs);
        let format = format.as_deref();
        let (param, grammar) = match &tools {
            Some(tools) => (tools.param(format), tools.grammar(format)?),
            None => (format::SCHEMA, format.map(|rule| format!("start: {rule}"))),
        };
        let calls = tools.map(|tools| tools.calls(format));
        Ok((request.obeying(app, param, grammar)?.named(session, "chat", &fields), calls))
    })
    .await
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let (wanted, top) = (fields.flag("logprobs")?, top_logprobs(fields, "top_logprobs")?);
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::field("top_logprobs", "top_logprobs is for logprobs: true only")),
    }
}

/// The part of a body that a template prints: read again, for here the order of keys matters.
#[derive(Deserialize)]
struct Printed {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Json>,
    #[serde(default)]
    chat_template_kwargs: Option<Json>,
}

/// The ids of the prompt that the model's template makes of a chat's `body`, read as `fields` already. `with_tools`: it
/// is shown the tools.
pub(super) fn prompt(
    app: &App,
    fields: &Fields<'_>,
    body: &[u8],
    with_tools: bool,
) -> Result<Vec<u32>, ApiError> {
    match fields.list("messages")? {
        None => return Err(ApiError::field("messages", "messages is needed: a list")),
        Some([]) => return Err(ApiError::field("messages", "messages must not be empty")),
        Some(_) => {}
    }
    fields.object("chat_template_kwargs")?;
    let printed: Printed = serde_json::from_slice(body)
        .map_err(|e| ApiError::field("messages", format!("messages cannot be read: {e}")))?;
    let options = ChatOptions {
        tools: printed.tools.as_ref().filter(|_| with_tools),
        add_generation_prompt: true,
        today: today(),
        variables: printed.chat_template_kwargs.as_ref(),
    };
    let tokenizer = app.engine.tokenizer();
    let text = tokenizer.chat_prompt_with(&printed.messages, &options);
    let text = text.map_err(|e| ApiError::field("messages", e.to_string()))?;
    tokenizer.encode_raw(&text).map_err(|e| ApiError::field("messages", e.to_string()))
}
