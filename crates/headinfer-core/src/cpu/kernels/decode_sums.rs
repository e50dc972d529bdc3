//! Arithmetic of decode attention over one split: scores, their softmax, and the sums of values, of a few rows at once.
//!
//! With four rows and vectors of 8 all of it is bound by arithmetic, so what stands beside the multiply-adds counts: loops
//! have lengths that the compiler knows, and what is read ahead is asked for without a branch.
//!
//! f32 FMA rather than `vdpbf16ps`: as exact, a query would take three bf16 parts, so three instructions at one a cycle
//! for a vector of pairs, against two FMA at two a cycle and, shared by all rows, two operations to convert.

use super::attention::{Geometry, HEAD_DIM_MAX};
use super::decode_split::{LINE, ROWS, SPLIT_MAX};
use super::simd::Simd;

/// Keys whose values are summed before the next ones: their lines stay in a first-level cache beside the sums.
const KEYS: usize = 32;
/// Lanes of the widest vector.
const LANES_MAX: usize = 16;

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
pub(super) struct Split<'a> {
    pub(super) k: &'a [u16],
    pub(super) v: &'a [u16],
    pub(super) width: usize,
    pub(super) ahead: Ahead,
    /// Position of the first key.
    pub(super) start: u64,
}

/// What is asked for meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// While scores are computed, as many bytes as K has.
    pub(super) scores: *const u16,
    /// While values are summed, as many as V has.
    pub(super) sums: *const u16,
    /// Fewer by this power of two.
    pub(super) shift: u32,
}

impl Ahead {
    fn scores(&self) -> Walk {
        Walk { at: self.scores, line: LINE >> self.shift }
    }

    fn sums(&self) -> Walk {
        Walk { at: self.sums, line: LINE >> self.shift }
    }
}

/// A walk over memory that is asked for meanwhile.
struct Walk {
    at: *const u16,
    /// Values of it for each line that is read: where it is half as many, two requests are for one line.
    line: usize,
}

impl Walk {
    /// Goes on as far as `elements` values that are read, a number of whole lines.
    #[inline(always)]
    fn ask<S: Simd>(&mut self, elements: usize) {
        for _ in 0..elements / LINE {
            S::prefetch(self.at);
            self.at = self.at.wrapping_add(self.line);
        }
    }
}

