//! How the residual stream is shared out.

use std::ops::Range;

use super::Sizes;

/// Slices narrower than this tell too few names apart.
const WIDTH_MIN: usize = 6;
/// Heads that share a KV head take slices of their own where these are at least as wide as this.
const WIDTH_SHARED_MIN: usize = 11;
/// A slice is held in a u128.
const WIDTH_MAX: usize = 128;

/// Residual dimensions, in this order: the key code of the current token, its query code, the key code of the
/// previous token (written by layer 0), the query code of what was found (written by all others), one constant,
/// and what nobody reads. A code is `[slices, width]`; a KV head holds `slices / kv_heads` of them, in order.
#[derive(Clone, Debug)]
pub(super) struct Spaces {
    /// Slices of a code: as many as query heads, or a divisor of that.
    pub(super) slices: usize,
    /// Bits of a slice.
    pub(super) width: usize,
    kv_heads: usize,
    group: usize,
    hidden: usize,
}

impl Spaces {
    /// `slow` is how many dimensions of a head hold content.
    ///
    /// # Errors
    /// A sentence when the codes would be too narrow.
    pub(super) fn new(sizes: &Sizes, slow: usize) -> Result<Self, String> {
        let Sizes { hidden, kv_heads, q_heads, .. } = *sizes;
        let group = q_heads / kv_heads;
        let per_head = (hidden.saturating_sub(1) / 4 / kv_heads).min(slow);
        if per_head < WIDTH_MIN {
            let need = 4 * kv_heads * WIDTH_MIN + 1;
            return Err(format!(
                "needs a hidden size of at least {need} for {kv_heads} KV heads, not {hidden}"
            ));
        }
        let fits = |parts: &usize| group.is_multiple_of(*parts) && per_head / parts >= WIDTH_SHARED_MIN;
        let parts = (1..=group).rev().find(fits).unwrap_or(1);
        let width = (per_head / parts).min(WIDTH_MAX);
        Ok(Self { slices: kv_heads * parts, width, kv_heads, group, hidden })
    }

    /// Slices that one KV head holds.
    pub(super) fn parts(&self) -> usize {
        self.slices / self.kv_heads
    }

    /// The slice that a query head carries.
    pub(super) fn slice_of(&self, query_head: usize) -> usize {
        query_head / self.group * self.parts() + query_head % self.group % self.parts()
    }

    /// Query heads that carry one slice together.
    pub(super) fn sharers(&self) -> usize {
        self.group / self.parts()
    }

    /// Elements of a code over all slices.
    pub(super) fn code(&self) -> usize {
        self.slices * self.width
    }

    /// Key code of the current token.
    pub(super) fn key(&self) -> usize {
        0
    }

    /// Query code of the current token.
    pub(super) fn query(&self) -> usize {
        self.code()
    }

    /// Key code of the previous token.
    pub(super) fn previous(&self) -> usize {
        2 * self.code()
    }

    /// Query code of what was found.
    pub(super) fn found(&self) -> usize {
        3 * self.code()
    }

    /// The constant.
    pub(super) fn constant(&self) -> usize {
        4 * self.code()
    }

    /// What nobody reads: the MLPs write here.
    pub(super) fn free(&self) -> Range<usize> {
        self.constant() + 1..self.hidden
    }
}
