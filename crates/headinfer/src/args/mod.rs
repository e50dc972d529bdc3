//! What the user typed, typed: flags over environment over defaults. The only room that reads the environment.

mod bench;
mod doctor;
mod environment;
mod logits;
mod model;
mod niah;
mod plan;
mod run;
mod serve;
mod shared;
mod usage;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

pub(crate) use bench::{
    AttentionArgs, Bench, BenchArgs, DecodeArgs, IsaChoice, KernelChoice, KernelsArgs, LinkArgs, MeasureArgs,
    MemoryArgs, OverlapArgs, PrefillArgs, QualityArgs, SplitArgs,
};
pub(crate) use doctor::DoctorArgs;
pub(crate) use environment::Environment;
pub(crate) use logits::LogitsArgs;
pub(crate) use model::{ModelArgs, ModelCommand};
pub(crate) use niah::NiahArgs;
pub(crate) use plan::PlanArgs;
pub(crate) use run::RunArgs;
pub(crate) use serve::ServeArgs;
pub(crate) use shared::{DeviceChoice, EngineArgs, GuessArgs, HostHeads, KvDtype, ModelArg, StoreArgs};

/// Exact long-context LLM inference on one small GPU, or none.
#[derive(Debug, Parser)]
#[command(name = "headinfer", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// No progress and no remarks on stderr, only errors.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub(crate) quiet: bool,

    /// What to log on stderr: error, warn, info, debug or trace, or `target=level` pairs.
    #[arg(long, value_name = "FILTER", env = "HEADINFER_LOG", default_value = "warn", global = true)]
    #[arg(hide_env_values = true, help_heading = "Output")]
    pub(crate) log: String,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
MODEL, where a command takes one, is a folder in the Hugging Face layout, a hub id `org/name`,
`builtin:retrieval[:SHAPE]` or `random:SHAPE[:seed]`.

Examples:
  headinfer niah --context 16k --gpu-memory 16MiB
  headinfer plan -m random:llama-3-8b --context 1M --device cuda --host-memory 256GiB
  headinfer run -m ./my-model -f book.txt -p 'Who did it?' -n 64

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 does not fit, 4 unusable model or input, 130 interrupted.";

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Plan(PlanArgs),
    Run(Box<RunArgs>),
    Serve(Box<ServeArgs>),
    Niah(NiahArgs),
    Logits(LogitsArgs),
    Bench(Box<BenchArgs>),
    Doctor(DoctorArgs),
    Model(ModelArgs),
    /// Print shell completions.
    #[command(
        after_help = "Example:\n  headinfer completions bash > ~/.local/share/bash-completion/completions/headinfer"
    )]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Reads the command line and the environment. `Err` is the end of the process: help, version or wrong usage,
/// already printed.
pub(crate) fn parse() -> Result<(Cli, Environment), ExitCode> {
    match Cli::try_parse() {
        Ok(cli) => Ok((cli, Environment::read())),
        Err(error) => Err(usage::print(&error)),
    }
}

/// Sends log lines that pass the filter to stderr.
pub(crate) fn logging(cli: &Cli) {
    let filter = match cli.quiet {
        true => "error",
        false => cli.log.as_str(),
    };
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).without_time().init();
}

/// The grammar, for completions.
pub(crate) fn grammar() -> clap::Command {
    Cli::command()
}
