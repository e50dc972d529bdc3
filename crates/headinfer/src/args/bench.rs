//! `headinfer bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use headinfer_core::plan::DECODE_ROWS;
use headinfer_core::units::parse_tokens;

use super::shared::host_heads;
use super::{DeviceChoice, EngineArgs, GuessArgs, HostHeads};

/// Measure the engine, each figure beside the ceiling of this machine in the same run.
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  headinfer bench memory --plot memory.svg
  headinfer bench prefill -m random:small --context 16k
  headinfer bench decode -m random:small --context 128k --synthetic
  headinfer bench quality -m ./my-model -f book.txt --kv-dtype int8
  headinfer bench overlap -m random:small --context 16k --placement offload --trace trace.json
  headinfer bench attention --device cpu
  headinfer bench kernels -m random:llama-3-8b
  headinfer bench link")]
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
    Quality(QualityArgs),
    Overlap(OverlapArgs),
    Split(SplitArgs),
    Attention(AttentionArgs),
    Kernels(KernelsArgs),
    Link(LinkArgs),
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

/// Prefill of random ids: time against the floor, attention against its ceiling, copies hidden.
///
/// On the CPU the floor is by the planner's rates and attention's ceiling is the multiply-add peak; on a GPU both are
/// measured in the run, before it and after it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench prefill -m random:small --context 16k
  headinfer bench prefill -m random:llama-3.2-1b --context 128k --at 127k --json
  headinfer bench prefill -m random:llama-3-8b --context 512k --at 504k --profile
  headinfer bench prefill -m random:llama-3-8b --context 1000010 -n 10 --gpu-memory 24GiB")]
pub(crate) struct PrefillArgs {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Start at this depth, over a synthetic past of random K and V; default from nothing.
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub(crate) at: Option<usize>,

    /// Greedy tokens to decode after it; they are the last of the context.
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub(crate) tokens: u32,

    /// Say where the time went, op by op: how much of it the commands account for, and what each reached.
    #[arg(long)]
    pub(crate) profile: bool,
}

/// Decode at the end of a context: time per token against the floor, KV read or copied against the bandwidth.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench decode -m random:small --context 128k --synthetic
  headinfer bench decode -m random:small --context 16k -n 32 --placement offload
  headinfer bench decode -m builtin:retrieval --context 32k -n 128 --text quote")]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// Tokens to decode; the time is their median.
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: u32,

    /// Over a synthetic past of random K and V rather than a prefill.
    #[arg(long, conflicts_with = "text")]
    pub(crate) synthetic: bool,

    /// Greedy tokens after a text, without guesses and with them in turns: quote, own, or a file.
    ///
    /// `quote` and `own` are made for retrieval models: the first holds its answer word for word, apart from what it is
    /// found from, and in the second nothing stands twice.
    #[arg(long, value_name = "quote|own|FILE")]
    pub(crate) text: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) guess: GuessArgs,
}

/// What --kv-dtype costs on a text: perplexity, KL divergence, same top tokens, needles' margins, against exact KV.
///
/// Two sessions take in the text side by side, one with exact K and V and one with those of --kv-dtype, and all their
/// distributions are compared. Only what comes back from host memory is coded, in whole units of 256 tokens: a step's own
/// tokens and the last few before it are as computed. So unless told otherwise all heads live there (--placement offload)
/// and chunks are short (--chunk 256), and the report says what share of the keys was read back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench quality -m ./my-model -f book.txt --kv-dtype int8
  headinfer bench quality -m ./my-model --ids ids.safetensors --kv-dtype int4 --context 8k --tokens 64k --json")]
pub(crate) struct QualityArgs {
    /// Any MODEL that can be loaded.
    #[arg(short, long, value_name = "MODEL", env = "HEADINFER_MODEL", hide_env_values = true)]
    pub(crate) model: String,

    #[command(flatten)]
    pub(crate) text: QualityText,

    /// Most tokens that one is predicted from; a longer text is taken in windows. Needles are hidden in as many.
    #[arg(short, long, value_name = "N", value_parser = some_tokens, default_value = "4k")]
    #[arg(env = "HEADINFER_CONTEXT", hide_env_values = true)]
    pub(crate) context: usize,

    /// Tokens to predict, at most.
    #[arg(short = 'n', long, value_name = "N", value_parser = some_tokens, default_value = "16k")]
    pub(crate) tokens: usize,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

/// Which text.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct QualityText {
    /// The text.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// The text as token ids: safetensors with `ids` i32 `[n]`, or a JSON list.
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: Option<PathBuf>,
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

/// Decode with each of several `--host-heads` in turn: what each takes, which is best, and how far from it `auto` is.
///
/// Every split is opened, measured over a synthetic past and closed before the next, so that each has all the memory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench split -m random:llama-3-8b -c 128k --gpu-memory 24GiB --placement offload
  headinfer bench split -m random:small -c 32k --device cpu --placement offload --heads auto,0,16,32 --json")]
pub(crate) struct SplitArgs {
    #[command(flatten)]
    pub(crate) measure: MeasureArgs,

