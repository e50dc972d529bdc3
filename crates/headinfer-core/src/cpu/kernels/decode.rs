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

/// Some rows with their queries and accumulators as even then odd elements, padded to whole vectors.
struct Lanes {
    q: [[f32; HEAD_DIM_MAX]; ROWS],
    acc: [[f32; HEAD_DIM_MAX]; ROWS],
}

impl Kernel for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        super::attention::state_init(&mut self.state);
        for first in (0..self.state.max.len()).step_by(ROWS) {
            self.rows::<S>(first);
        }
    }
}

impl Split<'_> {
    /// Rows `[first, first + ROWS)`; past the end the last row is computed again and not stored.
    #[inline(always)]
    fn rows<S: Simd>(&mut self, first: usize) {
        let d = self.geo.head_dim;
        let rows = ROWS.min(self.state.max.len() - first);
        let pairs = d.next_multiple_of(2 * S::LANES) / 2;
        let mut lanes = Lanes { q: [[0.0; HEAD_DIM_MAX]; ROWS], acc: [[0.0; HEAD_DIM_MAX]; ROWS] };
        for r in 0..ROWS {
            let q = &self.q[(first + r.min(rows - 1)) * d..][..d];
            for (i, pair) in q.chunks(2).enumerate() {
                lanes.q[r][i] = pair[0] * self.geo.scale;
                lanes.q[r][pairs + i] = pair[1] * self.geo.scale;
            }
        }
        let keys = self.kv.k.len() / d;
        let seen: [(u64, u64); ROWS] = std::array::from_fn(|r| self.geo.visible(first + r.min(rows - 1)));
        let (mut max, mut sum) = ([f32::NEG_INFINITY; ROWS], [0.0; ROWS]);
        for block in (0..keys).step_by(KEYS) {
            let count = KEYS.min(keys - block);
            let start = self.kv.start + block as u64;
            let none = seen.iter().all(|(from, to)| start >= *to || start + count as u64 <= *from);
            if none {
                continue;
            }
            let (k, v) = (&self.kv.k[block * d..][..count * d], &self.kv.v[block * d..][..count * d]);
            let mut scores = [[f32::NEG_INFINITY; KEYS]; ROWS];
            score::<S>(&lanes, k, v, d, pairs, &mut scores);
            let mut shrink = [1.0; ROWS];
            for r in 0..ROWS {
                let from = (seen[r].0.saturating_sub(start) as usize).min(count);
                let to = (seen[r].1.saturating_sub(start) as usize).min(count);
                scores[r][..from].fill(f32::NEG_INFINITY);
                scores[r][to.max(from)..].fill(f32::NEG_INFINITY);
                shrink[r] = softmax_block::<S>(&mut scores[r], &mut max[r], &mut sum[r]);
            }
            weigh::<S>(&mut lanes, &shrink, &scores, v, d, pairs);
        }
        for r in 0..rows {
            self.state.max[first + r] = max[r];
            self.state.sum[first + r] = sum[r];
            let acc = &mut self.state.acc[(first + r) * d..][..d];
            for (i, pair) in acc.chunks_mut(2).enumerate() {
                pair[0] = lanes.acc[r][i];
                pair[1] = lanes.acc[r][pairs + i];
            }
        }
    }
}

/// The elements of one row from `at` on as (even, odd); zeros past its end.
#[inline(always)]
fn load_row<S: Simd>(row: &[u16], at: usize) -> (S::V, S::V) {
    let rest = &row[at..];
    if rest.len() >= 2 * S::LANES {
        return S::load_bf16(rest);
    }
    let mut whole = [0u16; 32];
    whole[..rest.len()].copy_from_slice(rest);
    S::load_bf16(&whole)
}

/// scores[row][key] = q · k. The values of the same keys are asked for meanwhile.
#[inline(always)]
fn score<S: Simd>(
    lanes: &Lanes,
    k: &[u16],
    v: &[u16],
    d: usize,
    pairs: usize,
    scores: &mut [[f32; KEYS]; ROWS],
) {
    for (j, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
        let mut even = [S::splat(0.0); ROWS];
        let mut odd = [S::splat(0.0); ROWS];
        for at in (0..pairs).step_by(S::LANES) {
            let (k_even, k_odd) = load_row::<S>(k, 2 * at);
            S::prefetch(v[2 * at..].as_ptr());
            for r in 0..ROWS {
                even[r] = S::fma(S::load(&lanes.q[r][at..]), k_even, even[r]);
                odd[r] = S::fma(S::load(&lanes.q[r][pairs + at..]), k_odd, odd[r]);
            }
        }
        for r in 0..ROWS {
            scores[r][j] = S::reduce_add(S::add(even[r], odd[r]));
        }
    }
}

/// acc[row] = acc[row] · shrink + weights[row] · v.
#[inline(always)]
fn weigh<S: Simd>(
    lanes: &mut Lanes,
    shrink: &[f32; ROWS],
    weights: &[[f32; KEYS]; ROWS],
    v: &[u16],
    d: usize,
    pairs: usize,
) {
    for at in (0..pairs).step_by(S::LANES) {
        let mut even = [S::splat(0.0); ROWS];
        let mut odd = [S::splat(0.0); ROWS];
        for (j, v) in v.chunks_exact(d).enumerate() {
            let (v_even, v_odd) = load_row::<S>(v, 2 * at);
            for r in 0..ROWS {
                let w = S::splat(weights[r][j]);
                even[r] = S::fma(w, v_even, even[r]);
                odd[r] = S::fma(w, v_odd, odd[r]);
            }
        }
        for r in 0..ROWS {
            let shrink = S::splat(shrink[r]);
            let acc = &mut lanes.acc[r];
            S::store(S::fma(S::load(&acc[at..]), shrink, even[r]), &mut acc[at..]);
            S::store(S::fma(S::load(&acc[pairs + at..]), shrink, odd[r]), &mut acc[pairs + at..]);
        }
    }
}
