//! Prefill attention: many query rows over the keys of each head, with carried state.
//!
//! A vector holds one element of many query rows. So a task (some rows of one head) turns its queries once, and
//! keys and values stay as they lie: scores are scalars of K times vectors of queries, outputs are scalars of V times
//! vectors of weights, and the softmax of a block of 64 keys runs down the vectors with no sum across one. A register
//! tile is 8 scalars by 3 vectors where there are 32 registers, and 6 by 2 where there are 16: 4 by 3 takes all of them,
//! and one sum then goes through memory at every step. A strip of so many vectors of rows keeps what it walks in the
//! first-level cache. The running (max, sum, accumulator) is updated once a block, so cutting the keys at
//! multiples of 64 changes no bit; nor does a row's place in a vector.
//!
//! f32 FMA rather than `vdpbf16ps`: queries and weights stay f32, and the bf16 dot product of this kernel's first
//! target (Sapphire Rapids) issues once a cycle against twice for FMA, so it would not be faster.

use super::Isa;
use super::attention::{Geometry, HEAD_DIM_MAX, HeadTask, KvRows, StateMut, aligned_parts, front};
use super::prefill_strip::{Ahead, Convert, KEYS, Strip};
use super::share::relay;
use super::simd::{Kernel, Simd, dispatch};

/// Rows of a task, at most: no more state than a core's second-level cache holds. A thread has three such tasks begun at
/// most, see `relay`.
const TASK_ROWS: usize = 240;
/// Tasks for two threads, where there are rows for no more: enough to level out threads of unequal speed, and few, as each
/// converts all of K and V.
const TASKS_OF_TWO: usize = 3;
/// Tasks get a multiple of these rows, twice as many at least: a lone vector of 16 would keep the arithmetic half idle.
const ROWS: usize = 16;
/// Elements of K in a leg, at least: ten times as long as the state takes from one core's cache to another's.
const LEG: usize = 1 << 14;
/// A leg is this part of what is left.
const LEGS: usize = 4;
/// f32 values of a cache line.
const LINE: usize = 16;

/// Attends all rows of each head to its keys, under the causal mask and the window of `geo`.
///
/// `heads[i].q` is f32 `[rows, head_dim]`; keys come in blocks of 64 from `kv.start` on.
pub fn attend_prefill(isa: Isa, geo: &Geometry, heads: &mut [HeadTask<'_>]) {
    assert!(geo.head_dim <= HEAD_DIM_MAX, "a head of {} elements", geo.head_dim);
    let rows: usize = heads.iter().map(|h| h.state.max.len()).sum();
    let few = 2 * rows / (TASKS_OF_TWO * rayon::current_num_threads());
    let size = few.clamp(2 * ROWS, TASK_ROWS);
    let tasks = heads.iter_mut().flat_map(|head| tasks_of(geo, head, size)).collect();
    relay(tasks, Rows::left, Vec::new, |own, rows| dispatch(isa, Leg { rows, own }));
}

/// A head's rows in parts of about `size`, but for those that see none of the keys.
fn tasks_of<'a>(geo: &'a Geometry, head: &'a mut HeadTask<'_>, size: usize) -> Vec<Rows<'a>> {
    let d = geo.head_dim;
    let (all, keys) = (head.state.max.len(), head.kv.k.len() / d);
    let parts = all.div_ceil(TASK_ROWS).max((all + size / 2) / size).max(1);
    let StateMut { max, sum, acc } = &mut head.state;
    let (mut max, mut sum, mut acc) = (&mut **max, &mut **sum, &mut **acc);
    let inside = |position: u64| (position.saturating_sub(head.kv.start) as usize).min(keys);
    let mut tasks = Vec::with_capacity(parts);
    let mut first_row = 0;
    for part in 1..=parts {
        let end_row = (all.div_ceil(ROWS) * part / parts * ROWS).min(all);
        let rows = end_row - first_row;
        let state = StateMut {
            max: front(&mut max, rows),
            sum: front(&mut sum, rows),
            acc: front(&mut acc, rows * d),
        };
        if rows > 0 {
            let next = inside(geo.visible(first_row).0) / KEYS * KEYS;
            let end = inside(geo.visible(end_row - 1).1);
            let q = &head.q[first_row * d..end_row * d];
            tasks.push(Rows { geo, first_row, q, kv: head.kv, state, next, end, memory: Vec::new() });
        }
        first_row = end_row;
    }
    tasks.retain(|task| task.left() > 0);
    tasks
}

