//! What can be wrong with a model, in one line that names the file and the field.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model cannot be used. `Display` is always one line: where, what, and what to do where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file or folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was opened.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file cannot be written. The only variant, with [`ModelError::Network`], that is not about the input.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A field of a JSON file has a value that cannot be used.
    #[error("{}: `{field}` {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Dotted path of the field.
        field: String,
        /// What is wrong with it, as the end of a sentence that starts with the field.
        problem: String,
    },
    /// The model uses something that is not implemented.
    #[error("{}: `{field}`: {what} '{value}' is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Dotted path of the field.
        field: String,
        /// What kind of thing it names (architecture, rope kind, …).
        what: &'static str,
        /// Its value in the file.
        value: String,
        /// What would be read.
        supported: &'static str,
    },
    /// A tensor is missing or cannot be used.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// The file, or the folder when no file has it.
        path: PathBuf,
        /// Its name in the checkpoint.
        tensor: String,
        /// What is wrong with it, as the end of a sentence that starts with the tensor.
        problem: String,
    },
    /// The name given is neither a folder nor a model that can be found.
    #[error("model '{model}': {problem}")]
    NotFound {
        /// What the user typed.
        model: String,
        /// Why it names nothing, and what would.
        problem: String,
    },
    /// The hub did not answer, or not with the model.
    #[error("model '{model}': the hub at {endpoint} failed: {problem}")]
    Network {
        /// What the user typed.
        model: String,
        /// Where the request went.
        endpoint: String,
        /// The hub client's answer.
        problem: String,
    },
}

impl ModelError {
    /// Whether the model given is at fault (exit code 4), not the network or the output folder (exit code 1).
    pub fn is_input(&self) -> bool {
        !matches!(self, ModelError::Network { .. } | ModelError::Write { .. })
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        ModelError::Read { path: path.into(), source }
    }

    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        ModelError::Write { path: path.into(), source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        ModelError::File { path: path.into(), problem: problem.into() }
    }

    pub(crate) fn field(path: &Path, field: &str, problem: impl Into<String>) -> Self {
        ModelError::Field { path: path.into(), field: field.into(), problem: problem.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        ModelError::Tensor { path: path.into(), tensor: printable(tensor), problem: problem.into() }
    }
}

/// A string from a file, made fit for one line: control characters escaped, at most 120 characters.
pub(crate) fn printable(text: &str) -> String {
    let mut out: String = text.chars().take(120).flat_map(|c| c.escape_debug()).collect();
    if text.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}
