//! Decode attention: splits in waves, each followed by folding it into the carried state.

use headinfer_core::plan::{BLOCK, SPLIT, Step};

use super::attention_prefill::Attention;
use super::{Kernels, Spread, Start, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

/// Warps of a block, a block of keys each.
const WARPS: usize = SPLIT / BLOCK;
/// Query rows of a block.
const ROWS: usize = 16;

/// Dynamic shared memory of a block: each warp's max, sum and accumulator.
pub(super) fn shared_bytes(head_dim: usize) -> u32 {
    (WARPS * ROWS * (head_dim + 2) * 4) as u32
}

impl Kernels {
    /// Few rows, each of which gets the bits that it would have in a step of its own. `partials` holds `floats` f32: what is in flight at once follows from it, the result does not.
    pub(crate) fn attention_decode(
        &self,
        start: Start,
        a: &Attention<'_>,
        (partials, floats): (Pointer, u64),
    ) -> Result<(), CudaError> {
        let a = &Attention { past: a.before(), own: a.own.clone(), ..*a };
        let mut params = a.params(self.head_dim);
        let heads = a.heads.len();
        let per_split = heads as u64 * u64::from(params.rest.rows) * (self.head_dim as u64 + 2);
        let in_flight = (floats / per_split) as usize;
        assert!(in_flight > 0, "no room for the states of one split of {heads} heads");
        let splits = a.visible_splits();
        params.rest.partials = partials;
        params.rest.row_tiles = (params.rest.rows as usize).div_ceil(ROWS) as u32;
        for begin in splits.clone().step_by(in_flight) {
            let end = (begin + in_flight).min(splits.end);
            params.rest.first_split = begin as u32;
            params.rest.splits = (end - begin) as u32;
            params.rest.first = u32::from(a.first && begin == splits.start);
            params.rest.last = u32::from(a.last && end == splits.end);
            let spread = Spread {
                grid: (params.rest.splits * params.rest.row_tiles, heads as u32),
                block: (WARPS * 32) as u32,
                shared: shared_bytes(self.head_dim),
            };
            // SAFETY: the kernel's layout; the addresses are the op's spans.
            unsafe { launch(self.attention_decode, &spread, start, "attention_decode", &mut params) }?;
            let block = self.head_dim.next_multiple_of(32) as u32;
            let spread = Spread { grid: (params.rest.rows, heads as u32), block, shared: 0 };
            // SAFETY: as above.
            unsafe { launch(self.attention_merge, &spread, start, "attention_merge", &mut params) }?;
        }
        Ok(())
    }
}

impl Attention<'_> {
    /// Positions that are past to some row: own rows too, but for the last. Without a past here, those before the end
    /// of the split that it ends in were attended to with it.
    fn before(&self) -> std::ops::Range<usize> {
        if self.own.is_empty() {
            return self.past.clone();
        }
        let step = Step { past: self.q_start, rows: self.tokens, logit_rows: 0 };
        let from = if self.past.is_empty() { step.split_end() } else { self.past.start };
        from..step.past + step.rows - 1
    }

    /// Splits of both pieces, the past's first, without those before the window of every row.
    fn visible_splits(&self) -> std::ops::Range<usize> {
        let count = |piece: &std::ops::Range<usize>| match piece.is_empty() {
            true => 0,
            false => piece.end.div_ceil(SPLIT) - piece.start / SPLIT,
        };
        let past = count(&self.past);
        let first = self.window.map_or(0, |w| (self.q_start + 1).saturating_sub(w));
        let hidden = (first.max(self.past.start) / SPLIT - self.past.start / SPLIT).min(past);
        hidden..past + count(&self.own)
    }
}
