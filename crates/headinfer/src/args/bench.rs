//! `headinfer bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use headinfer_core::units::parse_tokens;

use super::EngineArgs;

/// Measure the engine, each figure beside the ceiling of this machine in the same run.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  headinfer bench memory --plot memory.svg
  headinfer bench prefill -m random:small --context 16k
  headinfer bench decode -m random:small --context 128k --synthetic
  headinfer bench overlap -m random:small --context 16k --placement offload --trace trace.json")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Bench,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    Memory(MemoryArgs),
    Prefill(PrefillArgs),
    Decode(DecodeArgs),
    Overlap(OverlapArgs),
    /// Attention kernels of a GPU alone; needs CUDA.
    Attention,
    /// Copies between host and device; needs CUDA.
    Link,
}

/// Device memory by context, planned, beside the layouts that the HeadInfer paper compares. Nothing is run.
#[derive(Debug, Args)]
pub(crate) struct MemoryArgs {
    /// Any MODEL; only its shape is used.
    #[arg(short, long, value_name = "MODEL", default_value = "random:llama-3-8b")]
    pub(crate) model: String,

    /// Contexts, in order.
    #[arg(short, long, value_name = "LIST", value_delimiter = ',', value_parser = parse_tokens)]
    #[arg(default_value = "1k,4k,16k,64k,128k,256k,512k,1M,2M,4M")]
    pub(crate) context: Vec<usize>,

    /// Draw both axes logarithmic.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Which model, how much of it.
#[derive(Debug, Args)]
pub(crate) struct MeasureArgs {
    /// Any MODEL that can be loaded.
    #[arg(short, long, value_name = "MODEL", default_value = "random:small")]
    pub(crate) model: String,

    /// Tokens in the cache at the end (16384, 16k, 1M).
    #[arg(short, long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CONTEXT")]
    #[arg(hide_env_values = true)]
    pub(crate) context: usize,

    /// Seed of the random ids and of the synthetic past.
    #[arg(short, long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Prefill of random ids: time, attention against the FMA peak, copies hidden.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench prefill -m random:small --context 16k
  headinfer bench prefill -m random:llama-3.2-1b --context 128k --at 127k --json")]
pub(crate) struct PrefillArgs {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Start at this depth, over a synthetic past of random K and V; default from nothing.
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) at: Option<usize>,
}

/// Decode at the end of a context: time per token, KV read against the memory's bandwidth.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench decode -m random:small --context 128k --synthetic
  headinfer bench decode -m random:small --context 16k -n 32 --placement offload")]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Tokens to decode; figures are their medians.
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: u32,

    /// Over a synthetic past of random K and V rather than a prefill.
    #[arg(long)]
    pub(crate) synthetic: bool,
}

/// One prefill step over a synthetic past: which lane did what when, and how much of the copies was hidden.
#[derive(Debug, Args)]
pub(crate) struct OverlapArgs {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Write the commands with their times in Chrome's trace format.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) trace: Option<PathBuf>,
}
