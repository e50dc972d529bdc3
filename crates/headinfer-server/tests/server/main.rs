//! The server as clients see it: real connections to a port of the system's choice, tiny models on the CPU.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

#[path = "../../../headinfer-core/tests/core/around.rs"]
mod around;
mod client;
mod damaged;
mod fairness;
mod fuzz;
mod guesses;
mod house;
mod limits;
mod load;
mod malformed;
mod model;
mod restart;
mod reuse;
mod security;
mod sessions;
mod shapes;
mod stalled;
mod store;
mod streams;
mod structured;
mod tools;
mod web;
