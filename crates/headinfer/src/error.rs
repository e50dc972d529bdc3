//! From an error to what the user sees: one `error:` line, cause lines, a hint, and the exit code.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use headinfer_core::cpu::OpenError;
use headinfer_core::engine::EngineError;
use headinfer_core::model::ModelError;
use headinfer_core::niah::NiahError;
use headinfer_core::plan::PlanError;
use headinfer_core::store::StoreError;
use headinfer_core::text::TextError;
use headinfer_core::text::chat::ChatError;
use headinfer_core::units::{Bytes, MIB};
use headinfer_cuda::OpenError as CudaOpenError;

use crate::machine;

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The output's reader left: a clean end.
    Done = 0,
    /// Anything else.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The plan does not fit.
    DoesNotFit = 3,
    /// A model or an input file cannot be used.
    Input = 4,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error of the command line itself.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Failure {
    /// An error with its exit code.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, source: None }
    }

    /// The command line is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A model or an input file cannot be used.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Exit::Input, message)
    }

    /// What to type instead.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Why.
    pub(crate) fn because(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { source: Some(Box::new(source)), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

/// Prints `error` on stderr, unless it is a clean end, and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let (exit, hint) = meaning(error);
    if exit != Exit::Done {
        let mut text = lines(error);
        if let Some(hint) = hint {
            text += &format!("hint: {hint}\n");
        }
        // Nothing can be told to a user whose stderr is gone.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    exit.into()
}

/// The error and its causes, a line each, but for those that the line before already ends with.
fn lines(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for (i, cause) in error.chain().enumerate() {
        let line = one_line(&cause.to_string());
        if i == 0 || !text.trim_end().ends_with(&line) {
            text += &format!("{}{line}\n", if i == 0 { "error: " } else { "cause: " });
        }
    }
    text
}

/// The exit code of the first error of the chain that has one, and its hint.
fn meaning(error: &anyhow::Error) -> (Exit, Option<String>) {
    let mut found = error.chain().filter_map(|cause| {
        if let Some(e) = cause.downcast_ref::<Failure>() {
            return Some((e.exit, e.hint.clone()));
        }
        if let Some(e) = cause.downcast_ref::<PlanError>() {
            return Some(plan_meaning(e));
        }
        if let Some(e) = cause.downcast_ref::<ModelError>() {
            return Some((if e.is_input() { Exit::Input } else { Exit::Failed }, None));
        }
        if let Some(e) = cause.downcast_ref::<OpenError>() {
            return Some(open_meaning(e));
        }
        if let Some(e) = cause.downcast_ref::<CudaOpenError>() {
            return Some(cuda_meaning(e));
        }
        if let Some(e) = cause.downcast_ref::<NiahError>() {
            return Some(niah_meaning(e));
        }
        if let Some(e) = cause.downcast_ref::<StoreError>() {
            return Some(store_meaning(e));
        }
        if cause.is::<TextError>() || cause.is::<ChatError>() {
            return Some((Exit::Input, None));
        }
        cause.downcast_ref::<EngineError>().map(engine_meaning)
    });
    found.next().unwrap_or((Exit::Failed, None))
}

fn plan_meaning(error: &PlanError) -> (Exit, Option<String>) {
    match error {
        PlanError::DoesNotFit { hint, .. } => (Exit::DoesNotFit, Some(hint.clone())),
        PlanError::Override(_) => (Exit::Usage, None),
    }
}

fn open_meaning(error: &OpenError) -> (Exit, Option<String>) {
    match error {
        OpenError::Memory { memory: "device", .. } => {
            (Exit::DoesNotFit, Some("give a smaller --gpu-memory".into()))
        }
        OpenError::Memory { .. } => (Exit::DoesNotFit, Some(LESS_HOST_MEMORY.into())),
        OpenError::Threads(_) => (Exit::Failed, Some("give fewer --threads".into())),
        OpenError::Weights(_) => (Exit::Input, None),
    }
}

const LESS_HOST_MEMORY: &str = "give a smaller --host-memory or --context";

fn cuda_meaning(error: &CudaOpenError) -> (Exit, Option<String>) {
    match error {
        CudaOpenError::Cuda(e) => {
            let exit = if e.is_out_of_memory() { Exit::DoesNotFit } else { Exit::Failed };
            (exit, Some(e.advice().unwrap_or_else(|| "give --device cpu".into())))
        }
        CudaOpenError::DeviceMemory { free, .. } => {
            let flag = format!("--gpu-memory {}MiB or less", free.0 / MIB);
            let hint = format!("give {flag}, or end the process that holds the rest (see nvidia-smi)");
            (Exit::DoesNotFit, Some(hint))
        }
        CudaOpenError::HostMemory { .. } => (Exit::DoesNotFit, Some(LESS_HOST_MEMORY.into())),
        CudaOpenError::Pin { bytes, .. } => (Exit::DoesNotFit, Some(unpinned(*bytes, machine::locked_max()))),
        CudaOpenError::Plan(_) => (Exit::Failed, None),
        CudaOpenError::Threads(_) => (Exit::Failed, Some("give fewer --threads".into())),
        CudaOpenError::Weights(_) => (Exit::Input, None),
    }
}

/// What to do when `need` cannot be pinned under a limit on locked memory of `limit`, `None` being none.
fn unpinned(need: Bytes, limit: Option<u64>) -> String {
    match limit.filter(|limit| *limit < need.0) {
        Some(limit) => format!(
            "raise the limit on locked memory, which is {} (ulimit -l unlimited; docker run --ulimit memlock=-1), \
             or {LESS_HOST_MEMORY}",
            Bytes(limit)
        ),
        None => format!(
            "{LESS_HOST_MEMORY}: `ulimit -l` allows this much, so the system has no more pages to pin, or its \
             driver is limited (WSL pins half of the memory)"
        ),
    }
}

fn store_meaning(error: &StoreError) -> (Exit, Option<String>) {
    match error {
        StoreError::TooSmall { .. } => {
            (Exit::Usage, Some("give a larger --cache-size, or a smaller --chunk".into()))
        }
        StoreError::Folder { .. } | StoreError::Shared { .. } => {
            (Exit::Failed, Some("give another --cache-dir, or none".into()))
        }
        StoreError::Shape { .. } | StoreError::Backend | StoreError::Thread(_) => {
            (Exit::Failed, Some("leave out --cache-dir".into()))
        }
    }
}

fn engine_meaning(error: &EngineError) -> (Exit, Option<String>) {
    match error {
        EngineError::ContextFull { .. } => (Exit::DoesNotFit, None),
        EngineError::Empty | EngineError::UnknownToken { .. } | EngineError::NotFinite => (Exit::Input, None),
        EngineError::Mask(_) => (Exit::Failed, None),
        EngineError::Cancelled { .. } => (Exit::Interrupted, None),
        EngineError::Backend(_) => (Exit::Failed, None),
    }
}

fn niah_meaning(error: &NiahError) -> (Exit, Option<String>) {
    match error {
        NiahError::TooShort { .. } | NiahError::Depths(_) | NiahError::Names { .. } | NiahError::Chain => {
            (Exit::Usage, None)
        }
        NiahError::TooLong { .. } => (Exit::DoesNotFit, None),
        NiahError::Tokenizer(_) => (Exit::Input, None),
        NiahError::Cancelled { .. } => (Exit::Interrupted, None),
        NiahError::Engine(e) => engine_meaning(e),
    }
}

/// Causes come from many libraries; some speak in several lines.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_the_error_tells_is_not_told_twice() {
        let cause = || std::io::Error::other("the disk\nis full");
        let told = anyhow::Error::from(cause()).context("cannot write x: the disk is full");
        assert_eq!(lines(&told), "error: cannot write x: the disk is full\n");
        let untold = anyhow::Error::from(cause()).context("cannot write x");
        assert_eq!(lines(&untold), "error: cannot write x\ncause: the disk is full\n");
    }

    #[test]
    fn what_cannot_be_pinned_names_the_limit_that_may_be_the_cause() {
        assert!(
            unpinned(Bytes(8 * MIB), Some(MIB))
                .starts_with("raise the limit on locked memory, which is 1.00 MiB")
        );
        for limit in [None, Some(16 * MIB)] {
            let hint = unpinned(Bytes(8 * MIB), limit);
            assert!(hint.contains("--host-memory") && !hint.contains("raise"), "{hint}");
        }
    }
}
