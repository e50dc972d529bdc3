//! Flags that several commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use headinfer_core::engine::guess::Speculation;
use headinfer_core::plan::{DECODE_ROWS, KvFormat, PlacementMode, WeightsMode};
use headinfer_core::units::{Bytes, parse_bytes, parse_tokens};

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct ModelArg {
    /// Folder in the Hugging Face layout, hub id `org/name`, `builtin:retrieval[:SHAPE]` or
    /// `random:SHAPE[:seed]`.
    #[arg(short, long, value_name = "MODEL", env = "HEADINFER_MODEL", hide_env_values = true)]
    pub(crate) model: String,
}

/// Where and how to run; all optional.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device and memory")]
pub(crate) struct EngineArgs {
    /// What computes; auto takes the GPU when there is one.
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = DeviceChoice::Auto)]
    #[arg(env = "HEADINFER_DEVICE", hide_env_values = true)]
    pub(crate) device: DeviceChoice,

    /// Cap on all device memory the process uses, driver included (24GiB, 512MiB).
    ///
    /// On `cpu` it is the size of the arena that plays the device. Default: on `cpu` half of the available
    /// memory, on `cuda` what the card has free, or 24GiB when it is only planned for.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, env = "HEADINFER_GPU_MEMORY")]
    #[arg(hide_env_values = true)]
    pub(crate) gpu_memory: Option<Bytes>,

    /// Cap on the host memory of the KV store (24GiB, 512MiB).
    ///
    /// Default: on `cpu` half of the available memory, on `cuda` all of it. Available is what the system and
    /// the cgroup leave, less the weights of a generated model.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, env = "HEADINFER_HOST_MEMORY")]
    #[arg(hide_env_values = true)]
    pub(crate) host_memory: Option<Bytes>,

    /// New tokens per prefill step; default from the plan.
    #[arg(long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_CHUNK")]
    #[arg(hide_env_values = true)]
    pub(crate) chunk: Option<usize>,

    /// Tokens per tile of the KV cache, a multiple of 256; default from the plan.
    #[arg(long, value_name = "N", value_parser = parse_tokens, env = "HEADINFER_TILE")]
    #[arg(hide_env_values = true)]
    pub(crate) tile: Option<usize>,

    /// KV heads attended per launch; default from the plan.
    #[arg(long, value_name = "N", env = "HEADINFER_HEADS_PER_GROUP", hide_env_values = true)]
    pub(crate) heads_per_group: Option<usize>,

    /// Where KV heads live: as many on the device as fit, all of them, or none.
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = Placement::Auto)]
    #[arg(env = "HEADINFER_PLACEMENT", hide_env_values = true)]
    pub(crate) placement: Placement,

    /// How many (layer, KV head) pairs the CPU attends to in decode, where their KV lies: a number, or `auto`.
    ///
    /// `auto` keeps the CPU at work as long as the link is with the other heads that live in host memory, by `doctor`'s
    /// rates. The CPU rounds otherwise than a GPU: without this no bit of an answer depends on where heads live.
    #[arg(long, value_name = "N|auto", default_value = "0", value_parser = host_heads)]
    #[arg(env = "HEADINFER_HOST_HEADS", hide_env_values = true)]
    pub(crate) host_heads: HostHeads,

    /// What K and V in host memory are: as computed, packed without losing a bit, or quantised.
    ///
    /// `bf16-packed` takes about three quarters of the memory and of the way over the link, and gives the same output to the
    /// last bit. `int8` and `int4` are lossy: about 1.9 and 3.6 times smaller, and the output is another one, which also
    /// depends on what stays on the device; `headinfer bench quality` says how far off it is. Heads that stay on the device,
    /// up to 255 tokens before the newest and the session store have bf16 in any case.
    #[arg(long, value_enum, value_name = "FORM", default_value_t = KvDtype::Bf16)]
    #[arg(env = "HEADINFER_KV_DTYPE", hide_env_values = true)]
    pub(crate) kv_dtype: KvDtype,

    /// Where weights live: as it fits, copied to the device, or streamed layer by layer, output head included (where
    /// memory is left, up to an eighth of the layers stays).
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = WeightsChoice::Auto)]
    #[arg(env = "HEADINFER_WEIGHTS", hide_env_values = true)]
    pub(crate) weights: WeightsChoice,

    /// Worker threads on the CPU; default one per core, and one less where they attend beside a GPU.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(env = "HEADINFER_THREADS", hide_env_values = true)]
    pub(crate) threads: Option<u16>,
}

