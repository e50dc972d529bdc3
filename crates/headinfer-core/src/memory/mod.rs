//! Memory that plays the device and the host in the CPU backend, and borrows of it that prove themselves.
//!
//! Knows byte ranges only: what lies where is the plan's business.

mod arena;

pub use arena::{Arena, Grant, Memories};
