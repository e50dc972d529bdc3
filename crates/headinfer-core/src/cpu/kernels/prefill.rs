//! Prefill attention: many query rows over the keys of each head, with carried state.
//!
//! Per task (some rows of one head) and block of 64 keys: K is turned to `[head_dim, 64]` f32 and V to
//! `[64, head_dim]` f32 in the task's own cache, then a 6-row register tile runs over both products. The running
//! (max, sum, accumulator) is updated once a block, so cutting the keys at multiples of 64 changes no bit.
//!
//! f32 FMA rather than `vdpbf16ps`: queries and weights stay f32, and the bf16 dot product of this kernel's first
//! target (Sapphire Rapids) issues once a cycle against twice for FMA, so it would not be faster.

use rayon::prelude::*;

use super::Isa;
use super::attention::{Geometry, HeadTask, KvRows, StateMut, softmax_block};
use super::simd::{Kernel, Simd, dispatch};

/// Keys of a block.
const KEYS: usize = 64;
/// Rows of a register tile.
const TILE_ROWS: usize = 6;
/// Rows whose scores are held at once, a multiple of [`TILE_ROWS`].
const STRIP: usize = 24;
/// Rows of a task: enough to pay for turning K and V.
const TASK_ROWS: usize = 240;
const HEAD_DIM_MAX: usize = 256;

/// Attends all rows of each head to its keys, under the causal mask and the window of `geo`.
///
/// `heads[i].q` is f32 `[rows, head_dim]`; keys come in blocks of 64 from `kv.start` on.
pub fn attend_prefill(isa: Isa, geo: &Geometry, heads: &mut [HeadTask<'_>]) {
    assert!(geo.head_dim <= HEAD_DIM_MAX, "a head of {} elements", geo.head_dim);
    let d = geo.head_dim;
    let rows: usize = heads.iter().map(|h| h.state.max.len()).sum();
    // Small problems are cut finer, so that every core has work.
    let even = rows.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(STRIP);
    let task_rows = even.min(TASK_ROWS);
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

/// One block of keys, as the products read it. The head dimension is padded with zeros to whole vectors,
/// and vectors start where cache lines do.
#[repr(align(64))]
struct Block {
    /// `[head_dim, 64]`.
    k: [f32; HEAD_DIM_MAX * KEYS],
    /// `[64, padded head_dim]`.
    v: [f32; KEYS * HEAD_DIM_MAX],
    keys: usize,
    start: u64,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let d = self.geo.head_dim;
        let padded = d.next_multiple_of(S::LANES);
        let (first_visible, _) = self.geo.visible(self.first_row);
        let (_, end_visible) = self.geo.visible(self.first_row + self.state.max.len() - 1);
        let keys = self.kv.k.len() / d;
        let mut block =
            Block { k: [0.0; HEAD_DIM_MAX * KEYS], v: [0.0; KEYS * HEAD_DIM_MAX], keys: 0, start: 0 };
        for first in (0..keys).step_by(KEYS) {
            let start = self.kv.start + first as u64;
            let count = KEYS.min(keys - first);
            if start >= end_visible || start + (count as u64) <= first_visible {
                continue;
            }
            let span = first * d..(first + count) * d;
            block.fill(&self.kv.k[span.clone()], &self.kv.v[span], d, padded);
            (block.keys, block.start) = (count, start);
            for strip in (0..self.state.max.len()).step_by(STRIP) {
                self.strip::<S>(&block, strip, padded);
            }
        }
    }
}

impl Block {
    #[inline(always)]
    fn fill(&mut self, k: &[u16], v: &[u16], d: usize, padded: usize) {
        let value = |x: u16| f32::from_bits(u32::from(x) << 16);
        for (j, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            for (i, x) in k.iter().enumerate() {
                self.k[i * KEYS + j] = value(*x);
            }
            let to = &mut self.v[j * padded..][..d];
            to.iter_mut().zip(v).for_each(|(to, x)| *to = value(*x));
        }
        for j in k.len() / d..KEYS {
            (0..d).for_each(|i| self.k[i * KEYS + j] = 0.0);
            self.v[j * padded..][..padded].fill(0.0);
        }
    }
}

impl Rows<'_> {
    /// Rows `[strip, strip + STRIP)` over one block.
    #[inline(always)]
    fn strip<S: Simd>(&mut self, block: &Block, strip: usize, padded: usize) {
        let d = self.geo.head_dim;
        let rows = STRIP.min(self.state.max.len() - strip);
        let mut scores = [0.0f32; STRIP * KEYS];
        let q = &self.q[strip * d..(strip + rows) * d];
        for tile in (0..rows).step_by(TILE_ROWS) {
            scores_tile::<S>(q, tile, rows, d, &block.k, &mut scores);
        }
        let mut shrink = [1.0f32; STRIP];
        for row in 0..rows {
            let scores = &mut scores[row * KEYS..][..KEYS];
            scores.iter_mut().for_each(|s| *s *= self.geo.scale);
            self.mask(block, strip + row, scores);
            let (max, sum) = (&mut self.state.max[strip + row], &mut self.state.sum[strip + row]);
            shrink[row] = softmax_block::<S>(scores, max, sum);
        }
        let acc = &mut self.state.acc[strip * d..(strip + rows) * d];
        for tile in (0..rows).step_by(TILE_ROWS) {
            values_tile::<S>(&scores, &shrink, tile, rows, &block.v[..KEYS * padded], padded, d, acc);
        }
    }

    /// -inf for keys that row does not see, and for those past the block's end.
    #[inline(always)]
    fn mask(&self, block: &Block, row: usize, scores: &mut [f32]) {
        let (first, end) = self.geo.visible(self.first_row + row);
        let start = (first.saturating_sub(block.start) as usize).min(KEYS);
        let end = (end.saturating_sub(block.start) as usize).min(block.keys);
        // Most blocks are seen whole.
        if start > 0 || end < KEYS {
            scores[..start].fill(f32::NEG_INFINITY);
            scores[end.max(start)..].fill(f32::NEG_INFINITY);
        }
    }
}

