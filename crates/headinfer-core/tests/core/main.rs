//! Integration tests of the core: one binary.
#![allow(missing_docs)] // tests speak by their names

mod plan;
mod support;
