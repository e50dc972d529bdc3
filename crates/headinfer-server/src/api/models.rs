//! GET /v1/models.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::fields::brief;
use super::{ApiError, App, Named, json as answer, named};

/// The one model.
pub(super) async fn list(State(app): State<App>) -> Response {
    answer(StatusCode::OK, &json!({"object": "list", "data": [entry(&app)]}))
}

/// The model by its id.
pub(super) async fn one(State(app): State<App>, name: Named) -> Result<Response, ApiError> {
    check(&app, &named(name)?)?;
    Ok(answer(StatusCode::OK, &entry(&app)))
}

/// # Errors
/// 404 when `id` is not the served model's.
pub(super) fn check(app: &App, id: &str) -> Result<(), ApiError> {
    if id == app.model.id {
        return Ok(());
    }
    let message = format!("there is no model '{}' here; this server has '{}'", brief(id), app.model.id);
    Err(ApiError::new(StatusCode::NOT_FOUND, message).param("model").code("model_not_found"))
}

fn entry(app: &App) -> Value {
    let context = app.ready().ok().map(|(context, _)| context);
    let (id, created) = (&app.model.id, app.started);
    json!({"id": id, "object": "model", "created": created, "owned_by": "headinfer", "max_model_len": context})
}
