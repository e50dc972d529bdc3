//! Arithmetic of decode attention: some rows over some splits of a head's keys, each split into a state of its own.
//!
//! bf16 rows are read in place as even and odd elements, one operation a vector; queries and accumulators are kept in
//! that order. Per split first all of K, then all of V; what comes next is asked for line by line meanwhile, a whole
//! half of a split ahead. A coded split is decoded to memory of the thread, which stays in its second cache; the next
//! one is asked for meanwhile, a quarter of it during each half's decoding, the scores and the sums.
//!
//! f32 FMA rather than `vdpbf16ps`: as exact, a query would take three bf16 parts, so three instructions at one a cycle
//! for a vector of pairs, against two FMA at two a cycle and, shared by all rows, two operations to convert.

use std::cell::Cell;

use super::attention::{Geometry, HEAD_DIM_MAX, aligned_parts};
use super::decode::Keys;
use super::quantised::{Half, Quantised};
use super::simd::{Kernel, Simd};

/// Keys of a split, at most.
pub(super) const SPLIT_MAX: usize = 256;
/// Query rows that share each loaded vector.
const ROWS: usize = 4;
/// Lanes of the widest vector.
const LANES_MAX: usize = 16;
/// bf16 values of a cache line.
const LINE: usize = 32;

/// The keys of a split: rows `[from, to)` of a piece.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) piece: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// All rows of a head over consecutive splits of one piece.
pub(super) struct Run<'a> {
    pub(super) geo: &'a Geometry,
    pub(super) q: &'a [f32],
    pub(super) keys: Keys<'a>,
    pub(super) cuts: &'a [Cut],
    /// Per split `[max; rows]`, `[sum; rows]`, `[rows, head_dim]` of even then odd elements.
    pub(super) partials: &'a mut [f32],
    pub(super) rows: usize,
    /// [`Run::bytes`] of what the thread does next, if known.
    pub(super) next: &'a [u8],
}

impl<'a> Run<'a> {
    /// What is read first, from the first of its splits on.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes_from(&self.cuts[0])
    }

    fn bytes_from(&self, cut: &Cut) -> &'a [u8] {
        let d = self.geo.head_dim;
        match self.keys {
            Keys::Plain(rows) => bytemuck::cast_slice(&rows.k[cut.from * d..]),
            Keys::Packed(packed) => packed.from(cut.from / SPLIT_MAX, d),
            Keys::Quantised(rows) => rows.from(cut.from / SPLIT_MAX, d),
        }
    }

    /// A quarter of a coded unit is about as many times smaller than half a plain one, as a power of two.
    fn shift(&self) -> u32 {
        match self.keys {
            Keys::Plain(_) => 0,
            Keys::Packed(_) => 1,
            Keys::Quantised(rows) if rows.format == Quantised::Int8 => 2,
            Keys::Quantised(_) => 3,
        }
    }

    /// Whether any row sees keys of `cut`.
    fn sees(&self, cut: &Cut) -> bool {
        let start = self.keys.start();
        let (from, to) = (start + cut.from as u64, start + cut.to as u64);
        (0..self.rows).any(|row| {
            let (first, end) = self.geo.visible(row);
            first.max(from) < end.min(to)
        })
    }
}

