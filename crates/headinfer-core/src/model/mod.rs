//! Models: what they are, where their weights lie.
//!
//! Must not know the plan or any backend.

pub mod rope;
pub mod spec;
