//! Reads with io_uring: the one place of the store where the kernel writes to memory on its own. The kernel is handed
//! pieces of a borrowed buffer, and the borrow must not end before it is done with all of them, whatever happens.
//!
//! Must not know what is read, or what to do when io_uring is not to be had.

#![allow(unsafe_code)] // the kernel is handed pointers

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, Probe, opcode, types};

use super::pieces::Pieces;

/// A queue of reads that the kernel works on at once.
pub(super) struct Ring {
    ring: IoUring,
    /// Pieces at work at most.
    depth: usize,
    /// Hands the kernel what is queued, and waits for an answer.
    enter: fn(&IoUring) -> io::Result<usize>,
    /// It holds pieces that the kernel never took, of memory that may be gone: they must never be handed over.
    broken: bool,
}

impl Ring {
    /// # Errors
    /// Where the kernel has no io_uring, has one without reads (before 5.6), or does not let this process use it, as is
    /// usual in containers.
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::new(depth)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let enter = |ring: &IoUring| ring.submit_and_wait(1);
        Ok(Self { ring, depth: depth as usize, enter, broken: false })
    }

    /// Fills `buffer` from the start of `file`, in pieces of `piece` bytes.
    ///
    /// # Errors
    /// The first piece's that cannot be read; [`io::ErrorKind::UnexpectedEof`] when the file is shorter; what the ring
    /// itself says, which is [`Ring::is_broken`] then.
    pub(super) fn fill(&mut self, file: &File, buffer: &mut [u8], piece: usize) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Flight { ring: self, at_work: 0 }.fill(file, buffer, piece)
    }

    /// Whether it can never be used again.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }
}

/// Pieces at work. It ends, by whatever way, when the kernel is done with them.
struct Flight<'a> {
    ring: &'a mut Ring,
    /// Pieces queued and not answered.
    at_work: usize,
}

impl Flight<'_> {
    fn fill(mut self, file: &File, buffer: &mut [u8], piece: usize) -> io::Result<()> {
        let mut pieces = Pieces::new(buffer.len(), piece);
        // Taken once: a later borrow of the whole would end the pointers that the kernel has.
        let (memory, bytes) = (buffer.as_mut_ptr(), buffer.len());
        loop {
            while self.at_work < self.ring.depth
                && let Some(range) = pieces.next()
            {
                assert!(range.end <= bytes, "a piece is part of its file");
                self.queue(file, memory.wrapping_add(range.start), range)?;
            }
            if self.at_work == 0 {
                return Ok(());
            }
            match (self.ring.enter)(&self.ring.ring) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    self.ring.broken = true;
                    return Err(error);
                }
                _ => {}
            }
            for answer in self.ring.ring.completion() {
                self.at_work -= 1;
                pieces.answered(answer.user_data() as usize, answer.result())?;
            }
        }
    }

    /// `memory`: where the bytes of `range` go, within the buffer.
    fn queue(&mut self, file: &File, memory: *mut u8, range: Range<usize>) -> io::Result<()> {
        let bytes = u32::try_from(range.len()).map_err(io::Error::other)?;
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), memory, bytes);
        let read = read.offset(range.start as u64).build().user_data(range.start as u64);
        // SAFETY: the memory is part of the buffer that `Ring::fill` borrows for longer than this `Flight` lives, no one
        // else looks at it meanwhile, and `drop` waits until the kernel is done with it. The file is open until then.
        let queued = unsafe { self.ring.ring.submission().push(&read) };
        queued.map_err(io::Error::other)?;
        self.at_work += 1;
        Ok(())
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let ring = &mut *self.ring;
        // What the kernel has not taken it does not write to either.
        while self.at_work > ring.ring.submission().len() {
            if ring.ring.submit_and_wait(1).is_err() {
                // Answers come all the same.
                std::thread::yield_now();
            }
            self.at_work -= ring.ring.completion().count();
        }
        ring.broken |= self.at_work > 0;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const PIECE: usize = 4096;

    /// A file of `bytes`, and what is in it.
    fn file(bytes: usize) -> (File, Vec<u8>) {
        let contents: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&contents).unwrap();
        (file, contents)
    }

    /// `None` where the kernel refuses: then there is nothing to test.
    fn ring(depth: u32) -> Option<Ring> {
        Ring::new(depth).inspect_err(|error| eprintln!("skipped: no io_uring here: {error}")).ok()
    }

    #[test]
    fn a_file_of_any_length_is_read_whole_at_any_depth() {
        for depth in [1, 3, 8] {
            let Some(mut ring) = ring(depth) else { return };
            for bytes in [0, 1, PIECE, 5 * PIECE - 1, 40 * PIECE + 17] {
                let (file, contents) = file(bytes);
                let mut buffer = vec![0xee; bytes];
                ring.fill(&file, &mut buffer, PIECE).unwrap();
                assert!(buffer == contents, "{bytes} bytes, {depth} at once");
            }
        }
    }

    #[test]
    fn a_file_that_shrank_is_told_and_the_next_one_is_read() {
        let Some(mut ring) = ring(4) else { return };
        let (short, contents) = file(9 * PIECE + 5);
        short.set_len(6 * PIECE as u64 + 100).unwrap();
        let mut buffer = vec![0; contents.len()];
        let error = ring.fill(&short, &mut buffer, PIECE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(!ring.is_broken());
        let (file, contents) = file(9 * PIECE + 5);
        ring.fill(&file, &mut buffer, PIECE).unwrap();
        assert!(buffer == contents);
    }

    #[test]
    fn a_wait_that_is_interrupted_goes_on() {
        let Some(mut ring) = ring(4) else { return };
        ring.enter = |ring| {
            ring.submit_and_wait(1)?;
            Err(io::ErrorKind::Interrupted.into())
        };
        let (file, contents) = file(20 * PIECE);
        let mut buffer = vec![0; contents.len()];
        ring.fill(&file, &mut buffer, PIECE).unwrap();
        assert!(buffer == contents);
    }

    #[test]
    fn a_ring_that_fails_is_done_with_its_memory_and_not_used_again() {
        let failing: [fn(&IoUring) -> io::Result<usize>; 2] = [
            |_| Err(io::Error::from_raw_os_error(16)),
            |ring| ring.submit().and(Err(io::Error::from_raw_os_error(12))),
        ];
        for enter in failing {
            let Some(mut ring) = ring(4) else { return };
            ring.enter = enter;
            let (file, contents) = file(20 * PIECE);
            let mut buffer = vec![0; contents.len()];
            ring.fill(&file, &mut buffer, PIECE).unwrap_err();
            assert!(ring.is_broken());
            let before = buffer.clone();
            ring.enter = |ring| ring.submit_and_wait(1);
            let error = ring.fill(&file, &mut buffer, PIECE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            assert!(buffer == before, "nothing was handed over late");
        }
    }
}
