//! Prefill attention: many query rows over the keys of each head, with carried state.
//!
//! A vector holds one element of many query rows. So a task (some rows of one head) turns its queries once, and
//! keys and values stay as they lie: scores are scalars of K times vectors of queries, outputs are scalars of V times
//! vectors of weights, and the softmax of a block of 64 keys runs down the vectors with no sum across one. A register
//! tile is 8 scalars by 3 vectors where there are 32 registers, and a strip of 3 vectors of rows keeps what it walks
//! in the first-level cache. The running (max, sum, accumulator) is updated once a block, so cutting the keys at
//! multiples of 64 changes no bit; nor does a row's place in a vector.
//!
//! f32 FMA rather than `vdpbf16ps`: queries and weights stay f32, and the bf16 dot product of this kernel's first
//! target (Sapphire Rapids) issues once a cycle against twice for FMA, so it would not be faster.

use rayon::prelude::*;

use super::Isa;
use super::attention::{Geometry, HEAD_DIM_MAX, HeadTask, KvRows, StateMut, aligned_parts};
use super::prefill_strip::{Ahead, KEYS, Strip, VECTORS};
use super::simd::{Kernel, Simd, dispatch};

/// Rows of a task: enough to pay for converting K and V, and no more state than a core's second-level cache holds.
const TASK_ROWS: usize = 256;
/// Tasks get a multiple of these rows: a vector's.
const ROWS: usize = 16;
/// f32 values of a cache line.
const LINE: usize = 16;

/// Attends all rows of each head to its keys, under the causal mask and the window of `geo`.
///
/// `heads[i].q` is f32 `[rows, head_dim]`; keys come in blocks of 64 from `kv.start` on.
pub fn attend_prefill(isa: Isa, geo: &Geometry, heads: &mut [HeadTask<'_>]) {
    assert!(geo.head_dim <= HEAD_DIM_MAX, "a head of {} elements", geo.head_dim);
    let d = geo.head_dim;
    let rows: usize = heads.iter().map(|h| h.state.max.len()).sum();
    // Small problems are cut finer, so that every core has work.
    let even = rows.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(ROWS);
    let task_rows = even.clamp(ROWS, TASK_ROWS);
    let tasks = heads.iter_mut().flat_map(|head| {
        let max = head.state.max.chunks_mut(task_rows);
        let sum = head.state.sum.chunks_mut(task_rows);
        let acc = head.state.acc.chunks_mut(task_rows * d);
        let q = head.q.chunks(task_rows * d);
        let kv = head.kv;
        max.zip(sum).zip(acc.zip(q)).enumerate().map(move |(i, ((max, sum), (acc, q)))| Rows {
            geo,
            first_row: i * task_rows,
            q,
            kv,
            state: StateMut { max, sum, acc },
        })
    });
    let tasks: Vec<Rows<'_>> = tasks.collect();
    tasks.into_par_iter().for_each(|task| dispatch(isa, task));
}

/// Some rows of one head.
struct Rows<'a> {
    geo: &'a Geometry,
    first_row: usize,
    q: &'a [f32],
    kv: KvRows<'a>,
    state: StateMut<'a>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match S::SCALARS {
            8 => self.walk::<S, 8>(),
            _ => self.walk::<S, 4>(),
        }
    }
}

impl Rows<'_> {
    /// All blocks of keys, each over all strips of rows, in tiles of `B` scalars.
    #[inline(always)]
    fn walk<S: Simd, const B: usize>(mut self) {
        let (d, rows) = (self.geo.head_dim, self.state.max.len());
        let (lanes, padded) = (rows.next_multiple_of(S::LANES), d.next_multiple_of(B));
        let sizes =
            [lanes * d, lanes * padded, KEYS * d, KEYS * padded, KEYS * VECTORS * S::LANES, lanes, lanes];
        let mut memory = vec![0.0; sizes.iter().sum::<usize>() + LINE];
        let [q, acc, k, v, scores, max, sum] = aligned_parts(&mut memory, sizes);
        self.load(strips::<S>(lanes), q, acc, padded);
        max[..rows].copy_from_slice(self.state.max);
        sum[..rows].copy_from_slice(self.state.sum);
        let keys = self.kv.k.len() / d;
        for first in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - first);
            let block = Block { start: self.kv.start + first as u64, count };
            if self.sight(&block, 0, rows) == Sight::Nothing {
                continue;
            }
            let span = first * d..(first + count) * d;
            convert(&self.kv.k[span.clone()], d, k, d);
            convert(&self.kv.v[span.clone()], d, v, padded);
            let mut ahead =
                Ahead::new(&self.kv, span.end, KEYS * d, lanes.div_ceil(VECTORS * S::LANES) * KEYS / B);
            for (from, width) in strips::<S>(lanes) {
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
                    1 => strip.attend::<S, B, 1>(k, v, &mut ahead, &mask),
                    2 => strip.attend::<S, B, 2>(k, v, &mut ahead, &mask),
                    _ => strip.attend::<S, B, VECTORS>(k, v, &mut ahead, &mask),
                }
            }
        }
        self.store(strips::<S>(lanes), acc, padded);
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

/// Strips of whole vectors of rows: (first row, rows). Four vectors are two twos: one alone would do as little with
/// each scalar as can be.
fn strips<S: Simd>(lanes: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let vectors = match (lanes - from) / S::LANES {
            0 => return None,
            4 => 2,
            left => left.min(VECTORS),
        };
        let strip = (from, vectors * S::LANES);
        from += strip.1;
        Some(strip)
    })
}

/// bf16 rows of `d` elements to f32 rows `stride` apart, and zeros for the rows that a block lacks.
#[inline(always)]
fn convert(from: &[u16], d: usize, to: &mut [f32], stride: usize) {
    let rows = from.len() / d;
    for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(d)) {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = f32::from_bits(u32::from(*x) << 16));
    }
    to[rows * stride..].fill(0.0);
}
