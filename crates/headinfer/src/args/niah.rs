//! `headinfer niah`.

use std::path::PathBuf;

use clap::Args;
use headinfer_core::niah::even_depths;
use headinfer_core::units::parse_tokens;

use super::EngineArgs;

/// Needle in a haystack: hide facts at depths of a long text and ask for each.
#[derive(Debug, Args)]
#[command(after_help = "\
Exits with 1 when an answer is wrong.

Examples:
  headinfer niah --context 16k --gpu-memory 16MiB
  headinfer niah -c 32k --seeds 3 --placement offload --json
  headinfer niah -c 8k --depths 0,0.25,0.5,0.75,1 --plot niah.svg")]
pub(crate) struct NiahArgs {
    /// Model to ask: `builtin:retrieval[:SHAPE]` in its own words, any other in English.
    #[arg(short, long, value_name = "MODEL", default_value = "builtin:retrieval")]
    pub(crate) model: String,

    /// Tokens of the haystack and the questions (16384, 16k, 1M).
    #[arg(short, long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CONTEXT")]
    #[arg(hide_env_values = true)]
    pub(crate) context: usize,

    /// Depths to ask at, from 0 (the beginning) to 1 (the end), or how many, evenly spaced; default 11.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = depth)]
    depths: Vec<f64>,

    /// Haystacks, each of its own seed.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) seeds: u32,

    /// First seed.
    #[arg(short, long, value_name = "SEED", default_value_t = 0)]
    pub(crate) seed: u64,

    /// Facts that one question leads through, each at another depth; default 3. Retrieval models only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) chain: Option<u8>,

    /// Draw a heat map of depth and seed.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

impl NiahArgs {
    /// Where to ask.
    ///
    /// # Errors
    /// A sentence, when a number of depths stands among depths.
    pub(crate) fn depths(&self) -> Result<Vec<f64>, String> {
        match self.depths[..] {
            [] => Ok(even_depths(11)),
            [count] if count > 1.0 => Ok(even_depths(count as usize)),
            ref list if list.iter().all(|d| *d <= 1.0) => Ok(list.to_vec()),
            _ => Err("--depths takes depths from 0 to 1, or one number of depths, not both".into()),
        }
    }
}

/// Most depths that may be asked for by their number.
const DEPTHS_MAX: f64 = 1000.0;

fn depth(text: &str) -> Result<f64, String> {
    let help = || format!("'{text}' is not a depth; write numbers from 0 to 1, such as 0,0.5,1, or how many");
    let is_depth = |d: &f64| (0.0..=1.0).contains(d) || (2.0..=DEPTHS_MAX).contains(d) && d.fract() == 0.0;
    text.trim().parse::<f64>().ok().filter(is_depth).ok_or_else(help)
}
