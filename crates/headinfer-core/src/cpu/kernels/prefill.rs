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
use super::prefill_strip::{Ahead, KEYS, Strip};
use super::share::{portion, share};
use super::simd::{Kernel, Simd, dispatch};

/// Rows of a task, at most: no more state than a core's second-level cache holds.
const TASK_ROWS: usize = 240;
/// Larger tasks get a multiple of these rows, strips of 3 vectors of 16 or 2 of 8. Fewer pay for converting K and V with
/// over a twentieth of their time.
const STRIPS: usize = 48;
/// All tasks get a multiple of these rows, twice as many at least: a lone vector of 16 would keep the arithmetic half idle.
const ROWS: usize = 16;
/// f32 values of a cache line.
const LINE: usize = 16;

/// Attends all rows of each head to its keys, under the causal mask and the window of `geo`.
///
/// `heads[i].q` is f32 `[rows, head_dim]`; keys come in blocks of 64 from `kv.start` on.
pub fn attend_prefill(isa: Isa, geo: &Geometry, heads: &mut [HeadTask<'_>]) {
    assert!(geo.head_dim <= HEAD_DIM_MAX, "a head of {} elements", geo.head_dim);
    let d = geo.head_dim;
    let mut left: usize = heads.iter().map(|h| h.state.max.len()).sum();
    let mut tasks = Vec::new();
    for head in heads {
        let StateMut { max, sum, acc } = &mut head.state;
        let (mut max, mut sum, mut acc) = (&mut **max, &mut **sum, &mut **acc);
        let mut first_row = 0;
        while !max.is_empty() {
            let rows = task_rows(left).min(max.len());
            tasks.push(Rows {
                geo,
                first_row,
                q: &head.q[first_row * d..][..rows * d],
                kv: head.kv,
                state: StateMut {
                    max: front(&mut max, rows),
                    sum: front(&mut sum, rows),
                    acc: front(&mut acc, rows * d),
                },
            });
            first_row += rows;
            left -= rows;
        }
    }
    share(tasks, |task, _| dispatch(isa, task));
}

/// Rows of the next task when `left` are left.
fn task_rows(left: usize) -> usize {
    match portion(left) {
        few if few < STRIPS => few.next_multiple_of(ROWS).max(2 * ROWS),
        many => (many / STRIPS * STRIPS).min(TASK_ROWS),
    }
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
            8 => self.walk::<S, 8, 3>(),
            _ => self.walk::<S, 6, 2>(),
        }
    }
}

impl Rows<'_> {
    /// All blocks of keys, each over all strips of rows, in tiles of `B` scalars by `W` vectors.
    #[inline(always)]
    fn walk<S: Simd, const B: usize, const W: usize>(mut self) {
        let (d, rows) = (self.geo.head_dim, self.state.max.len());
        let (lanes, padded) = (rows.next_multiple_of(S::LANES), d.next_multiple_of(B));
        let sizes = [lanes * d, lanes * padded, KEYS * d, KEYS * padded, KEYS * W * S::LANES, lanes, lanes];
        let mut memory = vec![0.0; sizes.iter().sum::<usize>() + LINE];
        let [q, acc, k, v, scores, max, sum] = aligned_parts(&mut memory, sizes);
        self.load(strips::<S, W>(lanes), q, acc, padded);
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
            convert::<S>(&self.kv.k[span.clone()], d, k, d);
            convert::<S>(&self.kv.v[span.clone()], d, v, padded);
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

/// bf16 rows of `d` elements to f32 rows `stride` apart, and zeros for the rows that a block lacks.
#[inline(always)]
fn convert<S: Simd>(from: &[u16], d: usize, to: &mut [f32], stride: usize) {
    let rows = from.len() / d;
    for (to, from) in to.chunks_exact_mut(stride).zip(from.chunks_exact(d)) {
        let whole = d / S::LANES * S::LANES;
        for (to, from) in to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES)) {
            S::store(S::widen_bf16(from), to);
        }
        for (to, x) in to[whole..].iter_mut().zip(&from[whole..]) {
            *to = f32::from_bits(u32::from(*x) << 16);
        }
    }
    to[rows * stride..].fill(0.0);
}
