//! Decode attention: few query rows, so the keys are read once from memory and that is the cost.
//!
//! A head's keys are cut at absolute multiples of the split. Each split's state starts empty and is folded into
//! the carried one in order of position, so a row's bits depend on positions alone: not on tiles, not on which
//! core took which split.

use super::Isa;
use super::attention::{Geometry, HEAD_DIM_MAX, HeadTask, KvRows, StateMut, front};
use super::decode_split::{Cut, Run, SPLIT_MAX};
use super::packed::{self, PackedRows, UNIT};
use super::quantised::QuantisedRows;
use super::share::{portion, share};
use super::simd::{Kernel, Simd, dispatch};

/// Consecutive splits of a task, at most: long runs through memory.
const RUN: usize = 8;
/// Partial states asked for before they are folded.
const AHEAD: usize = 8;
/// f32 values of a cache line.
const LINE: usize = 16;
/// K and V elements below which waking other threads takes longer than the work.
const SMALL: usize = 1 << 15;

/// One KV head of a call whose rows lie in pieces: each but the last ends at a multiple of the split.
#[derive(Debug)]
pub struct PiecedTask<'a> {
    /// As [`HeadTask::q`].
    pub q: &'a [f32],
    /// Keys and values, in order of position; cut alike for all heads of a call.
    pub pieces: &'a [Keys<'a>],
    /// Where the result goes.
    pub state: StateMut<'a>,
}

/// Keys and values of consecutive positions.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// As they are.
    Plain(KvRows<'a>),
    /// In packed units, which are splits.
    Packed(PackedRows<'a>),
    /// In quantised units, which are splits: as if they lay there decoded.
    Quantised(QuantisedRows<'a>),
}

impl Keys<'_> {
    pub(super) fn start(&self) -> u64 {
        match self {
            Self::Plain(rows) => rows.start,
            Self::Packed(rows) => rows.start,
            Self::Quantised(rows) => rows.start,
        }
    }

    fn rows(&self, d: usize) -> usize {
        match self {
            Self::Plain(rows) => rows.k.len() / d,
            Self::Packed(rows) => rows.rows(d),
            Self::Quantised(rows) => rows.rows(d),
        }
    }

    /// Bytes of a coded half of a unit of heads of `d` elements.
    pub(super) fn half_bytes(&self, d: usize) -> Option<usize> {
        match self {
            Self::Plain(_) => None,
            Self::Packed(_) => Some(packed::half_bytes(d)),
            Self::Quantised(rows) => Some(rows.format.half_bytes(d)),
        }
    }
}

/// Attends all rows of each head to its keys, under the causal mask and the window of `geo`, with splits at
/// multiples of `split` (a multiple of 64, at most 256). `scratch` holds partial states: (2 + head_dim) floats per
/// row and split in flight; more scratch, more splits in flight.
pub fn attend_decode(
    isa: Isa,
    geo: &Geometry,
    split: usize,
    heads: &mut [HeadTask<'_>],
    scratch: &mut [f32],
) {
    let pieces: Vec<_> = heads.iter().map(|head| Keys::Plain(head.kv)).collect();
    let heads = heads.iter_mut().zip(&pieces).map(|(head, keys)| {
        let StateMut { max, sum, acc } = &mut head.state;
        PiecedTask { q: head.q, pieces: std::slice::from_ref(keys), state: StateMut { max, sum, acc } }
    });
    attend_decode_pieces(isa, geo, split, &mut heads.collect::<Vec<_>>(), scratch);
}

/// As [`attend_decode`] over the rows of all pieces, with the same bits as if they lay together and were not coded.
pub fn attend_decode_pieces(
    isa: Isa,
    geo: &Geometry,
    split: usize,
    heads: &mut [PiecedTask<'_>],
    scratch: &mut [f32],
) {
    assert!(geo.head_dim <= HEAD_DIM_MAX, "a head of {} elements", geo.head_dim);
    assert!(split <= SPLIT_MAX, "splits of {split} keys");
    let Some(first) = heads.first() else { return };
    let rows = first.state.max.len();
    let coded = first.pieces.iter().any(|keys| keys.half_bytes(geo.head_dim).is_some());
    assert!(!coded || split == UNIT, "splits of {split} keys of coded units");
    let keys: usize = first.pieces.iter().map(|keys| keys.rows(geo.head_dim)).sum();
    let cuts = first.pieces.iter().enumerate();
    let cuts = cuts.flat_map(|(piece, keys)| cuts_of(piece, keys.start(), keys.rows(geo.head_dim), split));
    let cuts: Vec<Cut> = cuts.collect();
    let partial = rows * (geo.head_dim + 2);
    let in_flight = scratch.len() / (partial * heads.len());
    assert!(in_flight > 0, "no scratch for one split of {} heads", heads.len());
    let small = 2 * keys * heads.len() * geo.head_dim <= SMALL;
    for wave in cuts.chunks(in_flight) {
        let partials = &mut scratch[..wave.len() * heads.len() * partial];
        let runs = runs(geo, heads, wave, &mut *partials);
        if small {
            runs.into_iter().for_each(|run| dispatch(isa, run));
        } else {
            // What a thread does next it asks for ahead.
            share(runs, |run, next| dispatch(isa, Run { next: next.map_or(run.next, Run::bytes), ..run }));
        }
        let folds = heads.iter_mut().zip(partials.chunks(partial * wave.len()));
        let folds = folds.flat_map(|(head, partials)| folds_of(head, partials, rows, geo.head_dim));
        if small {
            folds.for_each(|fold| dispatch(isa, fold));
        } else {
            share(folds.collect(), |fold, _| dispatch(isa, fold));
        }
    }
}

/// Consecutive splits of each head, into `partials` of (2 + head_dim) floats per split and row.
fn runs<'a>(
    geo: &'a Geometry,
    heads: &[PiecedTask<'a>],
    wave: &'a [Cut],
    mut partials: &'a mut [f32],
) -> Vec<Run<'a>> {
    let mut left = heads.len() * wave.len();
    let mut runs = Vec::new();
    for head in heads {
        let (rows, mut rest) = (head.state.max.len(), wave);
        while !rest.is_empty() {
            let few = &rest[..portion(left).clamp(1, RUN).min(rest.len())];
            let piece = few[0].piece;
            let (cuts, after) = rest.split_at(few.iter().take_while(|cut| cut.piece == piece).count());
            let partials = front(&mut partials, cuts.len() * rows * (geo.head_dim + 2));
            let keys = head.pieces[piece];
            runs.push(Run { geo, q: head.q, keys, cuts, partials, rows, next: &[] });
            left -= cuts.len();
            rest = after;
        }
    }
    runs
}

/// Rows of a piece between multiples of `split` in position.
fn cuts_of(piece: usize, start: u64, keys: usize, split: usize) -> Vec<Cut> {
    let mut cuts = Vec::with_capacity(keys / split + 2);
    let mut from = 0;
    while from < keys {
        let to = (from + split - (start as usize + from) % split).min(keys);
        cuts.push(Cut { piece, from, to });
        from = to;
    }
    cuts
}

/// One row's partial states, to be folded into its carried one.
struct Fold<'a> {
    max: &'a mut f32,
    sum: &'a mut f32,
    acc: &'a mut [f32],
    /// Of all splits of the wave: `[max; rows]`, `[sum; rows]`, `[rows, head_dim]` of even then odd elements.
    partials: &'a [f32],
    rows: usize,
    row: usize,
}

fn folds_of<'a>(
    head: &'a mut PiecedTask<'_>,
    partials: &'a [f32],
    rows: usize,
    d: usize,
) -> impl Iterator<Item = Fold<'a>> {
    let state = &mut head.state;
    let parts = state.max.iter_mut().zip(state.sum.iter_mut()).zip(state.acc.chunks_mut(d)).enumerate();
    parts.map(move |(row, ((max, sum), acc))| Fold { max, sum, acc, partials, rows, row })
}

