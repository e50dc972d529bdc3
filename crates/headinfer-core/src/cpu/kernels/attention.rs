//! What prefill and decode attention share: the geometry, the carried state, the mask.

/// Shape of an attention call, the same for all its heads.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Elements of a head, even, at most 256.
    pub head_dim: usize,
    /// Query heads per KV head.
    pub group: usize,
    /// Multiplies the scores: 1 / sqrt(head_dim).
    pub scale: f32,
    /// A query at position t sees keys in (t - window, t].
    pub window: Option<usize>,
    /// Position of the first query token.
    pub q_start: u64,
}

impl Geometry {
    /// Positions that query row `row` (token * group + head) sees: `[first, end)`.
    pub(super) fn visible(&self, row: usize) -> (u64, u64) {
        let position = self.q_start + (row / self.group) as u64;
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w as u64));
        (first, position + 1)
    }
}

/// Consecutive rows of one head's K and V, bf16 bits `[rows, head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    /// Keys.
    pub k: &'a [u16],
    /// Values.
    pub v: &'a [u16],
    /// Position of the first row.
    pub start: u64,
}

/// Carried state of some query rows: running max `[rows]`, sum `[rows]`, accumulator `[rows, head_dim]`. Never
/// rounded between calls, so that cutting the keys into tiles changes no bit.
#[derive(Debug)]
pub struct StateMut<'a> {
    /// Largest score seen; -inf before the first.
    pub max: &'a mut [f32],
    /// Sum of exp(score - max).
    pub sum: &'a mut [f32],
    /// Sum of exp(score - max) · V.
    pub acc: &'a mut [f32],
}

/// One KV head of a call.
#[derive(Debug)]
pub struct HeadTask<'a> {
    /// Rotated queries, `[rows, head_dim]`, row = token * group + head.
    pub q: &'a [f32],
    /// Keys and values.
    pub kv: KvRows<'a>,
    /// Where the result goes.
    pub state: StateMut<'a>,
}

/// The state of having seen nothing.
pub fn state_init(state: &mut StateMut<'_>) {
    state.max.fill(f32::NEG_INFINITY);
    state.sum.fill(0.0);
    state.acc.fill(0.0);
}

/// The attention output of one row: accumulator over sum; zeros for a row that saw nothing.
pub fn state_finish(sum: f32, acc: &[f32], out: &mut [f32]) {
    let scale = if sum > 0.0 { 1.0 / sum } else { 0.0 };
    out.iter_mut().zip(acc).for_each(|(o, a)| *o = a * scale);
}

/// Folds the state of keys that come later into `into`. A state that saw nothing changes no bit.
pub(super) fn merge(into: &mut StateMut<'_>, max: &[f32], sum: &[f32], acc: &[f32]) {
    let d = into.acc.len() / into.max.len().max(1);
    for row in 0..into.max.len() {
        if max[row] == f32::NEG_INFINITY {
            continue;
        }
        let new = into.max[row].max(max[row]);
        let (old_scale, scale) = ((into.max[row] - new).exp(), (max[row] - new).exp());
        into.max[row] = new;
        into.sum[row] = into.sum[row] * old_scale + sum[row] * scale;
        let to = &mut into.acc[row * d..(row + 1) * d];
        to.iter_mut().zip(&acc[row * d..]).for_each(|(to, from)| *to = *to * old_scale + from * scale);
    }
}

/// One row's softmax over a block of scores, in place: folds the block into (max, sum) and returns the factor by
/// which what was accumulated before shrinks. Scores become weights; masked ones (-inf) become 0.
#[inline(always)]
pub(super) fn softmax_block<S: super::simd::Simd>(scores: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let mut largest = S::splat(f32::NEG_INFINITY);
    for chunk in scores.chunks_exact(S::LANES) {
        largest = S::max(largest, S::load(chunk));
    }
    let block_max = S::reduce_max(largest);
    if block_max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 1.0;
    }
    let new = max.max(block_max);
    // e^0 is 1 exactly: a maximum that stands needs no exponential.
    let shrink = if new == *max { 1.0 } else { S::reduce_max(S::exp(S::splat(*max - new))) };
    let (offset, mut total) = (S::splat(new), S::splat(0.0));
    for chunk in scores.chunks_exact_mut(S::LANES) {
        let weight = S::exp(S::sub(S::load(chunk), offset));
        total = S::add(total, weight);
        S::store(weight, chunk);
    }
    *max = new;
    *sum = *sum * shrink + S::reduce_add(total);
    shrink
}
