//! `headinfer run`.

use std::path::PathBuf;

use clap::Args;
use headinfer_core::engine::sample::Sampling;
use headinfer_core::units::parse_tokens;

use super::{EngineArgs, GuessArgs, ModelArg, StoreArgs};

/// Continue a text: prefill it and generate.
#[derive(Debug, Args)]
#[command(after_help = "\
The prompt is the file, then the text of -p; standard input when neither is given. The continuation goes to
standard output as it comes; the last line on standard error sums up.

Examples:
  headinfer run -m ./my-model -f book.txt -p 'In one sentence:' -n 100
  head -c 200000 log.txt | headinfer run -m ./my-model --gpu-memory 2GiB
  headinfer run -m ./my-model -f book.txt -p 'And why?' --cache-dir ~/.cache/headinfer/sessions
  headinfer run -m ./my-model --chat -p 'Why is the sky blue?' --temp 0.7 --top-p 0.9 -s 1")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,

    /// File with the prompt, UTF-8.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Prompt; comes after the file when both are given.
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,

    /// Most new tokens; default 128, or what --context leaves.
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) new_tokens: Option<usize>,

    /// Most tokens in the cache; default prompt and new tokens together.
    #[arg(short, long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CONTEXT")]
    #[arg(hide_env_values = true)]
    pub(crate) context: Option<usize>,

    /// Put the prompt through the model's chat template, as the user's message.
    #[arg(long)]
    pub(crate) chat: bool,

    /// System message; implies --chat.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,

    /// End at this text, which is not printed; may be given up to 16 times.
    #[arg(long, value_name = "STRING")]
    pub(crate) stop: Vec<String>,

    /// Print one JSON object at the end instead of the text as it comes.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) guess: GuessArgs,

    #[command(flatten)]
    pub(crate) store: StoreArgs,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 takes the likeliest token.
    #[arg(long, alias = "temperature", value_name = "T", default_value_t = 0.0)]
    pub(crate) temp: f32,

    /// Draw from this many of the likeliest tokens.
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,

    /// Draw from the likeliest tokens whose probabilities reach this sum.
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,

    /// Draw from tokens at least this times as likely as the likeliest.
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,

    /// Make tokens seen before less likely; 1 is off.
    #[arg(long, alias = "repetition-penalty", value_name = "R")]
    pub(crate) repeat_penalty: Option<f32>,

    /// Seed of the draws.
    #[arg(short, long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,
}

impl SamplingArgs {
    /// As the engine takes it.
    ///
    /// # Errors
    /// A sentence naming the parameter and its range.
    pub(crate) fn sampling(&self) -> Result<Sampling, String> {
        let sampling = Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            seed: self.seed,
        };
        sampling.validate().map(|()| sampling)
    }
}
