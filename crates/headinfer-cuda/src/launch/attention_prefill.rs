//! Prefill attention, which kernel computes it, and the parameters it shares with decode.

use cudarc::driver::sys::CUstream;

use super::attention_prefill_hopper::Hopper;
use super::{HEADS_MAX, Kernels, Spread, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

/// Keys of a block (`KEYS` in `kernels/attention.cuh`).
const KEYS: usize = headinfer_core::plan::BLOCK;

/// Which kernel computes prefill attention, and how it is built. Another kernel gives other bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillKernel {
    /// What devices from sm_80 on have.
    Portable(Tiling),
    /// What sm_90a alone has.
    Hopper(Hopper),
}

impl PrefillKernel {
    /// The fastest for a device, which is a Hopper or not, and the shared memory a block of it may have.
    pub fn new(head_dim: usize, hopper: bool, shared_limit: u32) -> Self {
        match Hopper::new(head_dim) {
            Some(built) if hopper && built.shared_bytes(head_dim) <= shared_limit => Self::Hopper(built),
            _ => Self::Portable(Tiling::new(head_dim, shared_limit)),
        }
    }

    /// Its name: that of its file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Portable(_) => "attention_prefill",
            Self::Hopper(_) => "attention_prefill_hopper",
        }
    }

    pub(super) fn shared_bytes(&self, head_dim: usize) -> u32 {
        match self {
            Self::Portable(tiling) => tiling.shared_bytes(head_dim),
            Self::Hopper(hopper) => hopper.shared_bytes(head_dim),
        }
    }
}

/// How the portable prefill kernel is built for a head dimension and a device. Every choice gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Warps of a block.
    pub warps: usize,
    /// Tiles of 16 query rows of a warp: a fragment of K or V serves all of them.
    pub row_tiles: usize,
    /// Blocks of keys in shared memory.
    pub stages: usize,
    /// Whether queries stay in shared memory rather than in registers.
    pub query_shared: bool,
    /// Blocks that share a multiprocessor.
    pub blocks: usize,
}

/// What a block costs in shared memory beyond what it asks for.
const RESERVED: u32 = 1 << 10;

impl Tiling {
    /// The first candidate for which a device has the shared memory, given how much of it one block may have.
    pub fn new(head_dim: usize, shared_limit: u32) -> Self {
        let all = Self::candidates(head_dim);
        let fits = all.iter().find(|t| t.fits(head_dim, shared_limit));
        *fits.unwrap_or(&all[all.len() - 1])
    }

    /// What devices may get, the fastest first; the last fits all.
    pub fn candidates(head_dim: usize) -> &'static [Self] {
        const fn tiling(warps: usize, row_tiles: usize, stages: usize, query_shared: bool) -> Tiling {
            // Two blocks where the registers of four warps are half of what there are, and shared memory mostly is.
            let blocks = if warps == 4 && row_tiles == 2 { 2 } else { 1 };
            Tiling { warps, row_tiles, stages, query_shared, blocks }
        }
        match head_dim {
            0..=64 => const { &[tiling(4, 2, 2, false)] },
            65..=96 => const { &[tiling(4, 2, 2, true), tiling(4, 2, 1, true), tiling(8, 1, 2, false)] },
            97..=128 => const { &[tiling(4, 2, 2, true), tiling(4, 2, 1, true), tiling(8, 1, 2, false)] },
            _ => const { &[tiling(8, 1, 2, true), tiling(8, 1, 1, true), tiling(4, 1, 1, true)] },
        }
    }

    /// Whether as many blocks as it wants share a multiprocessor, given how much shared memory one block may have.
    pub fn fits(&self, head_dim: usize, shared_limit: u32) -> bool {
        self.blocks as u32 * (self.shared_bytes(head_dim) + RESERVED) <= shared_limit + RESERVED
    }

    /// Query rows of a block.
    pub(crate) fn rows(&self) -> usize {
        self.warps * self.row_tiles * 16
    }

    /// Dynamic shared memory of a block.
    pub(crate) fn shared_bytes(&self, head_dim: usize) -> u32 {
        let row_bytes = (head_dim.next_multiple_of(16) + 8) * 2;
        let queries = if self.query_shared { self.rows() } else { 0 };
        ((self.stages * 2 * KEYS + queries) * row_bytes) as u32
    }
}

