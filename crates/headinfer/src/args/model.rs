//! `headinfer model`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Make models.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    pub(crate) command: ModelCommand,
}

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Write a generated model to a folder in the Hugging Face layout.
    #[command(after_help = "\
Examples:
  headinfer model make retrieval --out ./retrieval
  headinfer model make random:tiny:7 --out ./tiny
  headinfer model make random:llama-3.2-1b --out ./random-1b")]
    Make {
        /// `retrieval[:SHAPE]` or `random:SHAPE[:seed]`.
        #[arg(value_name = "KIND")]
        kind: ModelKind,

        /// Folder to write; made when absent, refused when not empty.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// A model that can be made, under the name that `-m` knows it by.
#[derive(Clone, Debug)]
pub(crate) struct ModelKind(pub(crate) String);

impl std::str::FromStr for ModelKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split(':').next() {
            Some("retrieval") => Ok(Self(format!("builtin:{text}"))),
            Some("random" | "builtin") => Ok(Self(text.to_owned())),
            _ => Err("write retrieval, retrieval:SHAPE or random:SHAPE[:seed]".into()),
        }
    }
}
