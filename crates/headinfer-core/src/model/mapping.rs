//! Read-only mapping of a weight file.
//!
//! The one place where the model room meets memory that another process could change.

use std::fs::{File, Metadata};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::model::error::ModelError;

/// The bytes of a file, paged in by the system on first touch.
#[derive(Debug)]
pub(crate) struct Mapping {
    path: PathBuf,
    map: memmap2::Mmap,
    identity: FileIdentity,
}

/// What tells one state of a file from another without reading it; times in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileIdentity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
    /// Of the content.
    pub(crate) modified_ns: i128,
    /// Of anything, set by the system alone.
    pub(crate) changed_ns: i128,
}

impl Mapping {
    /// Maps a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |e| ModelError::read(path, e);
        // Asked before opening: opening a named pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(ModelError::file(path, "is not a file"));
        }
        let file = File::open(path).map_err(read)?;
        let identity = FileIdentity::of(&file.metadata().map_err(read)?);
        Ok(Mapping { path: path.into(), map: map(&file).map_err(read)?, identity })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Of the file when it was opened, before a byte of it was read.
    pub(crate) fn identity(&self) -> FileIdentity {
        self.identity
    }
}

impl FileIdentity {
    fn of(file: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.size(),
            modified_ns: ns(file.mtime(), file.mtime_nsec()),
            changed_ns: ns(file.ctime(), file.ctime_nsec()),
        }
    }
}

#[allow(unsafe_code, reason = "mapping a file is unsafe because other processes may change it")]
fn map(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the mapping is private and read-only, and only bytes and floats are read from it, for which
    // every bit pattern is a value. A file truncated while mapped raises SIGBUS, which ends the process and
    // corrupts nothing; weight files are replaced by renaming, here and by the hub's clients, never cut in
    // place.
    unsafe { memmap2::Mmap::map(file) }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
