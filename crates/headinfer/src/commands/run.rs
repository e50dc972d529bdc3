//! `headinfer run`.

use anyhow::Result;

use crate::args::{Environment, RunArgs};
use crate::error::{Exit, Failure};

/// Runs the command.
///
/// # Errors
/// Always: it is not part of this build.
pub(crate) fn run(_: &RunArgs, _: &Environment) -> Result<()> {
    Err(Failure::new(Exit::Failed, "run is not part of this build").into())
}
