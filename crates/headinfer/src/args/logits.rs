//! `headinfer logits`.

use std::path::PathBuf;

use clap::Args;
use headinfer_core::units::parse_tokens;

use super::{EngineArgs, ModelArg};

/// Score given token ids: logits of the last K positions, and a greedy continuation.
#[derive(Debug, Args)]
#[command(after_help = "\
FILE is safetensors with `ids` i32 [n], or a JSON list. OUT is safetensors with `logits` f32 [K, vocab], and
`greedy` i32 [M] when --greedy is given.

Examples:
  echo '[1, 2, 3]' > ids.json
  headinfer logits -m random:tiny --ids ids.json --last 3 --out logits.safetensors
  headinfer logits -m ./my-model --ids ids.safetensors --last 1 --greedy 32 --out out.safetensors")]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// Token ids: safetensors with `ids` i32 `[n]`, or a JSON list.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,

    /// Positions to keep the logits of, from the end.
    #[arg(long, value_name = "K", value_parser = parse_tokens, default_value = "1")]
    pub(crate) last: usize,

    /// Continue greedily by this many tokens.
    #[arg(long, value_name = "M", value_parser = parse_tokens, default_value = "0", hide_default_value = true)]
    pub(crate) greedy: usize,

    /// Where to write.
    #[arg(long, value_name = "OUT")]
    pub(crate) out: PathBuf,

    /// Most tokens in the cache; default the ids and the continuation together.
    #[arg(short, long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CONTEXT")]
    #[arg(hide_env_values = true)]
    pub(crate) context: Option<usize>,

    /// Print one JSON object about the run.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}
