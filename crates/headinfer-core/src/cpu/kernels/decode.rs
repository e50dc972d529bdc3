//! Decode attention: few query rows, so the keys are read once from memory and that is the cost.
//!
//! A head's keys are cut at absolute multiples of the split. Each split's state starts empty and is folded into
//! the carried one in order of position, so a row's bits depend on positions alone: not on tiles, not on which
//! core took which split. bf16 rows are read in place as even and odd elements, one operation a vector; queries
//! and accumulators are kept in that order.

use rayon::prelude::*;

use super::Isa;
use super::attention::{Geometry, HeadTask, KvRows, StateMut, merge, softmax_block};
use super::simd::{Kernel, Simd, dispatch};

/// Keys between updates of the running state.
const KEYS: usize = 64;
/// Query rows that share each loaded vector.
const ROWS: usize = 4;
/// Sums of a product in registers at once.
const SUMS: usize = 8;
/// Sums that wait to be added up across their lanes, a multiple of [`SUMS`] and, for any number of rows, of 4.
const WAITING: usize = 64;
/// bf16 values of a cache line.
const LINE: usize = 32;
/// Keys whose scores are held at once, a multiple of [`KEYS`]: long runs through memory, first K then V.
const SPAN: usize = 256;
const HEAD_DIM_MAX: usize = 256;

/// Attends all rows of each head to its keys, under the causal mask and the window of `geo`, with splits at
/// multiples of `split` (a multiple of 64). `scratch` holds partial states: (2 + head_dim) floats per row and
/// split in flight; more scratch, more splits in flight.
pub fn attend_decode(
    isa: Isa,
    geo: &Geometry,
    split: usize,
    heads: &mut [HeadTask<'_>],
    scratch: &mut [f32],
) {
    assert!(geo.head_dim <= HEAD_DIM_MAX, "a head of {} elements", geo.head_dim);
    let Some(first) = heads.first() else { return };
    let rows = first.state.max.len();
    let keys = first.kv.k.len() / geo.head_dim;
    let cuts = cuts(first.kv.start, keys, split);
    let partial = rows * (geo.head_dim + 2);
    let in_flight = scratch.len() / (partial * heads.len());
    assert!(in_flight > 0, "no scratch for one split of {} heads", heads.len());
    for wave in cuts.chunks(in_flight) {
        let partials = &mut scratch[..wave.len() * heads.len() * partial];
        partials.par_chunks_mut(partial).enumerate().for_each(|(i, partial)| {
            let head = &heads[i / wave.len()];
            let (from, to) = wave[i % wave.len()];
            let d = geo.head_dim;
            let kv = KvRows {
                k: &head.kv.k[from * d..to * d],
                v: &head.kv.v[from * d..to * d],
                start: head.kv.start + from as u64,
            };
            dispatch(isa, Split { geo, q: head.q, kv, state: state_of(partial, rows) });
        });
        heads.par_iter_mut().zip(partials.par_chunks_mut(partial * wave.len())).for_each(
            |(head, partials)| {
                for partial in partials.chunks_mut(partial) {
                    let from = state_of(partial, rows);
                    merge(&mut head.state, from.max, from.sum, from.acc);
                }
            },
        );
    }
}

/// Row ranges between multiples of `split` in position.
fn cuts(start: u64, keys: usize, split: usize) -> Vec<(usize, usize)> {
    let mut cuts = Vec::with_capacity(keys / split + 2);
    let mut from = 0;
    while from < keys {
        let to = (from + split - (start as usize + from) % split).min(keys);
        cuts.push((from, to));
        from = to;
    }
    cuts
}

fn state_of(partial: &mut [f32], rows: usize) -> StateMut<'_> {
    let (max, rest) = partial.split_at_mut(rows);
    let (sum, acc) = rest.split_at_mut(rows);
    StateMut { max, sum, acc }
}

/// All rows over one split, into a state that starts empty.
struct Split<'a> {
    geo: &'a Geometry,
    q: &'a [f32],
    kv: KvRows<'a>,
    state: StateMut<'a>,
}

/// Some rows, split into even and odd elements, padded with zeros to whole vectors.
struct Lanes<const R: usize> {
    /// Scaled queries in the order of use: for each vector of pairs, for each row, even then odd elements.
    q: [[f32; HEAD_DIM_MAX]; R],
    /// Per row, all even then all odd elements.
    acc: [[f32; HEAD_DIM_MAX]; R],
}

impl Kernel for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        super::attention::state_init(&mut self.state);
        for first in (0..self.state.max.len()).step_by(ROWS) {
            match self.state.max.len() - first {
                1 => self.rows::<S, 1>(first),
                2 => self.rows::<S, 2>(first),
                _ => self.rows::<S, ROWS>(first),
            }
        }
    }
}

