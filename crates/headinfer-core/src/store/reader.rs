//! Fills memory from files, several pieces at a time: with io_uring where the kernel lets this process use it, else with
//! a few threads. Both give the same bytes and the same errors.
//!
//! Must not know what is in the files, or how they are opened.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, scope};

use super::ring::Ring;

/// Bytes of one read.
const PIECE: usize = 4 << 20;
/// Pieces at work at once with io_uring.
const DEPTH: u32 = 8;
/// Threads that read, the caller's among them.
const THREADS: usize = 4;

/// How a store reads its files. No answer depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// With io_uring where it may be used, which containers often deny, else with threads.
    #[default]
    Auto,
    /// With threads.
    Threads,
}

/// Reads files of one store.
pub(super) struct Reader {
    /// `None`: threads read.
    ring: Mutex<Option<Ring>>,
}

impl Reader {
    pub(super) fn new(reads: Reads) -> Self {
        match reads {
            Reads::Auto => Self::with(Ring::new(DEPTH)),
            Reads::Threads => Self { ring: Mutex::new(None) },
        }
    }

    fn with(ring: io::Result<Ring>) -> Self {
        match &ring {
            Ok(_) => tracing::debug!("session store: files are read with io_uring"),
            Err(why) => tracing::debug!("session store: files are read with threads, not io_uring: {why}"),
        }
        Self { ring: Mutex::new(ring.ok()) }
    }

    /// Fills `buffer` from the start of `file`. The disk is one: who comes meanwhile waits.
    ///
    /// # Errors
    /// What a piece cannot be read for; [`io::ErrorKind::UnexpectedEof`] when the file is shorter.
    pub(super) fn fill(&self, file: &File, buffer: &mut [u8]) -> io::Result<()> {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(working) = ring.as_mut() {
            let Err(error) = working.fill(file, buffer, PIECE) else { return Ok(()) };
            // A kernel may refuse in a ring what it gives a thread: the thread's word counts.
            tracing::debug!("session store: io_uring did not read a file: {error}");
            if working.is_broken() {
                *ring = None;
            }
        }
        fill_by_threads(file, buffer, PIECE, THREADS)
    }
}

/// As [`Reader::fill`], with `threads` at work, fewer where the system refuses them.
fn fill_by_threads(file: &File, buffer: &mut [u8], piece: usize, threads: usize) -> io::Result<()> {
    let count = threads.min(buffer.len().div_ceil(piece));
    let pieces = Mutex::new(buffer.chunks_mut(piece).enumerate());
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let read = || {
        while let Some((i, part)) = next() {
            if let Err(error) = file.read_exact_at(part, (i * piece) as u64) {
                // Nothing is left for the others.
                while next().is_some() {}
                return Err(error);
            }
        }
        Ok(())
    };
    scope(|scope| {
        let helpers =
            (1..count).map_while(|_| Builder::new().name("store-read".into()).spawn_scoped(scope, read).ok());
        let helpers: Vec<_> = helpers.collect();
        let own = read();
        let theirs = helpers
            .into_iter()
            .map(|helper| helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        theirs.fold(own, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::time::Instant;

    use super::*;
    use crate::store::disk::{self, Buffer};

    fn contents(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn refused() -> Reader {
        Reader::with(Err(io::Error::from_raw_os_error(1)))
    }

    fn all_readers() -> [Reader; 3] {
        [Reader::new(Reads::Auto), Reader::new(Reads::Threads), refused()]
    }

    #[test]
    fn a_kernel_that_refuses_io_uring_leaves_it_to_threads() {
        assert!(refused().ring.lock().unwrap().is_none());
        assert!(Reader::new(Reads::Threads).ring.lock().unwrap().is_none());
        let allowed = Ring::new(DEPTH).is_ok();
        assert_eq!(Reader::new(Reads::Auto).ring.lock().unwrap().is_some(), allowed);
    }

    #[test]
    fn every_way_reads_the_same_around_the_page_cache_and_through_it() {
        for bytes in [0, 4096, PIECE, 5 * PIECE + 4096, 5 * PIECE + 77] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&contents(bytes)).unwrap();
            for reader in all_readers() {
                let (mut direct, mut plain) = (Buffer::new(bytes), vec![0; bytes]);
                assert!(disk::read(&reader, file.path(), &mut direct).unwrap().is_ok());
                reader.fill(file.as_file(), &mut plain).unwrap();
                assert!(direct[..] == contents(bytes) && plain == contents(bytes), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn every_way_tells_of_a_file_that_shrinks_while_it_is_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&contents(3 * PIECE)).unwrap();
        for reader in all_readers() {
            let error = reader.fill(&file, &mut vec![0; 4 * PIECE]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            reader.fill(&file, &mut vec![0; 3 * PIECE]).unwrap();
        }
    }

    #[test]
    fn every_way_tells_of_a_file_that_cannot_be_read() {
        let folder = File::open(".").unwrap();
        for reader in all_readers() {
            let error = reader.fill(&folder, &mut [0; 4096]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        }
    }

    /// Prints GB/s of each way, all in turns, over files such as a model of 8 billion weights stores.
    #[test]
    #[ignore = "a minute of a disk's whole rate, for figures"]
    fn how_fast_a_disk_is_read_each_way() {
        const FILES: usize = 32;
        const BYTES: usize = 64 << 20;
        const ROUNDS: usize = 3;
        let folder = tempfile::tempdir().unwrap();
        let path = |i: usize| folder.path().join(i.to_string());
        let data = Buffer::new(BYTES);
        for i in 0..FILES {
            disk::write(&path(i), &File::create(path(i)).unwrap(), &data).unwrap();
        }
        let mut buffer = Buffer::new(BYTES);
        let mut pass = |fill: &mut dyn FnMut(&File, &mut [u8])| {
            let begun = Instant::now();
            (0..FILES).for_each(|i| fill(&disk::open_direct(&path(i)).unwrap(), &mut buffer));
            (FILES * BYTES) as f64 / 1e9 / begun.elapsed().as_secs_f64()
        };
        let (mut rates, mib) = (BTreeMap::<_, Vec<f64>>::new(), 1 << 20);
        for _ in 0..ROUNDS {
            for piece in [mib, 4 * mib] {
                for threads in [1, 4, 8] {
                    let mut fill =
                        |file: &File, to: &mut [u8]| fill_by_threads(file, to, piece, threads).unwrap();
                    rates.entry((piece / mib, "threads", threads)).or_default().push(pass(&mut fill));
                }
                for depth in [8, 16] {
                    let Ok(mut ring) = Ring::new(depth) else { continue };
                    let mut fill = |file: &File, to: &mut [u8]| ring.fill(file, to, piece).unwrap();
                    rates.entry((piece / mib, "io_uring", depth as usize)).or_default().push(pass(&mut fill));
                }
            }
        }
        eprintln!("MiB a piece, way, at once: GB/s least, median, most of {ROUNDS}");
        for ((piece, way, count), mut rates) in rates {
            rates.sort_by(f64::total_cmp);
            let [least, median, most] = [0, ROUNDS / 2, ROUNDS - 1].map(|i| rates[i]);
            eprintln!("{piece} {way:8} {count:2}: {least:.2} {median:.2} {most:.2}");
        }
    }
}
