//! Tests of the CUDA backend: one binary, which says what it skips on a machine without a GPU.
#![allow(missing_docs, clippy::unwrap_used)] // tests speak by their names, and may panic

mod alike;
mod host;
mod kernels;
mod large;
mod measure;
mod models;
mod ops;
mod packed;
mod placement;
mod quantised;
mod reference;
mod run;
mod small;
mod streamed;
#[path = "../../../headinfer-core/tests/core/support.rs"]
mod support;
mod watched;
