//! The session store: KV on disk, so that no prefill is done twice, whatever ends the process.
//!
//! A session's tokens are cut into intervals of whole chunks. Each interval is one file, written once and never
//! changed, whose name follows from all tokens up to its end: a text is a chain of files, texts that begin alike share
//! the beginning, and restoring is following names. What is in a file knows no placement (`plan/kept.rs`): what one
//! plan stored another restores, bit for bit. Nothing in a file is believed before every checksum was compared, and no
//! trouble with a disk is ever an error: it costs time, never an answer.
//!
//! Must not know devices, the command line, or who asks.

mod disk;
mod folder;
pub mod format;
mod key;
mod pieces;
mod reader;
mod ring;
mod trail;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use thiserror::Error;

use crate::engine::Session;
use crate::model::spec::ModelSpec;
use crate::model::{ModelDigest, Weights};
use crate::units::{Bytes, GIB};
use folder::{Folder, NOTE_BYTES};
use format::Shape;
pub use key::{Key, Link};
use reader::Reader;
pub use reader::Reads;
use trail::Handle;
pub use trail::{Kept, Trail};
pub use writer::BUFFERS;
use writer::Shared;

/// How much is kept, and how often.
#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Bytes that the store's files may take.
    pub bytes_max: u64,
    /// Tokens between checkpoints, rounded up to whole chunks. Part of what a file is found by.
    pub interval_min: usize,
    /// How files are read.
    pub reads: Reads,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { bytes_max: 64 * GIB, interval_min: 512, reads: Reads::Auto }
    }
}

/// Why a store cannot be used at all.
#[derive(Debug, Error)]
pub enum StoreError {
    /// There is no such folder and none can be made.
    #[error("cannot open the session store {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others could put files there, which would be believed.
    #[error("the session store {} must belong to this user, and no other may write to it: chmod 700 it", path.display())]
    Shared {
        /// The folder.
        path: PathBuf,
    },
    /// Not even one interval fits.
    #[error("a session store of {have} cannot hold one interval of {tokens} tokens, {need}")]
    TooSmall {
        /// Bytes of one file.
        need: Bytes,
        /// The limit given.
        have: Bytes,
        /// Tokens of one file.
        tokens: usize,
    },
    /// One interval is beyond what a file may be.
    #[error("an interval of {tokens} tokens is too large for the session store: take a smaller chunk")]
    Shape {
        /// Tokens of one file.
        tokens: usize,
    },
    /// The backend does not say what its bits depend on.
    #[error("this backend's KV cannot be stored")]
    Backend,
    /// The system refused a thread.
    #[error("cannot start the thread of the session store")]
    Thread(#[source] io::Error),
}

/// What a store did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Files that reached the disk.
    pub written_files: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Bytes read back.
    pub read_bytes: u64,
    /// Bytes of the files in the folder, as they were when it was last looked at.
    pub folder_bytes: u64,
    /// Bytes of memory taken for intervals on their way.
    pub buffer_bytes: u64,
    /// Writes that the disk refused.
    pub refused: u64,
    /// Warnings given: one for each file passed over, and one each time the disk began to refuse.
    pub warnings: u64,
}

/// Bytes of memory that a store takes at most besides the plans', whatever the number of sessions it keeps: two intervals
/// of a model that takes in `chunk` tokens at a time. `None` when a file cannot be that large.
pub fn buffer_bytes(spec: &ModelSpec, chunk: usize, options: &StoreOptions) -> Option<u64> {
    let shape = Shape::of(spec, interval(chunk, options.interval_min))?;
    Some((BUFFERS * shape.file_bytes()) as u64)
}

/// Tokens of one file: whole chunks.
fn interval(chunk: usize, interval_min: usize) -> usize {
    interval_min.max(1).div_ceil(chunk) * chunk
}

/// A folder of stored sessions and the thread that writes to it. Clones are the same store; the last one dropped
/// waits until what was given is written.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

impl Store {
    /// Opens the folder `path`, making it for this user alone where there is none. A folder that can only be read
    /// does: nothing new is kept then.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let StoreOptions { bytes_max, interval_min, reads } = *options;
        let shared = Arc::new(Shared::new(Folder::open(path, bytes_max)?, Reader::new(reads)));
        let (jobs, receiver) = sync_channel(BUFFERS);
        let writes = shared.clone();
        let thread = std::thread::Builder::new().name("store".into());
        let thread = thread.spawn(move || writer::run(&writes, &receiver)).map_err(StoreError::Thread)?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Self { handle: Arc::new(Handle { shared, jobs, thread, interval_min, bytes_max }) })
    }

    /// The digest of weights that are there. Of files it is computed once, which reads them whole, and kept in the
    /// folder under what tells one state of a file from another.
    pub fn digest(&self, spec: &ModelSpec, weights: &Weights) -> ModelDigest {
        let files = weights.file_identities();
        let folder = &self.handle.shared.folder;
        let files = blake3::hash(format!("{spec:?} {files:?}").as_bytes());
        let name = files.to_hex().to_string();
        let sum = |digest: &[u8]| blake3::keyed_hash(files.as_bytes(), digest);
        if let Some(note) = folder.read_note(&name)
            && let Some((digest, kept_sum)) = note.split_first_chunk::<32>()
            && kept_sum == sum(digest).as_bytes()
        {
            return ModelDigest::from_bytes(*digest);
        }
        let digest = ModelDigest::of_weights(spec, weights);
        if weights.are_settled_files() {
            let mut note = [0; NOTE_BYTES];
            note[..32].copy_from_slice(digest.as_bytes());
            note[32..].copy_from_slice(sum(digest.as_bytes()).as_bytes());
            if let Err(error) = folder.write_note(&name, &note) {
                tracing::debug!("the digest of the model is not kept: {error}");
            }
        }
        digest
    }

    /// What follows `session`, whose model is `model`.
    ///
    /// # Errors
    /// [`StoreError::TooSmall`], [`StoreError::Shape`] and [`StoreError::Backend`].
    pub fn trail(&self, model: &ModelDigest, session: &Session) -> Result<Trail, StoreError> {
        Trail::new(self, model, session)
    }

    /// Has `hook` called whenever the disk is done with something that it was given: who was told to come back later
    /// may come then. It is called by the store's thread, and must neither wait nor drop a store. Only the first hook
    /// is taken.
    pub fn on_change(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.handle.shared.hook.set(Box::new(hook));
    }

    /// Waits until what was given so far is written or refused.
    pub fn flush(&self) {
        self.handle.shared.wait();
    }

    /// What it did so far.
    pub fn stats(&self) -> StoreStats {
        self.handle.shared.stats()
    }
}
