//! `headinfer model make`: a generated model as a folder.

use std::path::Path;

use anyhow::Result;
use headinfer_core::model::write::write_model;

use crate::args::{Environment, ModelArgs, ModelCommand};
use crate::error::{Exit, Failure};
use crate::model_source::ModelSource;
use crate::output;

/// Writes the model.
///
/// # Errors
/// When the kind is unknown, the folder is not empty, or it cannot be written.
pub(crate) fn run(args: &ModelArgs, environment: &Environment) -> Result<()> {
    let ModelCommand::Make { kind, out } = &args.command;
    let source = ModelSource::parse(&kind.0)?;
    must_be_free(out)?;
    let model = source.find(&environment.hub)?;
    // A retrieval model has words of its own.
    let files = model.retrieval().map_or(Vec::new(), |retrieval| {
        vec![
            ("tokenizer.json", retrieval.tokenizer_json()),
            ("tokenizer_config.json", retrieval.tokenizer_config_json()),
        ]
    });
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    write_model(out, &model.spec, &*model.weights()?, &files)?;
    output::remark(&format!("wrote {}", out.display()));
    Ok(())
}

/// A folder that holds something is not ours to fill.
fn must_be_free(out: &Path) -> Result<()> {
    let taken = |what: &str| {
        let message = format!("cannot write {}: {what}", out.display());
        Err(Failure::new(Exit::Failed, message).hint("give --out a new or empty folder").into())
    };
    match std::fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => taken("the folder is not empty"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => taken(&e.to_string()),
    }
}
