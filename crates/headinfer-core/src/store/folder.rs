//! The folder: which files are there, who may be deleted, and how a new one comes in whole.
//!
//! Several processes share it. Files appear by renaming and never change; whoever makes room holds the folder's lock
//! meanwhile. All locks are the system's own and end with the process that held them, however it ended.

use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::StoreError;
use super::disk;
use super::key::{Key, Link, is_short_key};

/// Other processes hold the lock for milliseconds; one that was stopped meanwhile is not waited for longer.
const LOCK_TRIES: u32 = 500;
/// A lease is asked for by the engine's thread, which can do without.
const LEASE_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
const PARTIAL: &str = ".partial";
const LEASE: &str = ".lease";
const DIGEST: &str = ".digest";

/// Tells files of one process apart.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A folder of stored intervals.
pub(super) struct Folder {
    path: PathBuf,
    bytes_max: u64,
    /// Of all files that count, as they were last seen.
    bytes: AtomicU64,
}

impl Folder {
    /// Makes the folder where there is none, for its owner alone.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Self, StoreError> {
        let cannot = |source| StoreError::Folder { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(cannot)?;
        let path = fs::canonicalize(path).map_err(cannot)?;
        let metadata = fs::metadata(&path).map_err(cannot)?;
        let root = rustix::process::geteuid().is_root();
        if metadata.mode() & 0o022 != 0 || !(root || disk::is_ours(metadata.uid())) {
            return Err(StoreError::Shared { path });
        }
        let bytes = stored_bytes(&path).into();
        Ok(Self { path, bytes_max, bytes })
    }

    /// Bytes of the files, as they were last seen; other processes may have changed them since.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn path_of(&self, link: &Link) -> PathBuf {
        self.path.join(link.file_name())
    }

    /// Room for a new file of `bytes`, the oldest ends of chains making place for it; `link`'s parent stays.
    pub(super) fn reserve(&self, link: &Link, bytes: u64) -> io::Result<Partial> {
        let _lock = self.lock(LOCK_TRIES)?;
        self.make_room(bytes, &link.parent.to_string())?;
        let partial = self.partial(&link.file_name())?;
        match rustix::fs::fallocate(&partial.file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => partial.file.set_len(bytes)?,
            result => result?,
        }
        Ok(partial)
    }

    /// A new file under a temporary name, locked as long as it is open.
    fn partial(&self, name: &str) -> io::Result<Partial> {
        let target = self.path.join(name);
        let path = self.path.join(format!("{name}.{}{PARTIAL}", unique()));
        let file = create(&path)?;
        let partial = Partial { path, target, file, published: false };
        best_effort_lock(&partial.file)?;
        Ok(partial)
    }

    /// A mark that the chain up to a key is in use.
    pub(super) fn lease(&self) -> io::Result<Lease> {
        let _lock = self.lock(LEASE_TRIES)?;
        let path = self.path.join(format!("{}{LEASE}", unique()));
        let lease = Lease { file: create(&path)?, path };
        best_effort_lock(&lease.file)?;
        Ok(lease)
    }

    /// Says that the file of `link` was used just now.
    pub(super) fn touch(&self, link: &Link) {
        let touched = File::open(self.path_of(link)).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!("{link:?} is not marked as used: {error}");
        }
    }

    /// A small file of the store.
    pub(super) fn read_note(&self, name: &str) -> Option<[u8; NOTE_BYTES]> {
        let (file, _) = disk::open_ours(&self.path.join(format!("{name}{DIGEST}"))).ok()?;
        let mut note = [0; NOTE_BYTES];
        file.read_exact_at(&mut note, 0).ok().map(|()| note)
    }

    /// Writes a small file of the store, whole.
    pub(super) fn write_note(&self, name: &str, note: &[u8; NOTE_BYTES]) -> io::Result<()> {
        let _lock = self.lock(LOCK_TRIES)?;
        let partial = self.partial(&format!("{name}{DIGEST}"))?;
        partial.file.write_all_at(note, 0)?;
        partial.file.sync_all()?;
        partial.publish()
    }

    fn lock(&self, tries: u32) -> io::Result<File> {
        let mut open = OpenOptions::new();
        let lock = open.write(true).create(true).truncate(false).mode(0o600).open(self.path.join("lock"))?;
        for _ in 0..tries {
            match lock.try_lock() {
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
                // A file system without locks: renames alone must do.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(lock);
                }
                Err(TryLockError::Error(error)) => return Err(error),
                Ok(()) => return Ok(lock),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"))
    }

    /// Deletes what dead processes left, and then the ends of chains, least recently used first, until `need` more
    /// bytes keep the limit. What is leased stays, and so does what leads to it.
    fn make_room(&self, need: u64, keep: &str) -> io::Result<()> {
        let mut seen = self.scan()?;
        seen.kept.insert(keep.to_owned());
        let mut children: HashMap<&str, usize> = HashMap::new();
        seen.stored.values().for_each(|s| *children.entry(s.parent.as_str()).or_default() += 1);
        let end = |key: &str, children: &HashMap<&str, usize>| {
            !seen.kept.contains(key) && children.get(key).is_none_or(|n| *n == 0)
        };
        let oldest = |key: &str| std::cmp::Reverse((seen.stored[key].used, key.to_owned()));
        let mut ends: BinaryHeap<_> =
            seen.stored.keys().filter(|key| end(key, &children)).map(|key| oldest(key)).collect();
        let mut bytes = seen.bytes;
        while bytes + need > self.bytes_max {
            let Some(std::cmp::Reverse((_, key))) = ends.pop() else {
                self.bytes.store(bytes, Ordering::Relaxed);
                let message = "what is in use fills the size it may have";
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
            };
            let stored = &seen.stored[&key];
            remove(&self.path.join(format!("{}-{key}.kv", stored.parent)))?;
            bytes -= stored.bytes;
            if let Some(n) = children.get_mut(stored.parent.as_str()) {
                *n -= 1;
            }
            if seen.stored.contains_key(&stored.parent) && end(&stored.parent, &children) {
                ends.push(oldest(&stored.parent));
            }
        }
        // Should the file not come to be, the next look corrects it.
        self.bytes.store(bytes + need, Ordering::Relaxed);
        Ok(())
    }

    fn scan(&self) -> io::Result<Seen> {
        let mut seen = Seen::default();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(metadata) = entry.metadata() else { continue };
            if let Some((parent, key)) = stored_name(&name) {
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                let stored = Stored { parent: parent.to_owned(), bytes: metadata.len(), used };
                seen.bytes += metadata.len();
                seen.stored.insert(key.to_owned(), stored);
            } else if name.ends_with(PARTIAL) || name.ends_with(LEASE) {
                match holder(&entry.path())? {
                    Some(file) if name.ends_with(LEASE) => seen.kept.extend(leased(&file)),
                    Some(_) => seen.bytes += metadata.len(),
                    None => remove(&entry.path())?,
                }
            }
        }
        Ok(seen)
    }
}

