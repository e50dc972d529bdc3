//! Arithmetic of prefill attention on one strip of rows: scores, softmax and values over one block of keys. Knows no
//! positions: what a row does not see arrives as a mask.

use super::attention::KvRows;
use super::simd::{Kernel, Simd};

/// Keys of a block.
pub(super) const KEYS: usize = 64;
/// Maxima and sums in flight, a divisor of [`KEYS`].
const CHAINS: usize = 4;
/// Rows of a strip, at most.
const WIDTH_MAX: usize = 48;
/// bf16 values of a cache line.
const LINE: usize = 32;

/// `width` rows, a few whole vectors of them.
pub(super) struct Strip<'a> {
    /// `[head_dim, width]`, scaled by log2(e) too.
    pub(super) q: &'a [f32],
    /// `[padded head_dim, width]`.
    pub(super) acc: &'a mut [f32],
    /// `[KEYS, width]`: the strip's own to overwrite.
    pub(super) scores: &'a mut [f32],
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
}

/// Lines of the next block, asked for while this one is worked on.
pub(super) struct Ahead {
    k: *const u16,
    v: *const u16,
    /// Lines of each per call.
    share: usize,
}

impl Ahead {
    /// `len` elements of K and of V from `from` on, in about `calls` calls. Past their end too: nothing is read.
    pub(super) fn new(kv: &KvRows<'_>, from: usize, len: usize, calls: usize) -> Self {
        let at = |half: &[u16]| half.as_ptr().wrapping_add(from);
        Self { k: at(kv.k), v: at(kv.v), share: len.div_ceil(LINE * calls) }
    }

    #[inline(always)]
    fn ask<S: Simd>(&mut self) {
        for _ in 0..self.share {
            S::prefetch(self.k);
            S::prefetch(self.v);
            self.k = self.k.wrapping_add(LINE);
            self.v = self.v.wrapping_add(LINE);
        }
    }
}

impl Strip<'_> {
    /// Folds one block, K `[KEYS, head_dim]` and V `[KEYS, padded head_dim]`, into the state of `W` vectors of rows,
    /// in tiles of `B` scalars.
    ///
    /// What takes time is called and not inlined: among other code the compiler at times checks bounds in a loop and keeps
    /// its sums in memory, which takes half as long again.
    #[inline(always)]
    pub(super) fn attend<S: Simd, const B: usize, const W: usize>(
        &mut self,
        k: &[f32],
        v: &[f32],
        ahead: &mut Ahead,
        mask: &dyn Fn(&mut [f32]),
    ) {
        let (d, padded, width) = (k.len() / KEYS, v.len() / KEYS, W * S::LANES);
        for first in (0..KEYS).step_by(B) {
            ahead.ask::<S>();
            // The last tile may compute some scores once more.
            let first = first.min(KEYS - B);
            let to = &mut self.scores[first * width..][..B * width];
            S::call(Score::<B, W> { q: self.q, k: &k[first * d..][..B * d], to });
        }
        mask(self.scores);
        let mut shrink = [1.0; WIDTH_MAX];
        let Self { acc, scores, max, sum, .. } = self;
        S::call(Softmax::<W> { scores, max, sum, shrink: &mut shrink[..width] });
        for (first, acc) in (0..padded).step_by(B).zip(acc.chunks_exact_mut(B * width)) {
            S::call(Weigh::<B, W> { weights: scores, v, first, shrink: &shrink[..width], acc });
        }
    }
}

/// A tile: to[b, width] = k[b] · q.
struct Score<'a, const B: usize, const W: usize> {
    q: &'a [f32],
    /// `[B, head_dim]`
    k: &'a [f32],
    to: &'a mut [f32],
}

impl<const B: usize, const W: usize> Kernel for Score<'_, B, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, width) = (self.k.len() / B, W * S::LANES);
        // Slices of one length: no bounds are left in the loop.
        let mut keys: [&[f32]; B] = [&[]; B];
        for (b, key) in keys.iter_mut().enumerate() {
            *key = &self.k[b * d..][..d];
        }
        let mut sums = [[S::splat(0.0); W]; B];
        for (i, q) in (0..d).zip(self.q.chunks_exact(width)) {
            let mut rows = [S::splat(0.0); W];
            for t in 0..W {
                rows[t] = S::load(&q[t * S::LANES..]);
            }
            for b in 0..B {
                let x = S::splat(keys[b][i]);
                for t in 0..W {
                    sums[b][t] = S::fma(x, rows[t], sums[b][t]);
                }
            }
        }
        for (sums, to) in sums.iter().zip(self.to.chunks_exact_mut(width)) {
            for t in 0..W {
                S::store(sums[t], &mut to[t * S::LANES..]);
            }
        }
    }
}