thread_local! {
    /// K and V of a split, decoded; kept, as the system takes its time to hand out so much zeroed memory.
    static DECODED: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (d, rows) = (self.geo.head_dim, self.rows);
        let width = d.next_multiple_of(2 * S::LANES);
        let mut memory = vec![0.0; rows * width + LINE];
        let [q] = aligned_parts(&mut memory, [rows * width]);
        arrange::<S>(self.geo, self.q, q, width);
        // Rows of K and V that do not fill whole vectors are padded first: the products read whole vectors only.
        let half = if width == d { 0 } else { SPLIT_MAX * width };
        let mut padded = vec![0; 2 * half];
        let (padded_k, padded_v) = padded.split_at_mut(half);
        let mut decoded = DECODED.take();
        if self.keys.half_bytes(d).is_some() {
            decoded.resize(2 * SPLIT_MAX * HEAD_DIM_MAX, 0);
        }
        let partials = std::mem::take(&mut self.partials);
        for (i, partial) in partials.chunks_mut(rows * (d + 2)).enumerate() {
            let cut = &self.cuts[i];
            let next = self.cuts.get(i + 1).map_or(self.next, |cut| self.bytes_from(cut));
            let (k, v) = match self.keys {
                Keys::Plain(kv) => (&kv.k[cut.from * d..cut.to * d], &kv.v[cut.from * d..cut.to * d]),
                coded => {
                    let (k, v) = decoded.split_at_mut(SPLIT_MAX * HEAD_DIM_MAX);
                    let (k, v) = (&mut k[..SPLIT_MAX * d], &mut v[..SPLIT_MAX * d]);
                    if self.sees(cut) {
                        decode::<S>(&coded, cut, d, (&mut *k, &mut *v), next);
                    }
                    (&*k, &*v)
                }
            };
            let ends = next.is_empty();
            let (k, v) = match width == d {
                true => (k, v),
                false => (pad(k, d, padded_k, width), pad(v, d, padded_v, width)),
            };
            let ahead = match (self.keys.half_bytes(d), ends) {
                // Nothing to ask for but what is there.
                (None, true) => Ahead { scores: v.as_ptr(), sums: k.as_ptr(), shift: 0 },
                (Some(_), true) => Ahead { scores: k.as_ptr(), sums: k.as_ptr(), shift: 1 },
                (None, false) => Ahead { scores: v.as_ptr(), sums: next.as_ptr().cast(), shift: 0 },
                (Some(half), false) => {
                    let quarter = |i| next.as_ptr().wrapping_add(i * half / 2).cast();
                    Ahead { scores: quarter(2), sums: quarter(3), shift: self.shift() }
                }
            };
            let split = Split { k, v, width, ahead, start: self.keys.start() + cut.from as u64 };
            split.attend_all::<S>(self.geo, q, partial, rows);
        }
        DECODED.set(decoded);
    }
}

/// K and V of a coded unit; meanwhile the first half of the `next` one is asked for.
#[inline(always)]
fn decode<S: Simd>(keys: &Keys<'_>, cut: &Cut, d: usize, (k, v): (&mut [u16], &mut [u16]), next: &[u8]) {
    let next = &next[..next.len().min(keys.half_bytes(d).unwrap_or_default())];
    let (first, second) = next.split_at(next.len() / 2);
    let unit = cut.from / SPLIT_MAX;
    match keys {
        Keys::Plain(_) => {}
        Keys::Packed(rows) => {
            S::call(rows.unpack(d, (unit, 0), k, first));
            S::call(rows.unpack(d, (unit, 1), v, second));
        }
        Keys::Quantised(rows) => {
            S::call(rows.dequantise(d, (unit, Half::Keys), k, first));
            S::call(rows.dequantise(d, (unit, Half::Values), v, second));
        }
    }
}

/// Queries scaled, by log2(e) too, in the order of use: for each few rows, for each vector of pairs, for each row, even
/// then odd elements, padded with the zeros that `to` holds.
fn arrange<S: Simd>(geo: &Geometry, q: &[f32], to: &mut [f32], width: usize) {
    let scale = geo.scale * std::f32::consts::LOG2_E;
    let few = q.chunks(ROWS * geo.head_dim).zip(to.chunks_mut(ROWS * width));
    for (q, to) in few {
        let rows = q.len() / geo.head_dim;
        for (r, q) in q.chunks_exact(geo.head_dim).enumerate() {
            for (i, pair) in q.chunks_exact(2).enumerate() {
                let at = (i / S::LANES * rows + r) * 2 * S::LANES + i % S::LANES;
                to[at] = pair[0] * scale;
                to[at + S::LANES] = pair[1] * scale;
            }
        }
    }
}

/// Rows of `d` elements as rows of `width`, the rest of which is zero already.
fn pad<'a>(from: &[u16], d: usize, to: &'a mut [u16], width: usize) -> &'a [u16] {
    let rows = from.len() / d;
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(d)) {
        to[..d].copy_from_slice(from);
    }
    &to[..rows * width]
}

/// Up to [`ROWS`] rows and their state of one split.
struct Rows<'a> {
    geo: &'a Geometry,
    first: usize,
    /// Arranged.
    q: &'a [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    acc: &'a mut [f32],
}

/// K and V of a split, `[keys, width]`, zeros past the head's elements.
struct Split<'a> {
    k: &'a [u16],
    v: &'a [u16],
    width: usize,
    ahead: Ahead,
    start: u64,
}

/// What is asked for meanwhile.
#[derive(Clone, Copy)]
struct Ahead {
    /// While scores are computed, as many bytes as K has.
    scores: *const u16,
    /// While values are summed, as many as V has.
    sums: *const u16,
    /// Fewer by this power of two.
    shift: u32,
}