impl Split<'_> {
    /// The states of all `rows`.
    #[inline(always)]
    pub(super) fn attend_all<S: Simd>(&self, geo: &Geometry, q: &[f32], partial: &mut [f32], rows: usize) {
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
            // as the register file holds. Where arithmetic is the cost, widths known to the compiler spare instructions.
            match (last - first, S::LANES) {
                (1, _) => self.attend::<S, 1, 8, 4>(rows),
                (2, LANES_MAX) => self.attend::<S, 2, 8, 4>(rows),
                (2, _) => self.attend::<S, 2, 4, 2>(rows),
                (3, LANES_MAX) => self.attend::<S, 3, 4, 2>(rows),
                (3, _) => self.attend::<S, 3, 2, 1>(rows),
                (_, LANES_MAX) if width == 64 => Split { width: 64, ..*self }.attend::<S, ROWS, 4, 2>(rows),
                (_, LANES_MAX) => self.attend::<S, ROWS, 4, 2>(rows),
                _ if width == 64 => Split { width: 64, ..*self }.attend::<S, ROWS, 2, 1>(rows),
                _ if width == 128 => Split { width: 128, ..*self }.attend::<S, ROWS, 2, 1>(rows),
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
        for (scores, (from, to)) in scores.iter_mut().zip(seen) {
            scores[..from].fill(f32::NEG_INFINITY);
            scores[to..].fill(f32::NEG_INFINITY);
        }
        let whole = count.next_multiple_of(S::LANES);
        rows.max.copy_from_slice(&largest::<S, R>(&scores, whole));
        for (r, scores) in scores.iter_mut().enumerate() {
            rows.sum[r] = weights::<S>(&mut scores[..whole], rows.max[r]);
        }
        self.weigh::<S, R, W>(&scores, rows.acc);
    }

    /// scores[row][key] = q · k. Meanwhile the values are asked for, or some of the next packed split.
    ///
    /// A register holds one (row, key) sum, and as many as a vector has lanes are added up across their lanes at once.
    #[inline(always)]
    fn score<S: Simd, const R: usize, const T: usize>(&self, q: &[f32], scores: &mut [[f32; SPLIT_MAX]; R]) {
        let (width, q) = (self.width, &q[..R * self.width]);
        let mut ahead = self.ahead.scores();
        let keys = self.k.chunks(T * width).zip(0..SPLIT_MAX / T);
        for (keys, first) in keys.map(|(keys, i)| (keys, i * T)) {
            let sums = match keys.len() == T * width {
                true => dots::<S, R, T>(q, std::array::from_fn(|n| &keys[n * width..][..width]), &mut ahead),
                false => {
                    // Past the end the last key is computed again, for the mask to remove.
                    let key = |n: usize| &keys[(n * width).min(keys.len() - width)..][..width];
                    dots::<S, R, T>(q, std::array::from_fn(key), &mut ahead)
                }
            };
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
    ///
    /// A few keys at a time for all columns, so that what shares a line with a column is found in the first-level cache.
    #[inline(always)]
    fn weigh<S: Simd, const R: usize, const W: usize>(
        &self,
        weights: &[[f32; SPLIT_MAX]; R],
        acc: &mut [f32],
    ) {
        let (d, half) = (acc.len() / R, self.width / 2);
        let mut sums = [[0.0; HEAD_DIM_MAX]; R];
        let mut ahead = self.ahead.sums();
        for (i, v) in self.v.chunks(KEYS * self.width).take(SPLIT_MAX / KEYS).enumerate() {
            let mut few = [[0.0; KEYS]; R];
            for (few, weights) in few.iter_mut().zip(weights) {
                few.copy_from_slice(&weights[i * KEYS..][..KEYS]);
            }
            match v.len() == KEYS * self.width {
                true => Few { v, count: KEYS, width: self.width, weights: &few }
                    .weigh::<S, W>(&mut sums, &mut ahead),
                false => {
                    let few = Few { v, count: v.len() / self.width, width: self.width, weights: &few };
                    few.weigh::<S, W>(&mut sums, &mut ahead);
                }
            }
        }
        for (sums, acc) in sums.iter().zip(acc.chunks_exact_mut(d)) {
            acc[..d / 2].copy_from_slice(&sums[..d / 2]);
            acc[d / 2..].copy_from_slice(&sums[half..][..d / 2]);
        }
    }
}

/// Values of a few keys and the weights they have for some rows, 0 past the end.
struct Few<'a, const R: usize> {
    v: &'a [u16],
    count: usize,
    width: usize,
    weights: &'a [[f32; KEYS]; R],
}

impl<const R: usize> Few<'_, R> {
    /// Adds to all columns, `W` pairs at once.
    #[inline(always)]
    fn weigh<S: Simd, const W: usize>(&self, to: &mut [[f32; HEAD_DIM_MAX]; R], ahead: &mut Walk) {
        let (mut at, half) = (0, self.width / 2);
        while at < half {
            at += S::LANES
                * match (half - at) / S::LANES {
                    left if left >= W => self.columns::<S, W>(at, to, ahead),
                    left if left >= 2 && W > 2 => self.columns::<S, 2>(at, to, ahead),
                    _ => self.columns::<S, 1>(at, to, ahead),
                };
        }
    }

    /// Adds to `W` vectors of even and of odd columns from pair `at` on; returns `W`.
    #[inline(always)]
    fn columns<S: Simd, const W: usize>(
        &self,
        at: usize,
        to: &mut [[f32; HEAD_DIM_MAX]; R],
        ahead: &mut Walk,
    ) -> usize {
        let half = self.width / 2;
        let mut sums = [[(S::splat(0.0), S::splat(0.0)); W]; R];
        for (sums, to) in sums.iter_mut().zip(to.iter()) {
            for (c, sums) in sums.iter_mut().enumerate() {
                let low = at + c * S::LANES;
                *sums = (S::load(&to[low..]), S::load(&to[half + low..]));
            }
        }
        let step = 2 * W * S::LANES;
        let count = self.count.min(KEYS);
        for j in (0..count / 4).map(|four| 4 * four) {
            ahead.ask::<S>(4 * step);
            for j in j..j + 4 {
                self.add::<S, W>(&mut sums, j, &self.v[j * self.width + 2 * at..][..step]);
            }
        }
        for j in count / 4 * 4..count {
            self.add::<S, W>(&mut sums, j, &self.v[j * self.width + 2 * at..][..step]);
        }
        for (sums, to) in sums.iter().zip(to) {
            for (c, (even, odd)) in sums.iter().enumerate() {
                let low = at + c * S::LANES;
                S::store(*even, &mut to[low..]);
                S::store(*odd, &mut to[half + low..]);
            }
        }
        W
    }

    /// Adds values of key `j` times the weight that each row gives it.
    #[inline(always)]
    fn add<S: Simd, const W: usize>(&self, sums: &mut [[(S::V, S::V); W]; R], j: usize, v: &[u16]) {
        for c in 0..W {
            let (even, odd) = S::load_bf16(&v[2 * c * S::LANES..]);
            for (sums, weights) in sums.iter_mut().zip(self.weights) {
                let w = S::splat(weights[j]);
                sums[c] = (S::fma(w, even, sums[c].0), S::fma(w, odd, sums[c].1));
            }
        }
    }
}