/// As the kernels take it, `F` being how they find queries, keys and values; see `kernels/attention.cuh` for shapes.
#[repr(C)]
pub(super) struct AttendParams<F> {
    pub(super) from: F,
    pub(super) rest: Rest,
}

/// By the address of each head.
#[repr(C)]
pub(super) struct Pointers {
    query: [Pointer; HEADS_MAX],
    key: [Pointer; HEADS_MAX],
    value: [Pointer; HEADS_MAX],
    own_key: [Pointer; HEADS_MAX],
    own_value: [Pointer; HEADS_MAX],
}

#[repr(C)]
pub(super) struct Rest {
    state_max: Pointer,
    state_sum: Pointer,
    state_acc: Pointer,
    pub(super) partials: Pointer,
    out: Pointer,
    q_start: u64,
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
    pub(super) wave: u32,
    pub(super) first: u32,
    pub(super) last: u32,
    scale_log2: f32,
}

/// Attention of one group of heads over some keys: those of the past, then the step's own.
pub(crate) struct Attention<'a> {
    /// Per head: queries, keys and values of the past, own keys and values; a piece without keys needs no address.
    pub(crate) heads: &'a [[Pointer; 5]],
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
    /// Positions of past keys to attend, the first at the past's addresses.
    pub(crate) past: std::ops::Range<usize>,
    /// Positions of own keys to attend, likewise.
    pub(crate) own: std::ops::Range<usize>,
    pub(crate) window: Option<usize>,
    pub(crate) first: bool,
    pub(crate) last: bool,
}

impl Attention<'_> {
    pub(super) fn params(&self, head_dim: usize) -> AttendParams<Pointers> {
        let column = |i: usize| {
            let mut all = [0; HEADS_MAX];
            all.iter_mut().zip(self.heads).for_each(|(to, head)| *to = head[i]);
            all
        };
        let [query, key, value, own_key, own_value] = [0, 1, 2, 3, 4].map(column);
        let from = Pointers { query, key, value, own_key, own_value };
        AttendParams { from, rest: self.rest(head_dim) }
    }

    pub(super) fn rest(&self, head_dim: usize) -> Rest {
        Rest {
            state_max: self.state[0],
            state_sum: self.state[1],
            state_acc: self.state[2],
            partials: 0,
            out: self.out,
            q_start: self.q_start as u64,
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
            wave: u32::MAX,
            first: u32::from(self.first),
            last: u32::from(self.last),
            scale_log2: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
        }
    }
}

impl Kernels {
    /// Many rows.
    pub(crate) fn attention_prefill(&self, stream: CUstream, a: &Attention<'_>) -> Result<(), CudaError> {
        match self.prefill {
            PrefillKernel::Portable(tiling) => self.attention_prefill_portable(stream, a, &tiling),
            PrefillKernel::Hopper(hopper) => self.attention_prefill_hopper(stream, a, &hopper),
        }
    }

    fn attention_prefill_portable(
        &self,
        stream: CUstream,
        a: &Attention<'_>,
        tiling: &Tiling,
    ) -> Result<(), CudaError> {
        let mut params = a.params(self.head_dim);
        let tiles = (params.rest.rows as usize).div_ceil(tiling.rows());
        // All start at once: a block's neighbour is the one that many multiprocessors later.
        if tiling.blocks == 2 && tiles * a.heads.len() <= 2 * self.multiprocessors as usize {
            params.rest.wave = self.multiprocessors;
        }
        let spread = Spread {
            grid: (tiles as u32, a.heads.len() as u32),
            block: (tiling.warps * 32) as u32,
            shared: tiling.shared_bytes(self.head_dim),
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
            assert!(Tiling::new(head_dim, CONSUMER).fits(head_dim, CONSUMER), "{head_dim}");
        }
    }

    #[test]
    fn more_shared_memory_is_put_to_use() {
        let stages = |head_dim, limit: u32| Tiling::new(head_dim, limit << 10).stages;
        assert_eq!([99, 163, 227].map(|limit| stages(96, limit)), [2, 2, 2]);
        assert_eq!([99, 163, 227].map(|limit| stages(128, limit)), [2, 1, 2]);
        assert_eq!([99, 163, 227].map(|limit| stages(256, limit)), [1, 1, 2]);
        let rows = |limit: u32| Tiling::new(256, limit << 10).rows();
        assert_eq!([99, 163, 227].map(rows), [64, 128, 128]);
    }
}
