//! What leaves the process: data on stdout, remarks on stderr, files that appear whole or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use serde::Serialize;

use crate::error::{Exit, Failure};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Folders where files with temporary names may lie.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Drops remarks from here on.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether remarks are dropped.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// One line on stderr, unless quiet.
pub(crate) fn remark(text: &str) {
    if !is_quiet() {
        // A closed stderr is no reason to stop working.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Writes `text` to stdout and makes sure that it arrived.
///
/// # Errors
/// [`Failure`]: a clean end when the reader has left, else what the system said.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| stdout_failed(e).into())
}

/// The commit this was built from; `+` after it says that there were changes on top.
pub(crate) const BUILD: &str = env!("HEADINFER_BUILD");

/// Prints one JSON object, with the build that made it, and a line end.
///
/// # Errors
/// As `print`.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    #[derive(Serialize)]
    struct Stamped<'a, T> {
        #[serde(flatten)]
        value: &'a T,
        build: &'static str,
    }
    print(&format!("{}\n", serde_json::to_string(&Stamped { value, build: BUILD })?))
}

/// The error of a write to standard output that failed: a clean end when the reader has left.
pub(crate) fn stdout_failed(e: io::Error) -> Failure {
    let exit = if e.kind() == io::ErrorKind::BrokenPipe { Exit::Done } else { Exit::Failed };
    Failure::new(exit, "cannot write to standard output").because(e)
}

/// How names of files end that this process has not finished; the core's `write_model` uses the same.
fn unfinished_suffix() -> String {
    format!(".{}.partial", std::process::id())
}

/// Notes that files with temporary names may come to lie in `folder`.
pub(crate) fn will_write_in(folder: &Path) {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).push(folder.to_owned());
}

/// Removes what is unfinished: for an end that runs no destructors.
pub(crate) fn discard_unfinished() {
    let folders = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    for entry in entries.filter(|e| e.file_name().to_string_lossy().ends_with(&unfinished_suffix())) {
        // What cannot be removed keeps a name that says what it is.
        let _ = std::fs::remove_file(entry.path());
    }
}

/// A file being written. It has a temporary name in the same folder until [`OutFile::publish`]; dropped before,
/// nothing is left.
pub(crate) struct OutFile {
    path: PathBuf,
    /// `None` for a device or pipe, which is written in place, and after publishing.
    temporary: Option<PathBuf>,
    out: BufWriter<File>,
}

impl OutFile {
    /// Opens a file that will be `path`.
    ///
    /// # Errors
    /// [`Failure`] when the folder cannot be written or `path` is a folder.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let cannot = |e| Failure::new(Exit::Failed, format!("cannot write {}", path.display())).because(e);
        // A link is followed: what it points to is replaced, not the link.
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let special = match std::fs::metadata(&target) {
            Ok(meta) if meta.is_dir() => {
                return Err(cannot(io::Error::from(io::ErrorKind::IsADirectory)).into());
            }
            Ok(meta) => !meta.is_file(),
            Err(_) => false,
        };
        let (temporary, file) = if special {
            (None, File::options().write(true).open(&target))
        } else {
            let mut name = target.clone().into_os_string();
            name.push(unfinished_suffix());
            let name = PathBuf::from(name);
            will_write_in(name.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
            let file = File::create(&name);
            (Some(name), file)
        };
        let out = BufWriter::with_capacity(1 << 20, file.map_err(cannot)?);
        Ok(Self { path: target, temporary, out })
    }

    /// Gives the file its name, whole.
    ///
    /// # Errors
    /// [`Failure`] when the rest cannot be written.
    pub(crate) fn publish(mut self) -> Result<()> {
        let finished = self.out.flush().and_then(|()| match &self.temporary {
            // A full disk may say so only now.
            Some(temporary) => {
                self.out.get_ref().sync_all()?;
                std::fs::rename(temporary, &self.path)
            }
            None => Ok(()),
        });
        finished.map_err(|e| self.failed(e))?;
        self.temporary = None;
        Ok(())
    }

    /// The error of a write that failed.
    pub(crate) fn failed(&self, e: io::Error) -> Failure {
        Failure::new(Exit::Failed, format!("cannot write {}", self.path.display())).because(e)
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error that led here is the one to report.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// Writes a whole file, or none.
///
/// # Errors
/// [`Failure`] naming the file.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = OutFile::create(path)?;
    file.write_all(content).map_err(|e| file.failed(e))?;
    file.publish()
}