/// Whether and where the KV cache is kept on disk.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Session store")]
pub(crate) struct StoreArgs {
    /// Folder that keeps prefills: what begins as an earlier text did goes on from there, also after a crash.
    ///
    /// It is made for this user alone. Model, chunk and kind of device must be the same; memory, placement and
    /// tile may differ. Checkpoints are whole chunks, at least 512 tokens; --host-memory holds two of them besides the KV.
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_dir: Option<PathBuf>,

    /// Most bytes in that folder; what was not used for longest goes first.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "64GiB")]
    pub(crate) cache_size: Bytes,
}

/// `--host-heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostHeads {
    /// As many as the machine's rates say.
    Auto,
    /// So many.
    Count(usize),
}

impl HostHeads {
    /// The number, where one is given.
    pub(crate) fn count(self) -> Option<usize> {
        match self {
            Self::Auto => None,
            Self::Count(n) => Some(n),
        }
    }
}

pub(super) fn host_heads(text: &str) -> Result<HostHeads, String> {
    match text {
        "auto" => Ok(HostHeads::Auto),
        _ => {
            text.parse().map(HostHeads::Count).map_err(|_| format!("'{text}' is neither a number nor `auto`"))
        }
    }
}

/// Whether tokens are guessed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Decode")]
pub(crate) struct GuessArgs {
    /// Guess tokens from what the text says elsewhere, and check several in one pass: auto, off, or up to N a pass.
    ///
    /// It changes no token and no logit. Auto takes as many guesses as pay, by how often they were right and what rows
    /// cost: many where a pass is bound by the KV it reads and the text quotes itself, none where they are wrong.
    #[arg(long, value_name = "auto|off|N", value_parser = speculation, default_value = "auto")]
    #[arg(env = "HEADINFER_SPECULATE", hide_env_values = true)]
    pub(crate) speculate: Speculation,
}

impl GuessArgs {
    /// Whether there may be guesses.
    pub(crate) fn any(&self) -> bool {
        self.speculate != Speculation::Off
    }
}

fn speculation(text: &str) -> Result<Speculation, String> {
    const MOST: usize = DECODE_ROWS - 1;
    match (text, text.parse()) {
        ("auto", _) => Ok(Speculation::Auto),
        ("off", _) => Ok(Speculation::Off),
        (_, Ok(guesses)) if (1..=MOST).contains(&guesses) => Ok(Speculation::Fixed(guesses)),
        _ => Err(format!("write auto, off, or a number of guesses within 1..={MOST}")),
    }
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    /// A CUDA GPU when there is one, else the CPU.
    Auto,
    /// The CPU; an arena in its memory plays the device.
    Cpu,
    /// A CUDA GPU.
    Cuda,
}

/// `--placement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placement {
    /// As many KV heads stay on the device as fit.
    Auto,
    /// All KV heads stay on the device.
    Resident,
    /// All KV heads live in host memory.
    Offload,
}

impl From<Placement> for PlacementMode {
    fn from(placement: Placement) -> Self {
        match placement {
            Placement::Auto => PlacementMode::Auto,
            Placement::Resident => PlacementMode::Resident,
            Placement::Offload => PlacementMode::Offload,
        }
    }
}

/// `--kv-dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvDtype {
    /// As computed.
    Bf16,
    /// The same bits in about three quarters of the bytes.
    Bf16Packed,
    /// Lossy: 8 bits a value.
    Int8,
    /// Lossy: 4 bits a value.
    Int4,
}

impl From<KvDtype> for KvFormat {
    fn from(dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::Bf16 => KvFormat::Bf16,
            KvDtype::Bf16Packed => KvFormat::Bf16Packed,
            KvDtype::Int8 => KvFormat::Int8,
            KvDtype::Int4 => KvFormat::Int4,
        }
    }
}

/// `--weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsChoice {
    /// In place on the CPU; on a GPU resident when they fit, else streamed.
    Auto,
    /// Copied to the device.
    Resident,
    /// Streamed to the device layer by layer.
    Stream,
}

impl From<WeightsChoice> for WeightsMode {
    fn from(weights: WeightsChoice) -> Self {
        match weights {
            WeightsChoice::Auto => WeightsMode::Auto,
            WeightsChoice::Resident => WeightsMode::Resident,
            WeightsChoice::Stream => WeightsMode::Stream,
        }
    }
}
