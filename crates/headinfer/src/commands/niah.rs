//! `headinfer niah`.

use anyhow::Result;

use crate::args::{Environment, NiahArgs};
use crate::error::{Exit, Failure};

/// Runs the command.
///
/// # Errors
/// Always: it is not part of this build.
pub(crate) fn run(_: &NiahArgs, _: &Environment) -> Result<()> {
    Err(Failure::new(Exit::Failed, "niah is not part of this build").into())
}
