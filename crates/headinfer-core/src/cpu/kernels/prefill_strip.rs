//! Arithmetic of prefill attention on one strip of rows: scores, softmax and values over one block of keys. Knows no
//! positions: what a row does not see arrives as a mask.

use super::attention::KvRows;
use super::simd::Simd;

/// Keys of a block.
pub(super) const KEYS: usize = 64;
/// Maxima and sums in flight, a divisor of [`KEYS`].
const CHAINS: usize = 4;
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
    /// in tiles of `B` scalars. A `fresh` block, as it lies, is converted to K and V first: a few rows at a time among the
    /// products, as its stores wait for lines from the second-level cache.
    #[inline(always)]
    pub(super) fn attend<S: Simd, const B: usize, const W: usize>(
        &mut self,
        k: &mut [f32],
        v: &mut [f32],
        fresh: Option<(&[u16], &[u16])>,
        ahead: &mut Ahead,
        mask: &dyn Fn(&mut [f32]),
    ) {
        let padded = v.len() / KEYS;
        for first in (0..KEYS).step_by(B) {
            ahead.ask::<S>();
            // The last tile may compute some scores once more.
            let first = first.min(KEYS - B);
            if let Some((fresh_k, fresh_v)) = fresh {
                let d = k.len() / KEYS;
                convert::<S, B>(fresh_k, d, first, &mut k[first * d..][..B * d]);
                convert::<S, B>(fresh_v, d, first, &mut v[first * padded..][..B * padded]);
            }
            self.score::<S, B, W>(k, first);
        }
        mask(self.scores);
        let shrink = self.softmax::<S, W>();
        for first in (0..padded).step_by(B) {
            self.weigh::<S, B, W>(v, first, &shrink);
        }
    }

    /// scores[first + b, width] = k[first + b] · q.
    #[inline(always)]
    fn score<S: Simd, const B: usize, const W: usize>(&mut self, k: &[f32], first: usize) {
        let (d, width) = (k.len() / KEYS, W * S::LANES);
        let k = &k[first * d..][..B * d];
        let mut sums = [[S::splat(0.0); W]; B];
        for (i, q) in (0..d).zip(self.q.chunks_exact(width)) {
            let mut rows = [S::splat(0.0); W];
            for t in 0..W {
                rows[t] = S::load(&q[t * S::LANES..]);
            }
            for b in 0..B {
                let x = S::splat(k[b * d + i]);
                for t in 0..W {
                    sums[b][t] = S::fma(x, rows[t], sums[b][t]);
                }
            }
        }
        for (sums, to) in sums.iter().zip(self.scores[first * width..].chunks_exact_mut(width)) {
            for t in 0..W {
                S::store(sums[t], &mut to[t * S::LANES..]);
            }
        }
    }

    /// Scores become weights, masked ones 0; returns the factors by which what was accumulated before shrinks.
    #[inline(always)]
    fn softmax<S: Simd, const W: usize>(&mut self) -> [S::V; W] {
        let width = W * S::LANES;
        let mut shrink = [S::splat(1.0); W];
        for (t, shrink) in shrink.iter_mut().enumerate() {
            let at = t * S::LANES;
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
            *shrink = S::exp2(S::sub(old, offset));
            let total = S::add(S::add(total[0], total[1]), S::add(total[2], total[3]));
            S::store(new, &mut self.max[at..]);
            S::store(S::fma(S::load(&self.sum[at..]), *shrink, total), &mut self.sum[at..]);
        }
        shrink
    }

    /// acc[first + b, width] = acc · shrink + v[.., first + b] · weights.
    #[inline(always)]
    fn weigh<S: Simd, const B: usize, const W: usize>(
        &mut self,
        v: &[f32],
        first: usize,
        shrink: &[S::V; W],
    ) {
        let (padded, width) = (v.len() / KEYS, W * S::LANES);
        let mut sums = [[S::splat(0.0); W]; B];
        // By index: of two iterators the compiler leaves the setting up in a function for the least instruction set.
        let weights = &self.scores[..KEYS * width];
        let v = &v[first..][..(KEYS - 1) * padded + B];
        for j in 0..KEYS {
            let v = &v[j * padded..][..B];
            let mut rows = [S::splat(0.0); W];
            for t in 0..W {
                rows[t] = S::load(&weights[j * width + t * S::LANES..]);
            }
            for b in 0..B {
                let x = S::splat(v[b]);
                for t in 0..W {
                    sums[b][t] = S::fma(x, rows[t], sums[b][t]);
                }
            }
        }
        for (sums, to) in sums.iter().zip(self.acc[first * width..].chunks_exact_mut(width)) {
            for t in 0..W {
                let to = &mut to[t * S::LANES..];
                S::store(S::fma(S::load(to), shrink[t], sums[t]), to);
            }
        }
    }
}

/// bf16 rows of `d` elements, from row `first` on, to `B` f32 rows; zeros for those that a block lacks.
#[inline(always)]
fn convert<S: Simd, const B: usize>(from: &[u16], d: usize, first: usize, to: &mut [f32]) {
    let (stride, whole) = (to.len() / B, d / S::LANES * S::LANES);
    for (row, to) in to.chunks_exact_mut(stride).enumerate() {
        let Some(from) = from.get((first + row) * d..(first + row + 1) * d) else {
            to.fill(0.0);
            continue;
        };
        for at in (0..whole).step_by(S::LANES) {
            S::store(S::widen_bf16(&from[at..]), &mut to[at..]);
        }
        for (to, x) in to[whole..d].iter_mut().zip(&from[whole..]) {
            *to = f32::from_bits(u32::from(*x) << 16);
        }
    }
}