impl Kernel for Fold<'_> {
    type Output = ();

    /// In order of position. A state that saw nothing changes no bit.
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (rows, row, d) = (self.rows, self.row, self.acc.len());
        let mut all = [0.0f32; HEAD_DIM_MAX];
        let all = &mut all[..d];
        for (i, pair) in self.acc.chunks(2).enumerate() {
            (all[i], all[d / 2 + i]) = (pair[0], pair[1]);
        }
        let stride = rows * (d + 2);
        // Written once: other rows' largest scores and sums lie in the same lines, and other threads fold those.
        let (mut largest, mut total) = (*self.max, *self.sum);
        for (i, partial) in self.partials.chunks(stride).enumerate() {
            // Other cores wrote them: a line may take as long as one from memory.
            let ahead = self.partials.as_ptr().wrapping_add((i + AHEAD) * stride);
            S::prefetch(ahead.wrapping_add(row).cast());
            S::prefetch(ahead.wrapping_add(rows + row).cast());
            for at in (0..d).step_by(LINE) {
                S::prefetch(ahead.wrapping_add(2 * rows + row * d + at).cast());
            }
            let (max, sum) = (partial[row], partial[rows + row]);
            if max == f32::NEG_INFINITY {
                continue;
            }
            let new = largest.max(max);
            let (old_scale, scale) = (power(largest - new), power(max - new));
            largest = new;
            total = total * old_scale + sum * scale;
            let from = &partial[2 * rows + row * d..][..d];
            for (to, from) in all.iter_mut().zip(from) {
                *to = *to * old_scale + from * scale;
            }
        }
        (*self.max, *self.sum) = (largest, total);
        for (i, pair) in self.acc.chunks_mut(2).enumerate() {
            (pair[0], pair[1]) = (all[i], all[d / 2 + i]);
        }
    }
}

/// 2^x; most are of 0.
fn power(x: f32) -> f32 {
    if x == 0.0 { 1.0 } else { x.exp2() }
}
