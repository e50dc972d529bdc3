//! `headinfer doctor`.

use clap::Args;

/// Say what this machine has and reaches, and keep the figures for the planner.
#[derive(Debug, Args)]
#[command(after_help = "\
Takes some seconds; other work on the machine lowers the figures.

Examples:
  headinfer doctor
  headinfer doctor --json > doctor.json")]
pub(crate) struct DoctorArgs {
    /// Only look, measure and keep nothing.
    #[arg(long)]
    pub(crate) look: bool,

    /// Worker threads to measure with; default one per core.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    #[arg(env = "HEADINFER_THREADS", hide_env_values = true)]
    pub(crate) threads: Option<u16>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
