//! K and V of a range of tokens, wherever they are kept between steps, in a form that knows no placement.
//!
//! The canonical form of `n` rows is bf16 `[layer][kv_head][K | V][n, head_dim]`: what one plan wrote, another reads.

use std::ops::Range;

use super::layout::Span;
use super::operands::Role;
use super::{Plan, kv_bytes_per_token};

impl Plan {
    /// Pairs every piece of the canonical form of `rows` with the place that keeps it, to be filled from there.
    ///
    /// # Panics
    /// When the rows exceed the context, or `to` is not as long as their canonical form.
    pub fn rows_into<'a>(&self, rows: Range<usize>, to: &'a mut [u8]) -> Vec<(Span, &'a mut [u8])> {
        let spans = self.row_spans(rows, to.len());
        let mut rest = to;
        let piece = |span: Span| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(span.bytes as usize);
            rest = after;
            (span, piece)
        };
        spans.into_iter().map(piece).collect()
    }

    /// Pairs every piece of the canonical form of `rows` with the place that is to keep it.
    ///
    /// # Panics
    /// As [`Plan::rows_into`].
    pub fn rows_from<'a>(&self, rows: Range<usize>, from: &'a [u8]) -> Vec<(Span, &'a [u8])> {
        let spans = self.row_spans(rows, from.len());
        let mut rest = from;
        let piece = |span: Span| {
            let (piece, after) = rest.split_at(span.bytes as usize);
            rest = after;
            (span, piece)
        };
        spans.into_iter().map(piece).collect()
    }

    /// Where the canonical form's pieces lie, in its order.
    fn row_spans(&self, rows: Range<usize>, bytes: usize) -> Vec<Span> {
        let (n, context) = (rows.len() as u64, self.knobs().context);
        assert!(rows.end <= context, "{rows:?} exceed the context of {context}");
        assert_eq!(bytes as u64, n * kv_bytes_per_token(&self.spec), "the canonical form of {rows:?}");
        let mut spans = Vec::new();
        for layer in 0..self.spec.layers {
            for head in 0..self.spec.kv_heads {
                let kept = self.past_operands(layer, head, rows.end);
                for role in [Role::Key, Role::Value] {
                    let pieces = kept.as_slice().iter().filter(|o| o.role == role).map(|o| o.span);
                    crop(pieces, rows.start as u64 * self.spec.head_dim as u64 * 2, &mut spans);
                }
            }
        }
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
