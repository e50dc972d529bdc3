//! GET and DELETE /v1/sessions/NAME: hear a work with a name from its beginning, or end it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::request::StreamOptions;
use super::{ApiError, App, Named, json as answer, named};
use crate::stream;

/// A stream of the answer from its beginning, with progress and usage.
pub(super) async fn attach(State(app): State<App>, name: Named) -> Result<Response, ApiError> {
    let name = named(name)?;
    let (answer, events) = app.sessions.attach(&name)?.ok_or_else(unknown)?;
    let options = StreamOptions { usage: true, progress: true };
    Ok(stream::respond(answer, options, events, app.config.ping))
}

/// Ends the work within a chunk; the finished part of its prefill stays in the cache.
pub(super) async fn cancel(State(app): State<App>, name: Named) -> Result<Response, ApiError> {
    let name = named(name)?;
    match app.sessions.cancel(&name) {
        true => Ok(answer(StatusCode::OK, &json!({"id": name, "object": "session", "deleted": true}))),
        false => Err(unknown()),
    }
}

/// Whoever comes back after a restart needs to know that nothing but the name is lost.
fn unknown() -> ApiError {
    let message = "there is no work of this name: names end with the server's process, and when newer works need their \
                   place. POST the question again with the name as X-Session-Id: what is kept of its prompt is not \
                   computed again";
    ApiError::new(StatusCode::NOT_FOUND, message).code("session_not_found")
}
