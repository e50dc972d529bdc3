//! K and V of a range of tokens, wherever they are kept between steps, in a form that knows no placement.
//!
//! The canonical form of `n` rows is bf16 `[layer][kv_head][K | V][n, head_dim]`: what one plan wrote, another reads.

use std::ops::Range;

use super::layout::Place;
use super::region::Span;
use super::role::Role;
use super::{Plan, UNIT, kv_bytes_per_token};

impl Plan {
    /// Pairs every piece of the canonical form of `rows` with the place that keeps it, to be filled from there; of a
    /// coded store only the resident heads' pieces.
    ///
    /// # Panics
    /// When the rows exceed the context, or `to` is not as long as their canonical form.
    pub fn rows_into<'a>(&self, rows: Range<usize>, to: &'a mut [u8]) -> Vec<(Span, &'a mut [u8])> {
        let half = self.canonical_half(&rows, to.len());
        let mut pieces = Vec::new();
        for (index, to) in to.chunks_exact_mut(half.max(1)).enumerate() {
            let mut rest = to;
            for span in self.row_spans(&rows, index) {
                let (piece, after) = rest.split_at_mut(span.bytes as usize);
                rest = after;
                pieces.push((span, piece));
            }
        }
        pieces
    }

    /// Pairs every piece of the canonical form of `rows` with the place that is to keep it; of a coded store only the
    /// resident heads' pieces.
    ///
    /// # Panics
    /// As [`Plan::rows_into`].
    pub fn rows_from<'a>(&self, rows: Range<usize>, from: &'a [u8]) -> Vec<(Span, &'a [u8])> {
        let half = self.canonical_half(&rows, from.len());
        let mut pieces = Vec::new();
        for (index, from) in from.chunks_exact(half.max(1)).enumerate() {
            let mut rest = from;
            for span in self.row_spans(&rows, index) {
                let (piece, after) = rest.split_at(span.bytes as usize);
                rest = after;
                pieces.push((span, piece));
            }
        }
        pieces
    }

    /// Rows to read and to write anew when only the first `left` of the `held` rows are kept: those of a closed unit
    /// that becomes the open one. `None` where nothing has to move.
    pub fn reopens(&self, held: usize, left: usize) -> Option<Range<usize>> {
        let first = left - self.open_rows(left);
        (first < left && held / UNIT > left / UNIT).then_some(first..left)
    }

    /// Bytes of a head's keys, or values, in the canonical form of `rows`, which has so many bytes.
    fn canonical_half(&self, rows: &Range<usize>, bytes: usize) -> usize {
        let context = self.knobs().context;
        assert!(rows.end <= context, "{rows:?} exceed the context of {context}");
        let all = rows.len() as u64 * kv_bytes_per_token(&self.spec);
        assert_eq!(bytes as u64, all, "the canonical form of {rows:?}");
        rows.len() * self.spec.head_dim * 2
    }

    /// Where the pieces of one half of the canonical form lie; none where they are coded.
    fn row_spans(&self, rows: &Range<usize>, half: usize) -> Vec<Span> {
        let (head, layer) = (half / 2 % self.spec.kv_heads, half / 2 / self.spec.kv_heads);
        let resident = matches!(self.layout.place(layer, head, self.spec.kv_heads), Place::Resident(_));
        if self.coded() && !resident {
            return Vec::new();
        }
        let role = [Role::Key, Role::Value][half % 2];
        let kept = self.past_operands(layer, head, rows.end);
        let pieces = kept.as_slice().iter().filter(|o| o.role == role).map(|o| o.span);
        let mut spans = Vec::new();
        crop(pieces, rows.start as u64 * self.spec.head_dim as u64 * 2, &mut spans);
        spans
    }
}

/// Leaves out the first `skip` bytes of all pieces together.
fn crop(pieces: impl Iterator<Item = Span>, mut skip: u64, to: &mut Vec<Span>) {
    for span in pieces {
        let cut = skip.min(span.bytes);
        skip -= cut;
        if cut < span.bytes {
            to.push(Span { offset: span.offset + cut, bytes: span.bytes - cut, ..span });
        }
    }
}
