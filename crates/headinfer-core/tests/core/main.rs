//! Integration tests of the core: one binary.
#![allow(missing_docs, clippy::unwrap_used)] // tests speak by their names, and an unwrap that fails is a failed test

mod around;
mod engine;
mod golden;
mod guess;
mod niah;
mod overlap;
mod packed;
mod placement;
mod plan;
mod quantised;
mod retrieval;
mod rounded;
mod run;
mod store;
mod store_faults;
mod support;
mod text;
mod trained;
