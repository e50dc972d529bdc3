//! What this machine can do: the figures that measurements are held against.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::Isa;
use super::share::share;
use super::simd::{Kernel, Simd, dispatch};

/// Pieces per thread, shared as the kernels' tasks are: enough that no thread waits long for a slow one.
const PIECES: usize = 16;

/// f32 multiply-adds per second, counted as two operations each, of all threads of the current pool: some 10 ms.
pub fn fma_flops(isa: Isa) -> f64 {
    const ROUNDS: usize = 4_000_000 / PIECES;
    let pieces: Vec<Fma> =
        (0..PIECES * rayon::current_num_threads()).map(|_| Fma { rounds: ROUNDS }).collect();
    let flop = AtomicUsize::new(0);
    let begun = Instant::now();
    share(pieces, |piece, _| {
        flop.fetch_add(dispatch(isa, piece), Relaxed);
    });
    flop.into_inner() as f64 / begun.elapsed().as_secs_f64()
}

struct Fma {
    rounds: usize,
}

impl Kernel for Fma {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self) -> usize {
        // Enough chains to cover the latency of two units.
        const CHAINS: usize = 12;
        let (a, b) = (S::splat(black_box(0.999)), S::splat(black_box(0.001)));
        let mut sums = [S::splat(black_box(1.0)); CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = S::fma(*sum, a, b);
            }
        }
        let mut total = S::splat(0.0);
        for sum in sums {
            total = S::add(total, sum);
        }
        black_box(S::reduce_add(total));
        2 * self.rounds * CHAINS * S::LANES
    }
}

/// Bytes per second that all threads of the current pool read from `memory`, which should be far larger than the
/// caches.
pub fn read_bytes_s(isa: Isa, memory: &[f32]) -> f64 {
    let piece = (memory.len() / (PIECES * rayon::current_num_threads())).next_multiple_of(64).max(64);
    let pieces: Vec<Sum<'_>> = memory.chunks(piece).map(|piece| Sum { piece }).collect();
    let begun = Instant::now();
    share(pieces, |piece, _| {
        black_box(dispatch(isa, piece));
    });
    size_of_val(memory) as f64 / begun.elapsed().as_secs_f64()
}

struct Sum<'a> {
    piece: &'a [f32],
}

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let mut sums = [S::splat(0.0); 4];
        for chunk in self.piece.chunks_exact(4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(&chunk[i * S::LANES..]));
            }
        }
        S::reduce_add(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// Bytes per second of one thread copying memory, reads and writes counted once.
pub fn copy_bytes_s(memory: &mut [f32]) -> f64 {
    let (from, to) = memory.split_at_mut(memory.len() / 2);
    let bytes = (size_of_val(from)) as f64;
    let mut run = || {
        let begun = Instant::now();
        to[..from.len()].copy_from_slice(from);
        bytes / begun.elapsed().as_secs_f64()
    };
    (0..3).map(|_| run()).fold(0.0, f64::max)
}
