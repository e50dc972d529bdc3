//! How the residual stream is shared out.

use std::ops::Range;

use super::Sizes;

/// Codes narrower than this tell too few names apart.
const WIDTH_MIN: usize = 6;
/// Codes are held in a u128.
const WIDTH_MAX: usize = 128;

/// Residual dimensions, in this order: the key code of the current token, its query code, the key code of the
/// previous token (written by layer 0), the query code of what was found (written by all others), one constant,
/// and what nobody reads. A code is `[kv_heads, width]`.
#[derive(Clone, Debug)]
pub(super) struct Spaces {
    /// Bits of a code in one KV head.
    pub(super) width: usize,
    pub(super) kv_heads: usize,
    hidden: usize,
}

impl Spaces {
    /// `slow` is how many dimensions of a head hold content.
    ///
    /// # Errors
    /// A sentence when the codes would be too narrow.
    pub(super) fn new(sizes: &Sizes, slow: usize) -> Result<Self, String> {
        let per_head = sizes.hidden.saturating_sub(1) / 4 / sizes.kv_heads;
        let width = per_head.min(slow).min(WIDTH_MAX);
        if width < WIDTH_MIN {
            let need = 4 * sizes.kv_heads * WIDTH_MIN + 1;
            return Err(format!(
                "needs a hidden size of at least {need} for {} KV heads, not {}",
                sizes.kv_heads, sizes.hidden
            ));
        }
        Ok(Self { width, kv_heads: sizes.kv_heads, hidden: sizes.hidden })
    }

    /// Elements of a code over all KV heads.
    pub(super) fn code(&self) -> usize {
        self.kv_heads * self.width
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