impl Split<'_> {
    /// Rows `[first, first + R)`; past the end the last row is computed again and not stored.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&mut self, first: usize) {
        let d = self.geo.head_dim;
        let rows = R.min(self.state.max.len() - first);
        let width = d.next_multiple_of(2 * S::LANES);
        let mut lanes = Lanes { q: [[0.0; HEAD_DIM_MAX]; R], acc: [[0.0; HEAD_DIM_MAX]; R] };
        for r in 0..R {
            let q = &self.q[(first + r.min(rows - 1)) * d..][..d];
            for (i, pair) in q.chunks(2).enumerate() {
                let at = (i / S::LANES * R + r) * 2 * S::LANES + i % S::LANES;
                lanes.q.as_flattened_mut()[at] = pair[0] * self.geo.scale;
                lanes.q.as_flattened_mut()[at + S::LANES] = pair[1] * self.geo.scale;
            }
        }
        let keys = self.kv.k.len() / d;
        let seen: [(u64, u64); R] = std::array::from_fn(|r| self.geo.visible(first + r.min(rows - 1)));
        let (mut max, mut sum) = ([f32::NEG_INFINITY; R], [0.0; R]);
        // Rows that do not fill whole vectors are padded first: the products read whole vectors only.
        let half = if width == d { 0 } else { SPAN * width };
        let mut padded = vec![0; 2 * half];
        let (padded_k, padded_v) = padded.split_at_mut(half);
        for span in (0..keys).step_by(SPAN) {
            let count = SPAN.min(keys - span);
            let start = self.kv.start + span as u64;
            let seen = seen.map(|(from, to)| {
                let inside = |position: u64| (position.saturating_sub(start) as usize).min(count);
                (inside(from), inside(to).max(inside(from)))
            });
            if seen.iter().all(|(from, to)| from == to) {
                continue;
            }
            let (k, v) = (&self.kv.k[span * d..][..count * d], &self.kv.v[span * d..][..count * d]);
            let (k, v) = match width == d {
                true => (k, v),
                false => (pad(k, d, padded_k, width), pad(v, d, padded_v, width)),
            };
            let mut scores = [[f32::NEG_INFINITY; SPAN]; R];
            score::<S, R>(&lanes, k, v, width, &mut scores);
            for r in 0..R {
                scores[r][..seen[r].0].fill(f32::NEG_INFINITY);
                scores[r][seen[r].1..].fill(f32::NEG_INFINITY);
            }
            for (block, v) in v.chunks(KEYS * width).enumerate() {
                let (mut shrink, mut weights) = ([1.0; R], [[0.0; KEYS]; R]);
                for r in 0..R {
                    weights[r].copy_from_slice(&scores[r][block * KEYS..][..KEYS]);
                    shrink[r] = softmax_block::<S>(&mut weights[r], &mut max[r], &mut sum[r]);
                }
                let next = match (block + 1) * KEYS < count {
                    true => v.as_ptr().wrapping_add(KEYS * width),
                    false => k.as_ptr().wrapping_add(count * width),
                };
                weigh::<S, R>(&mut lanes, &shrink, &weights, v, width, next);
            }
        }
        for r in 0..rows {
            self.state.max[first + r] = max[r];
            self.state.sum[first + r] = sum[r];
            let acc = &mut self.state.acc[(first + r) * d..][..d];
            for (i, pair) in acc.chunks_mut(2).enumerate() {
                pair[0] = lanes.acc[r][i];
                pair[1] = lanes.acc[r][width / 2 + i];
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

/// scores[row][key] = q · k. The first of the values are asked for along with the last of the keys.
///
/// A register holds one (row, key) sum; eight of them hide the latency of the multiply-add. Sums are added up across
/// their lanes some keys later, all at once, so that no product waits for that.
#[inline(always)]
fn score<S: Simd, const R: usize>(
    lanes: &Lanes<R>,
    k: &[u16],
    v: &[u16],
    width: usize,
    scores: &mut [[f32; SPAN]; R],
) {
    let together = SUMS / R;
    let count = (k.len() / width).min(SPAN);
    let last_block = count.saturating_sub(KEYS);
    // `[key][row]`; past the end the last key is computed again, for the mask to remove.
    let mut waiting = [S::splat(0.0); WAITING];
    for batch in (0..count).step_by(WAITING / R) {
        for (g, sums) in waiting.chunks_exact_mut(SUMS).enumerate() {
            let first = batch + g * together;
            if first >= count {
                break;
            }
            let ahead = (first >= last_block).then(|| &v[(first - last_block) * width..]);
            dots::<S, R>(lanes, k, first, width, ahead, sums);
        }
        for (r, scores) in scores.iter_mut().enumerate() {
            for (quad, to) in scores[batch..][..WAITING / R].chunks_exact_mut(4).enumerate() {
                let sum = |n: usize| waiting[(4 * quad + n) * R + r];
                to.copy_from_slice(&S::reduce_add_4([sum(0), sum(1), sum(2), sum(3)]));
            }
        }
    }
}

/// sums[key, row] += q · k, lane by lane, for as many keys from `first` on as there are sums for.
#[inline(always)]
fn dots<S: Simd, const R: usize>(
    lanes: &Lanes<R>,
    k: &[u16],
    first: usize,
    width: usize,
    ahead: Option<&[u16]>,
    to: &mut [S::V],
) {
    let (together, last) = (SUMS / R, k.len() / width - 1);
    let mut rows: [&[u16]; SUMS] = [&[]; SUMS];
    for n in 0..together {
        rows[n] = &k[(first + n).min(last) * width..][..width];
    }
    let mut sums = [S::splat(0.0); SUMS];
    let vectors = lanes.q.as_flattened()[..width * R].chunks_exact(2 * S::LANES * R);
    for (i, q) in vectors.enumerate() {
        if let Some(ahead) = ahead {
            let at = i * together * 2 * S::LANES;
            prefetch::<S>(ahead.as_ptr().wrapping_add(at), together * 2 * S::LANES);
        }
        let mut keys = [(S::splat(0.0), S::splat(0.0)); SUMS];
        for n in 0..together {
            keys[n] = S::load_bf16(&rows[n][2 * i * S::LANES..]);
        }
        for r in 0..R {
            let (even, odd) = q[2 * r * S::LANES..][..2 * S::LANES].split_at(S::LANES);
            let (even, odd) = (S::load(even), S::load(odd));
            for n in 0..together {
                sums[n * R + r] = S::fma(even, keys[n].0, sums[n * R + r]);
            }
            for n in 0..together {
                sums[n * R + r] = S::fma(odd, keys[n].1, sums[n * R + r]);
            }
        }
    }
    to.copy_from_slice(&sums);
}

/// Asks for the lines of `elements` values.
#[inline(always)]
fn prefetch<S: Simd>(from: *const u16, elements: usize) {
    for at in (0..elements).step_by(LINE) {
        S::prefetch(from.wrapping_add(at));
    }
}

/// acc[row] = acc[row] · shrink + weights[row] · v. Meanwhile what comes next, from `next` on, is asked for line by
/// line: v itself is read across its rows, in an order that no processor foresees.
#[inline(always)]
fn weigh<S: Simd, const R: usize>(
    lanes: &mut Lanes<R>,
    shrink: &[f32; R],
    weights: &[[f32; KEYS]; R],
    v: &[u16],
    width: usize,
    next: *const u16,
) {
    let mut at = 0;
    while at < width / 2 {
        // Fewer rows take more columns at once: as many sums in any case.
        let left = (width / 2 - at) / S::LANES;
        let next = next.wrapping_add(2 * at * KEYS);
        at += S::LANES
            * match R {
                1 if left >= 4 => weigh_columns::<S, R, 4>(lanes, shrink, weights, v, width, at, next),
                1 | 2 if left >= 2 => weigh_columns::<S, R, 2>(lanes, shrink, weights, v, width, at, next),
                _ => weigh_columns::<S, R, 1>(lanes, shrink, weights, v, width, at, next),
            };
    }
}

/// `W` vectors of even and of odd columns from pair `at` on; returns `W`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a part of `weigh`
fn weigh_columns<S: Simd, const R: usize, const W: usize>(
    lanes: &mut Lanes<R>,
    shrink: &[f32; R],
    weights: &[[f32; KEYS]; R],
    v: &[u16],
    width: usize,
    at: usize,
    next: *const u16,
) -> usize {
    let mut even = [[S::splat(0.0); W]; R];
    let mut odd = [[S::splat(0.0); W]; R];
    for (j, v) in v.chunks_exact(width).enumerate().take(KEYS) {
        let v = &v[2 * at..][..2 * W * S::LANES];
        prefetch::<S>(next.wrapping_add(j * 2 * W * S::LANES), 2 * W * S::LANES);
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
        let (shrink, acc) = (S::splat(shrink[r]), &mut lanes.acc[r]);
        for c in 0..W {
            let (low, high) = (at + c * S::LANES, width / 2 + at + c * S::LANES);
            S::store(S::fma(S::load(&acc[low..]), shrink, even[r][c]), &mut acc[low..]);
            S::store(S::fma(S::load(&acc[high..]), shrink, odd[r][c]), &mut acc[high..]);
        }
    }
    W
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
