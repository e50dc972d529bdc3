//! `headinfer plan`.

use clap::Args;
use headinfer_core::units::parse_tokens;

use super::{EngineArgs, GuessArgs, ModelArg};

/// Say whether and how a context fits, without weights and without a GPU.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer plan -m random:llama-3-8b --context 1M --device cuda --host-memory 256GiB
  headinfer plan -m ./my-model -c 128k --gpu-memory 8GiB --json
  headinfer plan -m Qwen/Qwen2.5-7B -c 512k --device cuda --placement offload")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// Most tokens in the cache, prompt and output together (131072, 128k, 1M).
    #[arg(short, long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CONTEXT")]
    #[arg(hide_env_values = true)]
    pub(crate) context: usize,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,

    #[command(flatten)]
    pub(crate) guess: GuessArgs,
}
