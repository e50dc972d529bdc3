//! The session store as a command uses it: opened from flags, and spoken of on stderr.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use headinfer_core::engine::{EngineError, Session};
use headinfer_core::store::{Store, StoreError, StoreOptions, Trail};

use crate::args::StoreArgs;
use crate::model_source::Model;
use crate::{interrupt, output};

/// The store that the flags ask for; `None` without `--cache-dir`.
///
/// # Errors
/// When the folder cannot be used.
pub(crate) fn store(args: &StoreArgs) -> Result<Option<Store>, StoreError> {
    let options = StoreOptions { bytes_max: args.cache_size.0, ..StoreOptions::default() };
    args.cache_dir.as_deref().map(|folder| Store::open(folder, &options)).transpose()
}

/// Brings back and keeps the prefill of one session.
pub(crate) struct Keeper {
    folder: PathBuf,
    trail: Trail,
}

impl Keeper {
    /// What the flags ask for; `None` without `--cache-dir`.
    ///
    /// # Errors
    /// When the folder cannot be used, its size is too small for one checkpoint, or the weights cannot be read.
    pub(crate) fn open(args: &StoreArgs, model: &Model, session: &Session) -> Result<Option<Self>> {
        let Some((folder, store)) = args.cache_dir.clone().zip(store(args)?) else { return Ok(None) };
        let trail = store.trail(&model.digest(&store)?, session)?;
        Ok(Some(Self { folder, trail }))
    }

    /// Brings back what is stored of `ids`, and says so; how many tokens that are.
    ///
    /// # Errors
    /// When the device failed or an id is refused.
    pub(crate) fn restore(&mut self, session: &mut Session, ids: &[u32]) -> Result<usize, EngineError> {
        let begun = Instant::now();
        let tokens = self.trail.restore(session, ids, &mut |_| interrupt::flow())?;
        let (total, folder) = (ids.len(), self.folder.display());
        let seconds = begun.elapsed().as_secs_f64();
        output::remark(&format!(
            "restored {tokens} of {total} prompt tokens from {folder} in {seconds:.2} s"
        ));
        Ok(tokens)
    }

    /// Between two chunks: what is new goes to the disk, if it has time.
    ///
    /// # Errors
    /// When the device failed.
    pub(crate) fn checkpoint(&mut self, session: &mut Session) -> Result<(), EngineError> {
        self.trail.checkpoint(session).map(|_| ())
    }

    /// Waits until the disk has what it takes, and says how much that is.
    ///
    /// # Errors
    /// When the device failed.
    pub(crate) fn finish(&mut self, session: &mut Session) -> Result<(), EngineError> {
        let kept = self.trail.finish(session)?;
        let lost = match kept.behind {
            0 => String::new(),
            tokens => format!(", not the {tokens} after them"),
        };
        output::remark(&format!("kept {} tokens in {}{lost}", kept.stored, self.folder.display()));
        Ok(())
    }
}
