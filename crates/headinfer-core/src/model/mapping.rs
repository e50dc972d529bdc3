//! Read-only mapping of a weight file.
//!
//! The one place where the model room meets memory that another process could change.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::model::error::ModelError;

/// The bytes of a file, paged in by the system on first touch.
#[derive(Debug)]
pub(crate) struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Maps a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let read = |e| ModelError::read(path, e);
        // Asked before opening: opening a named pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(ModelError::file(path, "is not a file"));
        }
        let file = File::open(path).map_err(read)?;
        map(&file).map(Mapping).map_err(read)
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
        &self.0
    }
}