impl Split<'_> {
    /// The states of all `rows`.
    #[inline(always)]
    fn attend_all<S: Simd>(&self, geo: &Geometry, q: &[f32], partial: &mut [f32], rows: usize) {
        let (d, width) = (geo.head_dim, self.width);
        let (max, rest) = partial.split_at_mut(rows);
        let (sum, acc) = rest.split_at_mut(rows);
        for first in (0..rows).step_by(ROWS) {
            let last = rows.min(first + ROWS);
            let rows = Rows {
                geo,
                first,
                q: &q[first * width..last * width],
                max: &mut max[first..last],
                sum: &mut sum[first..last],
                acc: &mut acc[first * d..last * d],
            };
            // Rows, keys and pairs of columns at once: rows times keys at most the lanes of a vector, and as many sums
            // as the register file holds.
            match (last - first, S::LANES) {
                (1, _) => self.attend::<S, 1, 8, 4>(rows),
                (2, LANES_MAX) => self.attend::<S, 2, 8, 4>(rows),
                (2, _) => self.attend::<S, 2, 4, 2>(rows),
                (3, LANES_MAX) => self.attend::<S, 3, 4, 2>(rows),
                (3, _) => self.attend::<S, 3, 2, 1>(rows),
                (_, LANES_MAX) => self.attend::<S, ROWS, 4, 2>(rows),
                _ => self.attend::<S, ROWS, 2, 1>(rows),
            }
        }
    }

    /// The state of `R` rows that see this split alone; `T` keys and `W` pairs of columns at once.
    #[inline(always)]
    fn attend<S: Simd, const R: usize, const T: usize, const W: usize>(&self, rows: Rows<'_>) {
        let count = self.k.len() / self.width;
        let mut seen = [(0, 0); R];
        for (r, seen) in seen.iter_mut().enumerate() {
            let inside = |position: u64| (position.saturating_sub(self.start) as usize).min(count);
            let (from, to) = rows.geo.visible(rows.first + r);
            *seen = (inside(from), inside(to).max(inside(from)));
        }
        if seen.iter().all(|(from, to)| from == to) {
            rows.max.fill(f32::NEG_INFINITY);
            rows.sum.fill(0.0);
            rows.acc.fill(0.0);
            return;
        }
        let mut scores = [[f32::NEG_INFINITY; SPLIT_MAX]; R];
        self.score::<S, R, T>(rows.q, &mut scores);
        for (r, scores) in scores.iter_mut().enumerate() {
            scores[..seen[r].0].fill(f32::NEG_INFINITY);
            scores[seen[r].1..].fill(f32::NEG_INFINITY);
            let whole = count.next_multiple_of(S::LANES);
            (rows.max[r], rows.sum[r]) = softmax::<S>(&mut scores[..whole]);
        }
        self.weigh::<S, R, W>(&scores, rows.acc);
    }

    /// scores[row][key] = q · k. Meanwhile the values are asked for, or some of the next packed split.
    ///
    /// A register holds one (row, key) sum, and as many as a vector has lanes are added up across their lanes at once.
    #[inline(always)]
    fn score<S: Simd, const R: usize, const T: usize>(&self, q: &[f32], scores: &mut [[f32; SPLIT_MAX]; R]) {
        let last = self.k.len() / self.width - 1;
        for first in (0..=last).step_by(T) {
            // Past the end the last key is computed again, for the mask to remove.
            let mut keys: [&[u16]; T] = [&[]; T];
            for (n, key) in keys.iter_mut().enumerate() {
                *key = &self.k[(first + n).min(last) * self.width..][..self.width];
            }
            let ahead = self.ahead.scores.wrapping_add((first * self.width) >> self.ahead.shift);
            let sums = dots::<S, R, T>(q, &keys, ahead, self.ahead.shift);
            let mut lanes = [S::splat(0.0); LANES_MAX];
            for n in 0..T {
                for r in 0..R {
                    lanes[r * T + n] = sums[n][r];
                }
            }
            let mut together = [0.0; LANES_MAX];
            S::store(S::sums(&lanes), &mut together);
            for (scores, sums) in scores.iter_mut().zip(together.chunks_exact(T)) {
                scores[first..][..T].copy_from_slice(sums);
            }
        }
    }

    /// acc[row] = weights[row] · v. Meanwhile the next split is asked for.
    #[inline(always)]
    fn weigh<S: Simd, const R: usize, const W: usize>(
        &self,
        weights: &[[f32; SPLIT_MAX]; R],
        acc: &mut [f32],
    ) {
        let (d, half) = (acc.len() / R, self.width / 2);
        let mut sums = [[0.0; HEAD_DIM_MAX]; R];
        let mut at = 0;
        while at < half {
            at += S::LANES
                * match (half - at) / S::LANES {
                    left if left >= W => self.columns::<S, R, W>(weights, at, &mut sums),
                    left if left >= 2 && W > 2 => self.columns::<S, R, 2>(weights, at, &mut sums),
                    _ => self.columns::<S, R, 1>(weights, at, &mut sums),
                };
        }
        for (sums, acc) in sums.iter().zip(acc.chunks_exact_mut(d)) {
            acc[..d / 2].copy_from_slice(&sums[..d / 2]);
            acc[d / 2..].copy_from_slice(&sums[half..][..d / 2]);
        }
    }

    /// `W` vectors of even and of odd columns from pair `at` on; returns `W`.
    #[inline(always)]
    fn columns<S: Simd, const R: usize, const W: usize>(
        &self,
        weights: &[[f32; SPLIT_MAX]; R],
        at: usize,
        to: &mut [[f32; HEAD_DIM_MAX]; R],
    ) -> usize {
        let step = 2 * W * S::LANES;
        let mut even = [[S::splat(0.0); W]; R];
        let mut odd = [[S::splat(0.0); W]; R];
        let shift = self.ahead.shift;
        let next = self.ahead.sums.wrapping_add((2 * at * (self.v.len() / self.width)) >> shift);
        for (j, v) in self.v.chunks_exact(self.width).enumerate().take(SPLIT_MAX) {
            let v = &v[2 * at..][..step];
            ask::<S>(next.wrapping_add((j * step) >> shift), step >> shift);
            for c in 0..W {
                let (v_even, v_odd) = S::load_bf16(&v[2 * c * S::LANES..]);
                for r in 0..R {
                    let w = S::splat(weights[r][j]);
                    even[r][c] = S::fma(w, v_even, even[r][c]);
                    odd[r][c] = S::fma(w, v_odd, odd[r][c]);
                }
            }
        }
        for r in 0..R {
            for c in 0..W {
                let low = at + c * S::LANES;
                S::store(even[r][c], &mut to[r][low..]);
                S::store(odd[r][c], &mut to[r][self.width / 2 + low..]);
            }
        }
        W
    }
}