/// Scores `[KEYS, width]` become weights, masked ones 0; `shrink` becomes the factors by which what was accumulated before
/// shrinks.
struct Softmax<'a, const W: usize> {
    scores: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
    shrink: &'a mut [f32],
}

impl<const W: usize> Kernel for Softmax<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = W * S::LANES;
        for at in (0..width).step_by(S::LANES) {
            let mut largest = [S::splat(f32::NEG_INFINITY); CHAINS];
            for keys in self.scores.chunks_exact(CHAINS * width) {
                for c in 0..CHAINS {
                    largest[c] = S::max(largest[c], S::load(&keys[c * width + at..]));
                }
            }
            let old = S::load(&self.max[at..]);
            let new = S::max(S::max(largest[0], largest[1]), S::max(largest[2], largest[3]));
            let new = S::max(old, new);
            // A row that has seen nothing yet: any finite offset gives it weights of 0.
            let offset = S::max(new, S::splat(f32::MIN));
            let mut total = [S::splat(0.0); CHAINS];
            for keys in self.scores.chunks_exact_mut(CHAINS * width) {
                for c in 0..CHAINS {
                    let to = &mut keys[c * width + at..][..S::LANES];
                    let weight = S::exp2(S::sub(S::load(to), offset));
                    total[c] = S::add(total[c], weight);
                    S::store(weight, to);
                }
            }
            let shrink = S::exp2(S::sub(old, offset));
            let total = S::add(S::add(total[0], total[1]), S::add(total[2], total[3]));
            S::store(new, &mut self.max[at..]);
            S::store(S::fma(S::load(&self.sum[at..]), shrink, total), &mut self.sum[at..]);
            S::store(shrink, &mut self.shrink[at..]);
        }
    }
}

/// A tile: acc[b, width] = acc · shrink + v[.., first + b] · weights.
struct Weigh<'a, const B: usize, const W: usize> {
    /// `[KEYS, width]`
    weights: &'a [f32],
    /// `[KEYS, padded head_dim]`
    v: &'a [f32],
    first: usize,
    shrink: &'a [f32],
    acc: &'a mut [f32],
}

impl<const B: usize, const W: usize> Kernel for Weigh<'_, B, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (padded, width) = (self.v.len() / KEYS, W * S::LANES);
        let mut sums = [[S::splat(0.0); W]; B];
        for (weights, v) in self.weights.chunks_exact(width).zip(self.v.chunks_exact(padded)) {
            let v = &v[self.first..][..B];
            let mut rows = [S::splat(0.0); W];
            for t in 0..W {
                rows[t] = S::load(&weights[t * S::LANES..]);
            }
            for b in 0..B {
                let x = S::splat(v[b]);
                for t in 0..W {
                    sums[b][t] = S::fma(x, rows[t], sums[b][t]);
                }
            }
        }
        for (sums, to) in sums.iter().zip(self.acc.chunks_exact_mut(width)) {
            for t in 0..W {
                let (to, shrink) = (&mut to[t * S::LANES..], S::load(&self.shrink[t * S::LANES..]));
                S::store(S::fma(S::load(to), shrink, sums[t]), to);
            }
        }
    }
}

/// bf16 rows of `d` elements to `[KEYS, stride]` f32, and zeros for the rows that a block lacks.
pub(super) struct Convert<'a> {
    pub(super) from: &'a [u16],
    pub(super) d: usize,
    pub(super) to: &'a mut [f32],
}

impl Kernel for Convert<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, stride) = (self.d, self.to.len() / KEYS);
        let whole = d / S::LANES * S::LANES;
        for (to, from) in self.to.chunks_exact_mut(stride).zip(self.from.chunks_exact(d)) {
            for (to, from) in to.chunks_exact_mut(S::LANES).zip(from.chunks_exact(S::LANES)) {
                S::store(S::widen_bf16(from), to);
            }
            for (to, x) in to[whole..].iter_mut().zip(&from[whole..]) {
                *to = f32::from_bits(u32::from(*x) << 16);
            }
        }
        self.to[self.from.len() / d * stride..].fill(0.0);
    }
}