    /// What to try in place of `--host-heads`; default `auto` and every eighth of the model's (layer, KV head) pairs.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = host_heads)]
    pub(crate) heads: Vec<HostHeads>,

    /// Tokens to decode with each; the time is their median.
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: u32,
}

/// Attention kernels alone: prefill, causal and over a past, and decode.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  headinfer bench attention
  headinfer bench attention --device cpu --head-dim 64 --json")]
pub(crate) struct AttentionArgs {
    /// What computes; auto takes the GPU when there is one.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    #[arg(env = "HEADINFER_DEVICE", hide_env_values = true)]
    pub(crate) device: DeviceChoice,

    /// Elements of a head: a multiple of 8.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = head_dim)]
    pub(crate) head_dim: usize,

    /// On a GPU, tokens of the past per launch, a multiple of 256.
    #[arg(long, value_name = "N", default_value = "32k", value_parser = tile)]
    pub(crate) tile: usize,

    /// On a GPU, which kernel of prefill attention: the one that runs use there, or the one of GPUs before and after Hopper.
    #[arg(long, value_enum, value_name = "KERNEL", default_value_t = KernelChoice::Auto)]
    pub(crate) kernel: KernelChoice,

    /// On the CPU, the instruction set of kernels and ceilings: the best there is, or a lesser one, as a CPU without better has.
    #[arg(long, value_enum, value_name = "ISA", default_value_t = IsaChoice::Auto)]
    pub(crate) isa: IsaChoice,

    /// Worker threads on the CPU; default one per core.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(env = "HEADINFER_THREADS", hide_env_values = true)]
    pub(crate) threads: Option<u16>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Instruction sets of the CPU's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsaChoice {
    /// The best this CPU has, as in every run.
    Auto,
    /// None in particular.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

/// Kernels of prefill attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelChoice {
    /// What runs use on the device.
    Auto,
    /// What every device can run.
    Portable,
}

/// A layer's products beside the best that cuBLASLt has, and the kernels bound by memory beside a copy; needs CUDA.
///
/// Each product is timed by every candidate of cuBLASLt's heuristic, the fastest of them in turns with the one that runs
/// use. Each kernel is timed in turns with a copy within the device that reads and writes as many bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  headinfer bench kernels -m random:qwen3-8b --json > kernels.json")]
pub(crate) struct KernelsArgs {
    /// Any MODEL; only its shape is used.
    #[arg(short, long, value_name = "MODEL", default_value = "random:llama-3-8b")]
    pub(crate) model: String,

    /// Rows of a step, more than decode has; default the plan's chunk. The MLP's products have at most a block of the plan.
    #[arg(long, value_name = "N", value_parser = prefill_rows)]
    pub(crate) rows: Option<usize>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Copies between pinned host memory and a GPU by size, one way and both, and copies within the GPU; needs CUDA.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  headinfer bench link --json > link.json")]
pub(crate) struct LinkArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Widest head that is measured.
const HEAD_DIM_MAX: usize = 256;
/// Longest tile that is measured.
const TILE_MAX: usize = 1 << 20;
/// Most rows that are measured.
const ROWS_MAX: usize = 1 << 17;

fn some_tokens(text: &str) -> Result<usize, String> {
    match parse_tokens(text)? {
        0 => Err("give at least 1".into()),
        tokens => Ok(tokens),
    }
}

fn head_dim(text: &str) -> Result<usize, String> {
    let fits = |n: &usize| (8..=HEAD_DIM_MAX).contains(n) && n.is_multiple_of(8);
    let help = || format!("'{text}' is not a multiple of 8 up to {HEAD_DIM_MAX}");
    text.parse().ok().filter(fits).ok_or_else(help)
}

fn prefill_rows(text: &str) -> Result<usize, String> {
    let fits = |n: &usize| (DECODE_ROWS + 1..=ROWS_MAX).contains(n);
    let help = || format!("'{text}' is not within {}..={ROWS_MAX}", DECODE_ROWS + 1);
    parse_tokens(text).ok().filter(fits).ok_or_else(help)
}

fn tile(text: &str) -> Result<usize, String> {
    let fits = |n: &usize| (256..=TILE_MAX).contains(n) && n.is_multiple_of(256);
    let help = || format!("'{text}' is not a multiple of 256 up to {TILE_MAX}");
    parse_tokens(text).ok().filter(fits).ok_or_else(help)
}
