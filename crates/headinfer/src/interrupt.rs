//! Ctrl-C: the first asks running work to stop at its next safe point, the second ends the process.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Exit, Failure};
use crate::output;

/// Work that asks [`requested`] is running.
static COOPERATIVE: AtomicBool = AtomicBool::new(false);
static REQUESTED: AtomicBool = AtomicBool::new(false);
/// See [`tell`].
static TELL: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Catches Ctrl-C and termination.
///
/// # Errors
/// When the system refuses the handler.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        let first = !REQUESTED.swap(true, Ordering::SeqCst);
        if let Some(tell) = TELL.get() {
            tell();
        }
        if !(first && COOPERATIVE.load(Ordering::SeqCst)) {
            output::discard_unfinished();
            std::process::exit(Exit::Interrupted as i32);
        }
    })?;
    Ok(())
}

/// While it lives, the first Ctrl-C only asks; without it, Ctrl-C ends the process at once.
pub(crate) struct Cooperative(());

/// Work begins that asks [`requested`] often.
pub(crate) fn cooperative() -> Cooperative {
    COOPERATIVE.store(true, Ordering::SeqCst);
    Cooperative(())
}

impl Drop for Cooperative {
    fn drop(&mut self) {
        COOPERATIVE.store(false, Ordering::SeqCst);
    }
}

/// Calls `hook` at Ctrl-C and termination, from a thread of its own: for work that cannot ask. Only the first
/// hook of a process is taken.
pub(crate) fn tell(hook: impl Fn() + Send + Sync + 'static) {
    let _ = TELL.set(Box::new(hook));
}

/// Whether to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// `Break` when to stop.
pub(crate) fn flow() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// The error of work that was stopped.
pub(crate) fn interrupted(what: &str) -> Failure {
    Failure::new(Exit::Interrupted, format!("interrupted {what}"))
}
