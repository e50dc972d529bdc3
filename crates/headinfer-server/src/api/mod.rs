//! Paths, one file per endpoint. This room turns JSON into jobs and events into JSON; it must not know slots.

mod answer;
mod chat;
mod completions;
mod error;
mod fields;
mod models;
mod request;
mod shape;
mod status;
mod tokenize;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde_json::Value;
use tokio::sync::Semaphore;

pub(crate) use answer::{Answer, lost};
pub(crate) use error::ApiError;
pub(crate) use request::StreamOptions;

use crate::config::ServerConfig;
use crate::model::{ServedModel, unix_time};
use crate::worker::{EngineHandle, Shared, State};
use crate::{auth, metrics};

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: ServerConfig,
    pub(crate) model: ServedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) started: u64,
    /// See [`App::aside`].
    heavy: Arc<Semaphore>,
    /// One permit for each connection that may still be opened.
    pub(crate) connections: Arc<Semaphore>,
    /// Answers so far, for their ids.
    answers: AtomicU64,
}

impl Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Bodies up to this need no permit to be read and tokenised: short requests do not wait for long ones.
const LIGHT_BYTES: usize = 64 << 10;

impl App {
    pub(crate) fn new(config: ServerConfig, model: ServedModel, engine: EngineHandle) -> Self {
        let heavy = Arc::new(Semaphore::new(config.limits.tokenizing));
        let connections = Arc::new(Semaphore::new(config.limits.connections));
        let (started, answers) = (unix_time(), AtomicU64::new(0));
        Self(Arc::new(Inner { config, model, engine, started, heavy, connections, answers }))
    }

    /// All paths.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(chat::create))
            .route("/v1/completions", post(completions::create))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{*id}", get(models::one))
            .route("/tokenize", post(tokenize::tokenize))
            .route("/detokenize", post(tokenize::detokenize))
            .route(auth::OPEN_PATH, get(status::health))
            .route("/metrics", get(status::metrics))
            .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is no such path"))
            .method_not_allowed_fallback(async || {
                ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
            })
            .layer(middleware::from_fn_with_state(self.clone(), auth::guard))
            .with_state(self.clone())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.engine.shared()
    }

    /// Tokens of a slot, and of the vocabulary.
    ///
    /// # Errors
    /// 503 while the engine does not serve.
    fn ready(&self) -> Result<(usize, usize), ApiError> {
        let unavailable = |why| Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why));
        match self.engine.state() {
            State::Ready { context, vocab } => Ok((context, vocab)),
            State::Loading => unavailable("the model is still loading".to_owned()),
            State::Stopped => unavailable("the server is shutting down".to_owned()),
            State::Failed(why) => unavailable(format!("the engine failed: {why}")),
        }
    }

    /// The body, whole.
    ///
    /// # Errors
    /// 413 and 408.
    async fn body(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
        let limits = &self.config.limits;
        let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let too_large = || {
            let message = format!("the body is larger than {} bytes", limits.body_bytes);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        if declared.is_some_and(|bytes: usize| bytes > limits.body_bytes) {
            return Err(too_large());
        }
        let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
        let whole = tokio::time::timeout(limits.body_time, axum::body::to_bytes(body, limits.body_bytes));
        // A client that left while sending does not read the answer.
        whole.await.map_err(late)?.map_err(|_| too_large())
    }

    /// Reads a body beside the async threads: JSON, templates and tokenisers take their time. Of large bodies only
    /// some are read at once.
    async fn aside<T: Send + 'static>(
        &self,
        body: Bytes,
        read: impl FnOnce(&App, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let broken = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read");
        let permit = match body.len() > LIGHT_BYTES {
            true => Some(self.heavy.clone().acquire_owned().await.map_err(|_| broken())?),
            false => None,
        };
        let app = self.clone();
        let work = move || {
            let _permit = permit;
            read(&app, &body)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| broken())?
    }

    /// An id no other answer of this server has.
    fn answer_id(&self, prefix: &str) -> String {
        format!("{prefix}-{:x}-{:x}", self.started, self.answers.fetch_add(1, Relaxed))
    }

    pub(crate) fn metrics(&self) -> String {
        let open = self.config.limits.connections.saturating_sub(self.connections.available_permits());
        metrics::render(self.shared(), &self.model.id, open)
    }
}

/// JSON of a body.
///
/// # Errors
/// 400; too deep is an error too.
fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {e}")))
}

fn json(status: StatusCode, value: &Value) -> Response {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, headers, value.to_string()).into_response()
}
