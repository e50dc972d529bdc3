//! OpenAI-compatible HTTP over the engine.
//!
//! Async lives here and ends at `worker`: below it one thread owns the sessions and takes turns among the
//! requests. This crate must not know CUDA, the command line, environment variables or files; whoever starts it
//! gives it a model's text side, a way to open sessions, and a [`ServerConfig`].

mod api;
mod auth;
mod config;
mod grammar;
mod linger;
mod metrics;
mod model;
mod patience;
mod serve;
mod sessions;
mod stream;
mod tools;
mod web;
mod worded;
mod worker;

pub use config::{ConfigError, Defaults, Limits, ServerConfig};
pub use model::ServedModel;
pub use serve::{ServeError, Server, Shutdown, run};
pub use worker::{EngineHandle, EngineOptions, Opened, StartError, State};