/// Some rows of one head, and how far they are.
struct Rows<'a> {
    geo: &'a Geometry,
    first_row: usize,
    q: &'a [f32],
    kv: KvRows<'a>,
    state: StateMut<'a>,
    /// The next key, a multiple of [`KEYS`], and the one after the last.
    next: usize,
    end: usize,
    /// From the first leg to the last, the state and the queries as the arithmetic has them: `turned`.
    memory: Vec<f32>,
}

/// The next keys of some rows, with a thread's memory for what no other leg needs.
struct Leg<'t, 'a> {
    rows: &'t mut Rows<'a>,
    own: &'t mut Vec<f32>,
}

impl Kernel for Leg<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match S::SCALARS {
            8 => self.rows.walk::<S, 8, 3>(self.own),
            _ => self.rows.walk::<S, 6, 2>(self.own),
        }
    }
}

impl Rows<'_> {
    /// Rows times keys.
    fn left(&self) -> usize {
        self.end.saturating_sub(self.next) * self.state.max.len()
    }

    /// The blocks of a leg, each over all strips of rows, in tiles of `B` scalars by `W` vectors.
    #[inline(always)]
    fn walk<S: Simd, const B: usize, const W: usize>(&mut self, own: &mut Vec<f32>) {
        let (d, rows) = (self.geo.head_dim, self.state.max.len());
        let (lanes, padded) = (rows.next_multiple_of(S::LANES), d.next_multiple_of(B));
        let turned = [lanes * d, lanes * padded, lanes, lanes];
        let mut memory = std::mem::take(&mut self.memory);
        let begun = !memory.is_empty();
        memory.resize(turned.iter().sum::<usize>() + LINE, 0.0);
        let [q, acc, max, sum] = aligned_parts(&mut memory, turned);
        if !begun {
            self.load(strips::<S, W>(lanes), q, acc, padded);
            max[..rows].copy_from_slice(self.state.max);
            sum[..rows].copy_from_slice(self.state.sum);
        }
        let sizes = [KEYS * d, KEYS * padded, KEYS * W * S::LANES];
        own.resize(sizes.iter().sum::<usize>() + LINE, 0.0);
        let [k, v, scores] = aligned_parts(own, sizes);
        let keys = ((self.end - self.next) / LEGS).max(LEG / d).next_multiple_of(KEYS);
        let end = self.end.min(self.next + keys);
        for first in (self.next..end).step_by(KEYS) {
            let count = KEYS.min(self.kv.k.len() / d - first);
            let block = Block { start: self.kv.start + first as u64, count };
            let span = first * d..(first + count) * d;
            S::call(Convert { from: &self.kv.k[span.clone()], d, to: k });
            S::call(Convert { from: &self.kv.v[span.clone()], d, to: v });
            let mut ahead = Ahead::new(&self.kv, span.end, KEYS * d, lanes.div_ceil(W * S::LANES) * KEYS / B);
            for (from, width) in strips::<S, W>(lanes) {
                let seen = self.sight(&block, from, width.min(rows - from));
                if seen == Sight::Nothing {
                    continue;
                }
                let mut strip = Strip {
                    q: &q[from * d..][..width * d],
                    acc: &mut acc[from * padded..][..width * padded],
                    scores: &mut scores[..KEYS * width],
                    max: &mut max[from..][..width],
                    sum: &mut sum[from..][..width],
                };
                let mask = |scores: &mut [f32]| {
                    if seen == Sight::Part {
                        self.mask(&block, from, scores);
                    }
                };
                match width / S::LANES {
                    all if all == W => strip.attend::<S, B, W>(k, v, &mut ahead, &mask),
                    1 => strip.attend::<S, B, 1>(k, v, &mut ahead, &mask),
                    _ => strip.attend::<S, B, 2>(k, v, &mut ahead, &mask),
                }
            }
        }
        self.next = end;
        if end < self.end {
            self.memory = memory;
            return;
        }
        self.store(strips::<S, W>(lanes), acc, padded);
        self.state.max.copy_from_slice(&max[..rows]);
        self.state.sum.copy_from_slice(&sum[..rows]);
    }

    /// Queries and accumulators turned: per strip `[head_dim, rows of the strip]`, the accumulator's padded. Queries
    /// are scaled so that scores are powers of two.
    fn load(
        &self,
        strips: impl Iterator<Item = (usize, usize)>,
        q: &mut [f32],
        acc: &mut [f32],
        padded: usize,
    ) {
        let (d, rows) = (self.geo.head_dim, self.state.max.len());
        let scale = self.geo.scale * std::f32::consts::LOG2_E;
        for (from, width) in strips {
            let (q, acc) = (&mut q[from * d..], &mut acc[from * padded..]);
            for row in 0..width.min(rows - from) {
                let span = (from + row) * d..(from + row + 1) * d;
                for (i, (x, a)) in self.q[span.clone()].iter().zip(&self.state.acc[span]).enumerate() {
                    q[i * width + row] = x * scale;
                    acc[i * width + row] = *a;
                }
            }
        }
    }

    /// Accumulators turned back.
    fn store(&mut self, strips: impl Iterator<Item = (usize, usize)>, acc: &[f32], padded: usize) {
        let (d, rows) = (self.geo.head_dim, self.state.max.len());
        for (from, width) in strips {
            let acc = &acc[from * padded..];
            for row in 0..width.min(rows - from) {
                let to = &mut self.state.acc[(from + row) * d..][..d];
                to.iter_mut().enumerate().for_each(|(i, to)| *to = acc[i * width + row]);
            }
        }
    }

    /// What `rows` rows from `from` on see of a block.
    fn sight(&self, block: &Block, from: usize, rows: usize) -> Sight {
        let (first, end) = self.geo.visible(self.first_row + from);
        let (last_first, last_end) = self.geo.visible(self.first_row + from + rows - 1);
        let block_end = block.start + block.count as u64;
        if block.start >= last_end || block_end <= first {
            Sight::Nothing
        } else if block.start >= last_first && block_end <= end && block.count == KEYS {
            Sight::All
        } else {
            Sight::Part
        }
    }

    /// -inf for keys that a row of the strip at `from` does not see, and for those past the block's end.
    fn mask(&self, block: &Block, from: usize, scores: &mut [f32]) {
        let width = scores.len() / KEYS;
        for row in 0..width.min(self.state.max.len() - from) {
            let (first, end) = self.geo.visible(self.first_row + from + row);
            let seen = |j: usize| j < block.count && (first..end).contains(&(block.start + j as u64));
            (0..KEYS).filter(|j| !seen(*j)).for_each(|j| scores[j * width + row] = f32::NEG_INFINITY);
        }
    }
}

/// Where a block of keys lies.
struct Block {
    start: u64,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sight {
    Nothing,
    Part,
    All,
}

/// Strips of up to `W` whole vectors of rows: (first row, rows). Four vectors are two twos: one alone would do as little
/// with each scalar as can be.
fn strips<S: Simd, const W: usize>(lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let vectors = match (lanes - from) / S::LANES {
            0 => return None,
            4 => 2,
            left => left.min(W),
        };
        let strip = (from, vectors * S::LANES);
        from += strip.1;
        Some(strip)
    })
}