/// Bytes of a note: two checksums.
pub(super) const NOTE_BYTES: usize = 64;

/// What a look at the folder showed.
#[derive(Default)]
struct Seen {
    /// By key.
    stored: HashMap<String, Stored>,
    /// Keys in use.
    kept: HashSet<String>,
    /// Of all files that count, those being written included.
    bytes: u64,
}

struct Stored {
    parent: String,
    bytes: u64,
    used: SystemTime,
}

/// A file being written; dropped before it is published, nothing is left.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    target: PathBuf,
    pub(super) file: File,
    published: bool,
}

impl Partial {
    /// Gives the file its name. Its bytes must have arrived.
    pub(super) fn publish(mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)?;
        self.published = true;
        // The name itself must survive a loss of power.
        let folder = self.target.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here is the one to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A chain in use: what it names is not deleted by anyone while this lives.
pub(super) struct Lease {
    path: PathBuf,
    file: File,
}

impl Lease {
    /// The last key of the chain in use.
    pub(super) fn set(&self, key: Key) {
        if let Err(error) = self.file.write_all_at(key.to_string().as_bytes(), 0) {
            tracing::debug!("a lease is not renewed: {error}");
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Without its lock it means nothing, and whoever makes room removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Bytes of the stored files; 0 where the folder cannot be read, which is no reason not to open it.
fn stored_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let stored = entries.filter(|entry| stored_name(&entry.file_name().to_string_lossy()).is_some());
    stored.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// A name that no other process has, those of other containers and other lives included.
fn unique() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    format!("{}-{now}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Where the file system has no locks, a file that looks abandoned may be deleted while it is written: its writer then
/// finds nothing to rename, and no harm is done.
fn best_effort_lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        _ => Ok(()),
    }
}

/// The file, when a living process holds its lock.
fn holder(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Renamed or removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Ok(Some(file)),
        _ => Ok(None),
    }
}

fn leased(file: &File) -> Option<String> {
    let mut key = [0; 32];
    file.read_exact_at(&mut key, 0).ok()?;
    String::from_utf8(key.to_vec()).ok().filter(|key| is_short_key(key))
}

/// Parent and key in a file's name; `None` for a file that is not the store's.
fn stored_name(name: &str) -> Option<(&str, &str)> {
    name.strip_suffix(".kv")?
        .split_once('-')
        .filter(|(parent, key)| is_short_key(parent) && is_short_key(key))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
