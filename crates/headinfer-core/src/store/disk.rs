//! Whole files in and out, around the page cache where the file system allows it: what is read goes to the KV store
//! at once and what is written comes from it, so a second copy in the cache would only push other pages out.
//!
//! Must not know what is in the files.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::format::ALIGN;
use super::reader::Reader;

/// Bytes of one write.
const PIECE: usize = 4 << 20;

/// Memory at an address that direct I/O accepts.
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Buffer {
    /// Zeros that the system gives when they are first touched.
    pub(super) fn new(bytes: usize) -> Self {
        let memory = vec![0; bytes + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { memory, start, bytes }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..][..self.bytes]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.bytes]
    }
}

/// Fills `buffer` from the file at `path`, which must be a plain one of our own and of just that length. `Ok(Err)`
/// is its length when it is another.
pub(super) fn read(reader: &Reader, path: &Path, buffer: &mut [u8]) -> io::Result<Result<(), u64>> {
    let (plain, bytes) = open_ours(path)?;
    if bytes != buffer.len() as u64 {
        return Ok(Err(bytes));
    }
    match open_direct(path).and_then(|direct| reader.fill(&direct, buffer)) {
        Err(error) if is_no_direct(&error) => reader.fill(&plain, buffer)?,
        result => result?,
    }
    Ok(Ok(()))
}

/// Fills the new file at `path`, open as `file`, and makes sure that it arrived.
pub(super) fn write(path: &Path, file: &File, buffer: &[u8]) -> io::Result<()> {
    let write = |file: &File| {
        let mut pieces = buffer.chunks(PIECE).enumerate();
        pieces.try_for_each(|(i, piece)| file.write_all_at(piece, (i * PIECE) as u64))
    };
    let direct = OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    match direct.and_then(|direct| write(&direct)) {
        Err(error) if is_no_direct(&error) => write(file)?,
        result => result?,
    }
    file.sync_all()
}

/// What file systems say that know no direct I/O, or want another alignment for it.
fn is_no_direct(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// Opens a plain file of our own; it and its length.
pub(super) fn open_ours(path: &Path) -> io::Result<(File, u64)> {
    // Opening a pipe would wait for its writer.
    let file = open(path, OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !is_ours(metadata.uid()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not a plain file of this user"));
    }
    Ok((file, metadata.len()))
}

/// Whether `uid` is the user that we run as. Checksums find accidents, not malice: files of others are not believed.
pub(super) fn is_ours(uid: u32) -> bool {
    rustix::process::geteuid().as_raw() == uid
}

/// Opens a file to be read around the page cache.
pub(super) fn open_direct(path: &Path) -> io::Result<File> {
    open(path, OFlags::NOFOLLOW | OFlags::DIRECT)
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)
}