/// q · k for each of some rows and keys, lane by lane. Asks for as much from `ahead` on as it reads, less by `shift`.
#[inline(always)]
fn dots<S: Simd, const R: usize, const T: usize>(
    q: &[f32],
    keys: &[&[u16]; T],
    ahead: *const u16,
    shift: u32,
) -> [[S::V; R]; T] {
    let mut sums = [[S::splat(0.0); R]; T];
    for (i, q) in q.chunks_exact(2 * S::LANES * R).enumerate() {
        let few = (T * 2 * S::LANES) >> shift;
        ask::<S>(ahead.wrapping_add(i * few), few);
        if R == 1 {
            // One key's pairs at a time: those of all would fill the register file.
            let (even, odd) = q.split_at(S::LANES);
            let (even, odd) = (S::load(even), S::load(odd));
            for n in 0..T {
                let pair = S::load_bf16(&keys[n][2 * i * S::LANES..]);
                sums[n][0] = S::fma(odd, pair.1, S::fma(even, pair.0, sums[n][0]));
            }
            continue;
        }
        let mut pairs = [(S::splat(0.0), S::splat(0.0)); T];
        for n in 0..T {
            pairs[n] = S::load_bf16(&keys[n][2 * i * S::LANES..]);
        }
        for r in 0..R {
            let (even, odd) = q[2 * r * S::LANES..][..2 * S::LANES].split_at(S::LANES);
            let (even, odd) = (S::load(even), S::load(odd));
            for n in 0..T {
                sums[n][r] = S::fma(even, pairs[n].0, sums[n][r]);
            }
            for n in 0..T {
                sums[n][r] = S::fma(odd, pairs[n].1, sums[n][r]);
            }
        }
    }
    sums
}

/// Scores become weights, masked ones 0; returns the largest score and the sum of the weights.
#[inline(always)]
fn softmax<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    let mut largest = S::splat(f32::NEG_INFINITY);
    for scores in scores.chunks_exact(S::LANES) {
        largest = S::max(largest, S::load(scores));
    }
    let max = S::reduce_max(largest);
    // A row that sees nothing here: any finite offset gives it weights of 0.
    let (offset, mut total) = (S::splat(max.max(f32::MIN)), S::splat(0.0));
    for scores in scores.chunks_exact_mut(S::LANES) {
        let weight = S::exp2(S::sub(S::load(scores), offset));
        total = S::add(total, weight);
        S::store(weight, scores);
    }
    (max, S::reduce_add(total))
}

/// Asks for the lines of `elements` values.
#[inline(always)]
fn ask<S: Simd>(from: *const u16, elements: usize) {
    for at in (0..elements).step_by(LINE) {
        S::prefetch(from.wrapping_add(at));
    }
}