/// q · k for each of some rows and keys, lane by lane. Asks for as much of what is `ahead` as it reads.
#[inline(always)]
fn dots<S: Simd, const R: usize, const T: usize>(
    q: &[f32],
    keys: [&[u16]; T],
    ahead: &mut Walk,
) -> [[S::V; R]; T] {
    let mut sums = [[S::splat(0.0); R]; T];
    for (i, q) in q.chunks_exact(2 * S::LANES * R).enumerate() {
        ahead.ask::<S>(T * 2 * S::LANES);
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
            let even = S::load(&q[2 * r * S::LANES..]);
            for n in 0..T {
                sums[n][r] = S::fma(even, pairs[n].0, sums[n][r]);
            }
        }
        for r in 0..R {
            let odd = S::load(&q[(2 * r + 1) * S::LANES..]);
            for n in 0..T {
                sums[n][r] = S::fma(odd, pairs[n].1, sums[n][r]);
            }
        }
    }
    sums
}

/// The largest of each row's first `count` scores: rows together, as each waits for itself.
#[inline(always)]
fn largest<S: Simd, const R: usize>(scores: &[[f32; SPLIT_MAX]; R], count: usize) -> [f32; R] {
    let mut largest = [S::splat(f32::NEG_INFINITY); R];
    for at in (0..count.min(SPLIT_MAX)).step_by(S::LANES) {
        for r in 0..R {
            largest[r] = S::max(largest[r], S::load(&scores[r][at..]));
        }
    }
    let mut all = [0.0; R];
    for r in 0..R {
        all[r] = S::reduce_max(largest[r]);
    }
    all
}

/// Scores become weights, masked ones 0; returns the sum of the weights.
#[inline(always)]
fn weights<S: Simd>(scores: &mut [f32], max: f32) -> f32 {
    // A row that sees nothing here: any finite offset gives it weights of 0.
    let (offset, mut total) = (S::splat(max.max(f32::MIN)), S::splat(0.0));
    for scores in scores.chunks_exact_mut(S::LANES) {
        let weight = S::exp2(S::sub(S::load(scores), offset));
        total = S::add(total, weight);
        S::store(weight, scores);
    }
    S::reduce_add(total)
}
