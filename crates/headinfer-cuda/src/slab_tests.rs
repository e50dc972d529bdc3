//! Growth without a GPU: who pins is a fake that counts, refuses, or waits to be let on.

use super::*;

const PIECE: u64 = 64 << 10;

/// Ranges pinned, and what is refused.
#[derive(Default)]
struct Fake {
    pinned: Mutex<Vec<(usize, usize)>>,
    let_on: Mutex<u64>,
    changed: Condvar,
    gated: bool,
    refuse_at: Option<usize>,
    left: Option<u64>,
    panics: bool,
}

impl Fake {
    fn let_on(&self, pieces: u64) {
        *self.let_on.lock().unwrap() += pieces;
        self.changed.notify_all();
    }

    fn pinned(&self) -> MutexGuard<'_, Vec<(usize, usize)>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.pinned().len()
    }
}

impl Pin for Fake {
    fn pin(&self, start: *mut u8, bytes: usize) -> Result<(), CudaError> {
        if self.gated {
            let mut free = self.changed.wait_while(self.let_on.lock().unwrap(), |free| *free == 0).unwrap();
            *free -= 1;
        }
        let mut pinned = self.pinned();
        if self.refuse_at == Some(pinned.len()) {
            assert!(!self.panics, "asked to");
            return Err(CudaError::call("cuMemHostRegister", "refused".into()));
        }
        pinned.push((start as usize, bytes));
        Ok(())
    }

    fn unpin(&self, start: *mut u8) {
        let mut pinned = self.pinned();
        let before = pinned.len();
        pinned.retain(|(s, _)| *s != start as usize);
        assert_eq!(pinned.len() + 1, before, "what is unpinned was pinned");
    }

    fn left(&self) -> Option<u64> {
        self.left.map(|left| left - self.count() as u64 * PIECE)
    }
}

fn growth(bytes: u64, at_once: u64, ahead: u64) -> Growth {
    Growth { piece: PIECE, ahead, ..Growth::new(bytes, at_once, true) }
}

fn open(growth: Growth, fake: Fake) -> (HostSlab, Arc<Fake>) {
    let fake = Arc::new(fake);
    (HostSlab::growing(growth, fake.clone()).unwrap(), fake)
}

#[test]
fn all_is_touched_and_pinned_in_order_and_unpinned_in_the_end() {
    let bytes = 7 * PIECE + 100;
    let (slab, fake) = open(growth(bytes, PIECE + 1, 0), Fake::default());
    assert!(fake.count() >= 2, "what is needed at once takes two pieces");
    slab.wait(bytes).unwrap();
    // SAFETY: ready, and nobody writes.
    let all = unsafe { std::slice::from_raw_parts(slab.at(0, bytes), bytes as usize) };
    assert!(all.iter().all(|byte| *byte == 0xff));
    let pinned = fake.pinned().clone();
    let first = pinned[0].0;
    let expected = (0..8).map(|i| (first + i * PIECE as usize, if i < 7 { PIECE as usize } else { 100 }));
    assert!(pinned.iter().copied().eq(expected), "{pinned:?}");
    drop(slab);
    assert_eq!(fake.count(), 0);
}

#[test]
fn it_grows_no_further_than_wanted_and_ahead() {
    let (slab, fake) = open(growth(100 * PIECE, PIECE, 2 * PIECE), Fake::default());
    slab.wait(10 * PIECE).unwrap();
    // The thread stops by itself at what is wanted; going away joins it.
    assert!(slab.shared.state().wanted == 12 * PIECE && fake.count() <= 12);
    slab.wait(3 * PIECE).unwrap();
    assert_eq!(slab.shared.state().wanted, 12 * PIECE);
}

#[test]
fn who_needs_a_piece_waits_for_it_and_no_longer() {
    let gated = Fake { gated: true, ..Fake::default() };
    gated.let_on(1);
    let (slab, fake) = open(growth(50 * PIECE, 0, 0), gated);
    slab.wait(PIECE).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| slab.wait(5 * PIECE));
        fake.let_on(3);
        while fake.count() < 4 {
            std::thread::yield_now();
        }
        assert!(!waiter.is_finished(), "the fifth piece is not there");
        fake.let_on(1);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(fake.count(), 5);
}

#[test]
fn a_refusal_is_an_error_of_who_needs_the_piece_and_of_nobody_before() {
    for (fake, word) in [
        (Fake { refuse_at: Some(3), ..Fake::default() }, "cuMemHostRegister failed: refused"),
        (Fake { left: Some(3 * PIECE + 5), ..Fake::default() }, "leaves 5 B"),
        (Fake { refuse_at: Some(3), panics: true, ..Fake::default() }, "its thread ended"),
    ] {
        let (slab, fake) = open(growth(9 * PIECE, 1, PIECE), fake);
        slab.wait(3 * PIECE).unwrap();
        for _ in 0..2 {
            let error = slab.wait(3 * PIECE + 1).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("only 192 KiB of the 576 KiB"), "{error}");
        }
        slab.wait(2 * PIECE).unwrap();
        drop(slab);
        assert_eq!(fake.count(), 0);
    }
}

#[test]
fn a_refusal_of_what_is_needed_at_once_is_one_of_opening() {
    let of = |fake: Fake| HostSlab::growing(growth(9 * PIECE, 2 * PIECE, 0), Arc::new(fake)).err().unwrap();
    let error = of(Fake { refuse_at: Some(1), ..Fake::default() });
    assert!(matches!(error, OpenError::Pin { done: Bytes(PIECE), .. }), "{error}");
    let error = of(Fake { left: Some(PIECE), ..Fake::default() });
    assert!(matches!(error, OpenError::HostMemory { .. }), "{error}");
}

#[test]
#[should_panic(expected = "ready")]
fn what_is_not_ready_has_no_address() {
    let (slab, _) = open(growth(9 * PIECE, PIECE, 0), Fake { refuse_at: Some(1), ..Fake::default() });
    slab.at(0, PIECE + 1);
}

#[test]
fn an_empty_slab_is_ready() {
    let (slab, fake) = open(growth(0, 0, 0), Fake::default());
    slab.wait(0).unwrap();
    assert_eq!((slab.bytes(), fake.count()), (0, 0));
}
