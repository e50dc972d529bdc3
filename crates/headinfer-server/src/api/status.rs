//! GET /health and /metrics.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{App, json as answer};
use crate::worker::State as Engine;

/// 200 when requests are served; else 503. Open to all, so it says no more than that.
pub(super) async fn health(State(app): State<App>) -> Response {
    let (status, word) = match app.engine.state() {
        Engine::Ready { .. } => (StatusCode::OK, "ok"),
        Engine::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Engine::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped"),
        Engine::Failed(_) => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
    };
    answer(status, &json!({"status": word}))
}

/// Prometheus' text format.
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.metrics()).into_response()
}
