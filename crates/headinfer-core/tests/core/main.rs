//! Integration tests of the core: one binary.
#![allow(missing_docs)] // tests speak by their names

mod engine;
mod golden;
mod niah;
mod placement;
mod plan;
mod retrieval;
mod rounded;
mod run;
mod support;
mod trained;
