//! Models: what they are, where their weights lie.
//!
//! Must not know the plan or any backend.

pub mod config;
mod config_rope;
pub mod digest;
pub mod error;
pub mod hub;
pub(crate) mod json;
pub mod known;
mod mapping;
pub mod names;
pub mod random;
pub mod retrieval;
pub mod rope;
pub mod safetensors;
pub mod spec;
pub mod synthetic;
pub mod weights;
mod weights_files;
pub mod write;

pub use digest::ModelDigest;
pub use error::ModelError;
pub use weights::{TensorView, Weights};