/// scores[tile.., 64] = q[tile.., d] · k[d, 64] for up to six rows. Rows past the end repeat the last one and are
/// not stored: every row takes the same path.
#[inline(always)]
fn scores_tile<S: Simd>(q: &[f32], tile: usize, rows: usize, d: usize, k: &[f32], scores: &mut [f32]) {
    let row = |r: usize| &q[(tile + r).min(rows - 1) * d..][..d];
    let q: [&[f32]; TILE_ROWS] = std::array::from_fn(row);
    let width = S::TILE * S::LANES;
    for column in (0..KEYS).step_by(width) {
        let mut sums = [[S::splat(0.0); 4]; TILE_ROWS];
        for i in 0..d {
            let k = &k[i * KEYS + column..][..width];
            let keys: [S::V; 4] = std::array::from_fn(|t| S::load(&k[t.min(S::TILE - 1) * S::LANES..]));
            for r in 0..TILE_ROWS {
                let x = S::splat(q[r][i]);
                for t in 0..S::TILE {
                    sums[r][t] = S::fma(x, keys[t], sums[r][t]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate().take(rows - tile) {
            let to = &mut scores[(tile + r) * KEYS + column..][..width];
            for t in 0..S::TILE {
                S::store(sums[t], &mut to[t * S::LANES..]);
            }
        }
    }
}

/// acc[tile.., d] = acc · shrink + weights[tile.., 64] · v[64, d] for up to six rows.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // one tile of a product; all internal
fn values_tile<S: Simd>(
    weights: &[f32],
    shrink: &[f32],
    tile: usize,
    rows: usize,
    v: &[f32],
    padded: usize,
    d: usize,
    acc: &mut [f32],
) {
    let row = |r: usize| (tile + r).min(rows - 1);
    let w: [&[f32]; TILE_ROWS] = std::array::from_fn(|r| &weights[row(r) * KEYS..][..KEYS]);
    for column in (0..padded).step_by(S::TILE * S::LANES) {
        let vectors = S::TILE.min((padded - column) / S::LANES);
        let mut sums = [[S::splat(0.0); 4]; TILE_ROWS];
        if vectors == S::TILE {
            for (j, v) in v.chunks_exact(padded).enumerate() {
                let values: [S::V; 4] =
                    std::array::from_fn(|t| S::load(&v[column + t.min(S::TILE - 1) * S::LANES..]));
                for r in 0..TILE_ROWS {
                    let x = S::splat(w[r][j]);
                    for t in 0..S::TILE {
                        sums[r][t] = S::fma(x, values[t], sums[r][t]);
                    }
                }
            }
        } else {
            for (j, v) in v.chunks_exact(padded).enumerate() {
                for t in 0..vectors {
                    let values = S::load(&v[column + t * S::LANES..]);
                    for r in 0..TILE_ROWS {
                        sums[r][t] = S::fma(S::splat(w[r][j]), values, sums[r][t]);
                    }
                }
            }
        }
        for r in 0..TILE_ROWS.min(rows - tile) {
            let shrink = shrink[tile + r];
            for (t, sum) in sums[r].iter().enumerate().take(vectors) {
                let at = column + t * S::LANES;
                let end = d.min(at + S::LANES);
                let to = &mut acc[(tile + r) * d..][..d];
                add_scaled::<S>(&mut to[at..end], shrink, *sum);
            }
        }
    }
}

/// to = to · shrink + v; the last vector of a head may be cut short.
#[inline(always)]
fn add_scaled<S: Simd>(to: &mut [f32], shrink: f32, v: S::V) {
    if to.len() == S::LANES {
        S::store(S::fma(S::load(to), S::splat(shrink), v), to);
        return;
    }
    let mut whole = [0.0f32; 16];
    whole[..to.len()].copy_from_slice(to);
    S::store(S::fma(S::load(&whole), S::splat(shrink), v), &mut whole);
    to.copy_from_slice(&whole[..to.len()]);
}
