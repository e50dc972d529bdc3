//! Paths, one file per endpoint. This room turns JSON into jobs and events into JSON; it must not know slots.

mod answer;
mod body;
mod cache;
mod chat;
mod completions;
mod error;
mod fields;
mod format;
mod models;
mod parse;
mod request;
mod respond;
mod sessions;
mod shape;
mod status;
mod tokenize;
mod tools;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde_json::Value;
use tokio::sync::Semaphore;

pub(crate) use answer::{Answer, lost};
pub(crate) use error::ApiError;
pub(crate) use request::StreamOptions;

use self::body::Bodies;
use crate::config::ServerConfig;
use crate::grammar::Grammars;
use crate::model::{ServedModel, unix_time};
use crate::sessions::Sessions;
use crate::tools::CallFormat;
use crate::worker::{EngineHandle, Shared, State};
use crate::{auth, linger, metrics, web};

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: ServerConfig,
    pub(crate) model: ServedModel,
    pub(crate) engine: EngineHandle,
    pub(crate) started: u64,
    pub(crate) sessions: Sessions,
    bodies: Bodies,
    grammars: Grammars,
    /// How the model writes calls of tools; `None`: its chat template shows it none.
    calls: Option<CallFormat>,
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

impl App {
    pub(crate) fn new(config: ServerConfig, model: ServedModel, engine: EngineHandle) -> Self {
        let tokenizer = engine.tokenizer().clone();
        // Without a template every chat is refused, and for that reason.
        let calls = tokenizer.tool_template().map_or(Some(CallFormat::Arguments), CallFormat::of);
        let grammars = Grammars::new(tokenizer, model.end_tokens.clone());
        let (sessions, bodies) = (Sessions::new(&config.limits), Bodies::new(&config.limits));
        let connections = Arc::new(Semaphore::new(config.limits.connections));
        let (started, answers) = (unix_time(), AtomicU64::new(0));
        let inner =
            Inner { config, model, engine, started, sessions, bodies, grammars, calls, connections, answers };
        Self(Arc::new(inner))
    }

    /// All paths.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/v1/chat/completions", post(chat::create))
            .route("/v1/completions", post(completions::create))
            .route("/v1/models", get(models::list))
            .route("/v1/models/{*id}", get(models::one))
            .route("/v1/sessions/{*name}", get(sessions::attach).delete(sessions::cancel))
            .route("/tokenize", post(tokenize::tokenize))
            .route("/detokenize", post(tokenize::detokenize))
            .route(auth::OPEN_PATH, get(status::health))
            .route("/metrics", get(status::metrics))
            .route("/cache", get(cache::show))
            .merge(web::router())
            .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is no such path"))
            .method_not_allowed_fallback(async || {
                ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
            })
            .layer(middleware::from_fn_with_state(self.clone(), auth::guard))
            .layer(middleware::from_fn(linger::linger))
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

    /// An id no other answer of this server has.
    fn answer_id(&self) -> String {
        format!("{:x}-{:x}", self.started, self.answers.fetch_add(1, Relaxed))
    }

    pub(crate) fn metrics(&self) -> String {
        let open = self.config.limits.connections.saturating_sub(self.connections.available_permits());
        metrics::render(self.shared(), &self.model.id, open)
    }
}

fn json(status: StatusCode, value: &Value) -> Response {
    written(status, value.to_string())
}

/// JSON that is text already: what may be long is written beside the async threads.
fn written(status: StatusCode, json: String) -> Response {
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (status, headers, json).into_response()
}

/// What a path leaves open, if it is text.
type Named = Result<Path<String>, PathRejection>;

fn named(name: Named) -> Result<String, ApiError> {
    let wrong = |_| ApiError::new(StatusCode::BAD_REQUEST, "the path is not percent-encoded UTF-8");
    name.map(|Path(name)| name).map_err(wrong)
}
