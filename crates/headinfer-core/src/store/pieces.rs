//! Which pieces of a file are still to be read, and what the system's answer to one means. Plain counting: a disk and a
//! test's list of answers drive it alike.
//!
//! Must not know files, memory, or who reads.

use std::io;
use std::ops::Range;

use rustix::io::Errno;

/// Answers `try again` that one file is worth; who hears more gives up.
const AGAIN_MAX: u32 = 1000;

/// Counts through a file in pieces. A piece begins anywhere and ends at the next multiple of the size of a piece, so
/// its start alone tells it.
pub(super) struct Pieces {
    bytes: usize,
    piece: usize,
    /// Where the first piece begins that was never handed out.
    fresh: usize,
    /// Where pieces begin that were cut short or put off.
    rest: Vec<usize>,
    put_off: u32,
}

impl Pieces {
    /// Of a file of `bytes`, in pieces of `piece`.
    pub(super) fn new(bytes: usize, piece: usize) -> Self {
        Self { bytes, piece, fresh: 0, rest: Vec::new(), put_off: 0 }
    }

    /// The next piece to ask for.
    pub(super) fn next(&mut self) -> Option<Range<usize>> {
        if let Some(start) = self.rest.pop() {
            return Some(start..self.end(start));
        }
        let start = self.fresh;
        (start < self.bytes).then(|| {
            self.fresh = self.end(start);
            start..self.fresh
        })
    }

    /// Takes the answer for the piece at `start`: bytes read, or an error's number below zero.
    ///
    /// # Errors
    /// That error; [`io::ErrorKind::UnexpectedEof`] when the file ends before.
    pub(super) fn answered(&mut self, start: usize, answer: i32) -> io::Result<()> {
        let later = [Errno::INTR, Errno::AGAIN].map(|errno| -errno.raw_os_error());
        match answer {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            1.. if start + (answer as usize) < self.end(start) => self.rest.push(start + answer as usize),
            1.. => {}
            _ if later.contains(&answer) && self.put_off < AGAIN_MAX => {
                self.put_off += 1;
                self.rest.push(start);
            }
            _ => return Err(io::Error::from_raw_os_error(-answer)),
        }
        Ok(())
    }

    fn end(&self, start: usize) -> usize {
        ((start / self.piece + 1) * self.piece).min(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTR: i32 = -4;
    const IO: i32 = -5;
    const AGAIN: i32 = -11;

    proptest! {
        #[test]
        fn whatever_is_cut_short_or_put_off_every_byte_is_read_once(
            bytes in 0usize..4000, piece in 1usize..600, depth in 1usize..9, answers in prop::collection::vec(-2i32..900, 1..80)
        ) {
            let (mut pieces, mut read, mut asked) = (Pieces::new(bytes, piece), vec![0u8; bytes], Vec::new());
            for turn in 0.. {
                while asked.len() < depth && let Some(range) = pieces.next() {
                    prop_assert!(!range.is_empty() && range.len() <= piece);
                    asked.push(range);
                }
                let Some(range) = (!asked.is_empty()).then(|| asked.remove(turn * 7 % asked.len())) else { break };
                let answer = match answers[turn % answers.len()] {
                    // Now and then, or it would never end.
                    -2 | -1 if turn % 2 == 0 => [INTR, AGAIN][turn % 4 / 2],
                    n => n.clamp(1, range.len() as i32),
                };
                if answer > 0 {
                    read[range.start..][..answer as usize].iter_mut().for_each(|n| *n += 1);
                }
                if pieces.answered(range.start, answer).is_err() {
                    prop_assert!(pieces.put_off == AGAIN_MAX);
                    return Ok(());
                }
            }
            prop_assert!(read.iter().all(|n| *n == 1));
        }
    }

    #[test]
    fn an_end_too_soon_an_error_and_endless_putting_off_are_told() {
        let mut pieces = Pieces::new(100, 40);
        assert_eq!(pieces.next(), Some(0..40));
        assert_eq!(pieces.answered(0, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(pieces.answered(0, IO).unwrap_err().raw_os_error(), Some(-IO));
        for _ in 0..AGAIN_MAX {
            pieces.answered(0, AGAIN).unwrap();
            assert_eq!(pieces.next(), Some(0..40));
        }
        assert_eq!(pieces.answered(0, AGAIN).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_piece_cut_short_goes_on_where_it_was_cut() {
        let mut pieces = Pieces::new(100, 40);
        assert_eq!((pieces.next(), pieces.next()), (Some(0..40), Some(40..80)));
        pieces.answered(40, 12).unwrap();
        assert_eq!((pieces.next(), pieces.next(), pieces.next()), (Some(52..80), Some(80..100), None));
    }
}
