//! Tests of the CUDA backend.
#![allow(missing_docs)] // tests speak by their names
