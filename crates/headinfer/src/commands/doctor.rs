//! `headinfer doctor`.

use anyhow::Result;

use crate::args::{DoctorArgs, Environment};
use crate::error::{Exit, Failure};

/// Runs the command.
///
/// # Errors
/// Always: it is not part of this build.
pub(crate) fn run(_: &DoctorArgs, _: &Environment) -> Result<()> {
    Err(Failure::new(Exit::Failed, "doctor is not part of this build").into())
}
