//! `headinfer bench`.

use clap::Args;

/// Measure the machine and the engine.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {}
