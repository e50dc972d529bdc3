//! The engine without a device: models, text, plan, schedule, CPU backend, sessions, needles in haystacks.
//!
//! Head-wise KV offloading (HeadInfer, arXiv 2502.12574): the KV cache is cut by (layer, KV head) and tile,
//! lives in host memory, and streams through a small ring on the device under a plan that is executed
//! literally. This crate must not know CUDA, tokio, the command line, or environment variables.

pub mod backend;
pub mod cpu;
pub mod dtype;
pub mod engine;
pub mod memory;
pub mod model;
pub mod niah;
pub mod plan;
pub mod simulate;
pub mod store;
pub mod text;
pub mod trace;
pub mod units;
pub mod watch;
