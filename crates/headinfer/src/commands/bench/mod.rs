//! `headinfer bench`.

use anyhow::Result;

use crate::args::{BenchArgs, Environment};
use crate::error::{Exit, Failure};

/// Runs the command.
///
/// # Errors
/// Always: it is not part of this build.
pub(crate) fn run(_: &BenchArgs, _: &Environment) -> Result<()> {
    Err(Failure::new(Exit::Failed, "bench is not part of this build").into())
}
