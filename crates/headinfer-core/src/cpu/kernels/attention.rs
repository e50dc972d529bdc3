//! What prefill and decode attention share: the geometry, the carried state, the mask.

/// Widest head, in elements.
pub(super) const HEAD_DIM_MAX: usize = 256;

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
    /// Which of the keys in its window.
    pub sees: Sees,
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sees {
    /// Its own and those before.
    #[default]
    Causal,
    /// Those before its own.
    Before,
    /// Its own.
    Itself,
}

impl Geometry {
    /// Positions that query row `row` (token * group + head) sees: `[first, end)`.
    pub(super) fn visible(&self, row: usize) -> (u64, u64) {
        let position = self.q_start + (row / self.group) as u64;
        let first = self.window.map_or(0, |w| (position + 1).saturating_sub(w as u64));
        match self.sees {
            Sees::Causal => (first, position + 1),
            Sees::Before => (first, position),
            Sees::Itself => (position, position + 1),
        }
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
/// rounded between calls, so that cutting the keys into tiles changes no bit. Scores are powers of two: q · k · scale
/// · log2(e).
#[derive(Debug)]
pub struct StateMut<'a> {
    /// Largest score seen; -inf before the first.
    pub max: &'a mut [f32],
    /// Sum of 2^(score - max).
    pub sum: &'a mut [f32],
    /// Sum of 2^(score - max) · V.
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

/// Cuts parts of those sizes from memory, the first where a cache line starts: 16 floats more than their sum.
pub(super) fn aligned_parts<const N: usize>(memory: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    let skip = memory.as_ptr().align_offset(64).min(16);
    let mut rest = &mut memory[skip..];
    sizes.map(|size| front(&mut rest, size))
}

/// Takes the first `len` elements of what is left.
pub(super) fn front<'a>(left: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, rest) = std::mem::take(left).split_at_mut(len);
    *left = rest;
    front
}
