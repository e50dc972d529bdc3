//! Which keys are attended to in one go.
//!
//! Blocks and splits of keys are cut at the start of each piece, so pieces decide how a row's sums round. In a prefill
//! they are the past and the step's own rows. In a step of a few rows each row must have the bits that it would have
//! alone, when the rows before it are past: all before it is one piece, cut at multiples of [`SPLIT`] wherever it
//! lies, and itself another.

use std::borrow::Cow;
use std::ops::Range;

use super::kernels::Sees;
use crate::plan::{DECODE_ROWS, SPLIT, Step};

/// K and V of some rows of a head, bf16 bits `[rows, head_dim]`.
pub(super) type Kv<'a> = (Cow<'a, [u16]>, Cow<'a, [u16]>);

/// Consecutive keys of each head of a group.
pub(super) struct Piece<'a> {
    /// Position of the first.
    pub(super) start: usize,
    /// Which of them a row sees.
    pub(super) sees: Sees,
    pub(super) kv: Vec<Kv<'a>>,
}

/// A head's K and V where they lie.
type Rows<'a> = (&'a [u16], &'a [u16]);

/// Pieces, in order of position, of heads of `d` elements: of the past rows at `positions` and of the step's own, each
/// head's or none.
pub(super) fn pieces<'a>(
    step: &Step,
    d: usize,
    positions: Range<usize>,
    past: &[Rows<'a>],
    own: &[Rows<'a>],
) -> Vec<Piece<'a>> {
    let piece = |start, sees, kv| Piece { start, sees, kv };
    let cut = |heads: &[Rows<'a>], rows| cut(heads, rows, d);
    let Range { start, end } = positions;
    let mut all = Vec::with_capacity(4);
    if step.rows > DECODE_ROWS {
        all.push(piece(start, Sees::Causal, cut(past, 0..end - start)));
        all.push(piece(step.past, Sees::Causal, cut(own, 0..step.rows)));
    } else {
        let before = step.rows - 1;
        if own.is_empty() {
            all.push(piece(start, Sees::Before, cut(past, 0..end - start)));
        } else if past.is_empty() {
            // The split that the past ends in was attended to with it, own rows and all.
            let seam = step.split_end();
            all.push(piece(seam, Sees::Before, cut(own, seam - step.past..before)));
        } else {
            let tail = if before == 0 { end } else { start.max(end / SPLIT * SPLIT) };
            let (old, new) = (cut(past, tail - start..end - start), cut(own, 0..before));
            let joined = old.into_iter().zip(new).map(|(a, b)| (join(a.0, b.0), join(a.1, b.1)));
            all.push(piece(start, Sees::Before, cut(past, 0..tail - start)));
            all.push(piece(tail, Sees::Before, joined.collect()));
        }
        all.push(piece(step.past, Sees::Itself, cut(own, 0..step.rows)));
    }
    all.retain(Piece::holds_keys);
    all
}

impl Piece<'_> {
    fn holds_keys(&self) -> bool {
        self.kv.first().is_some_and(|(k, _)| !k.is_empty())
    }
}

/// Some rows of each head.
fn cut<'a>(heads: &[Rows<'a>], rows: Range<usize>, d: usize) -> Vec<Kv<'a>> {
    let part = |of: &'a [u16]| Cow::Borrowed(&of[rows.start * d..rows.end * d]);
    heads.iter().map(|(k, v)| (part(k), part(v))).collect()
}

fn join<'a>(first: Cow<'a, [u16]>, second: Cow<'a, [u16]>) -> Cow<'a, [u16]> {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, _) => second,
        _ => Cow::Owned([first, second].concat()),
    }
}
