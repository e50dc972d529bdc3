//! `headinfer doctor`.

use clap::Args;

/// Say what this machine has and reaches, and keep the figures for the planner.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {}
