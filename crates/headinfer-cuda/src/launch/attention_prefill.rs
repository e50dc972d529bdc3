//! Prefill attention, and the parameters it shares with decode.

use cudarc::driver::sys::CUstream;

use super::{HEADS_MAX, Kernels, Spread, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

/// Keys of a block (`KEYS` in `kernels/attention.cuh`).
const KEYS: usize = headinfer_core::plan::BLOCK;
/// Query rows of a warp.
const WARP_ROWS: usize = 16;

/// How the prefill kernel is built for a head dimension and a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiling {
    /// Warps of a block, 16 query rows each.
    pub(crate) warps: usize,
    /// Blocks of keys in shared memory.
    pub(crate) stages: usize,
    /// Whether queries stay in shared memory rather than in registers.
    pub(crate) query_shared: bool,
    /// Dynamic shared memory of a block.
    pub(crate) shared_bytes: u32,
}

impl Tiling {
    /// For heads of up to 128 the accumulator leaves registers for the queries. Wider ones keep them in shared
    /// memory, and do with one stage where two do not fit.
    pub(crate) fn new(head_dim: usize, shared_limit: u32) -> Self {
        let query_shared = head_dim > 128;
        let warps = if query_shared { 4 } else { 8 };
        let row_bytes = (head_dim.next_multiple_of(16) + 8) * 2;
        let queries = if query_shared { warps * WARP_ROWS } else { 0 };
        let bytes = |stages: usize| ((stages * 2 * KEYS + queries) * row_bytes) as u32;
        let stages = if bytes(2) <= shared_limit { 2 } else { 1 };
        Self { warps, stages, query_shared, shared_bytes: bytes(stages) }
    }
}

/// As the kernels take it; see `kernels/attention.cuh` for shapes.
#[repr(C)]
#[derive(Clone)]
pub(super) struct AttendParams {
    query: [Pointer; HEADS_MAX],
    key: [Pointer; HEADS_MAX],
    value: [Pointer; HEADS_MAX],
    state_max: Pointer,
    state_sum: Pointer,
    state_acc: Pointer,
    pub(super) partials: Pointer,
    out: Pointer,
    q_start: u64,
    kv_start: u64,
    past_from: u64,
    past_to: u64,
    own_from: u64,
    own_to: u64,
    window: u64,
    out_stride: u64,
    out_column: u64,
    pub(super) rows: u32,
    group: u32,
    pub(super) first_split: u32,
    pub(super) splits: u32,
    pub(super) row_tiles: u32,
    pub(super) first: u32,
    pub(super) last: u32,
    scale_log2: f32,
}

/// Attention of one group of heads over some keys.
pub(crate) struct Attention<'a> {
    /// Per head: queries, keys, values.
    pub(crate) heads: &'a [[Pointer; 3]],
    /// Max, sum, accumulator.
    pub(crate) state: [Pointer; 3],
    /// Output rows, with `last`.
    pub(crate) out: Pointer,
    /// Columns of the output, and the group's first.
    pub(crate) out_columns: (usize, usize),
    /// New tokens and how many were before them.
    pub(crate) tokens: usize,
    pub(crate) q_start: usize,
    /// Query heads of a KV head.
    pub(crate) group: usize,
    /// Position of the first key in memory.
    pub(crate) kv_start: usize,
    /// Positions of past keys to attend.
    pub(crate) past: std::ops::Range<usize>,
    /// Positions of own keys to attend.
    pub(crate) own: std::ops::Range<usize>,
    pub(crate) window: Option<usize>,
    pub(crate) first: bool,
    pub(crate) last: bool,
}

impl Attention<'_> {
    pub(super) fn params(&self, head_dim: usize) -> AttendParams {
        let column = |i: usize| {
            let mut all = [0; HEADS_MAX];
            all.iter_mut().zip(self.heads).for_each(|(to, head)| *to = head[i]);
            all
        };
        AttendParams {
            query: column(0),
            key: column(1),
            value: column(2),
            state_max: self.state[0],
            state_sum: self.state[1],
            state_acc: self.state[2],
            partials: 0,
            out: self.out,
            q_start: self.q_start as u64,
            kv_start: self.kv_start as u64,
            past_from: self.past.start as u64,
            past_to: self.past.end as u64,
            own_from: self.own.start as u64,
            own_to: self.own.end as u64,
            window: self.window.map_or(0, |w| w as u64),
            out_stride: self.out_columns.0 as u64,
            out_column: self.out_columns.1 as u64,
            rows: (self.tokens * self.group) as u32,
            group: self.group as u32,
            first_split: 0,
            splits: 0,
            row_tiles: 0,
            first: u32::from(self.first),
            last: u32::from(self.last),
            scale_log2: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
        }
    }
}

impl Kernels {
    /// Many rows.
    pub(crate) fn attention_prefill(&self, stream: CUstream, a: &Attention<'_>) -> Result<(), CudaError> {
        let mut params = a.params(self.head_dim);
        let tiles = (params.rows as usize).div_ceil(self.tiling.warps * WARP_ROWS);
        let spread = Spread {
            grid: (tiles as u32, a.heads.len() as u32),
            block: (self.tiling.warps * 32) as u32,
            shared: self.tiling.shared_bytes,
        };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.attention_prefill, &spread, stream, "attention_prefill", &mut params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_dim_fits_a_consumer_card() {
        const CONSUMER: u32 = 99 << 10;
        for head_dim in (8..=256).step_by(8) {
            assert!(Tiling::new(head_dim, CONSUMER).shared_bytes <= CONSUMER, "{head_dim}");
        }
        assert_eq!(Tiling::new(128, CONSUMER).stages, 2);
        assert_eq!(Tiling::new(256, CONSUMER).stages, 1);
    }
}
