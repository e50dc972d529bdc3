//! Products and attention of given shapes on a [`Bed`], by the code that a backend runs.

use headinfer_core::model::spec::ModelSpec;
use headinfer_core::plan::{DECODE_ROWS, GEMM_WORKSPACE, SPLITS_IN_FLIGHT};

use super::{ALIGN, Bed, Ranges};
use crate::arena::Pointer;
use crate::error::CudaError;
use crate::gemm::{Output, Places, Shape};
use crate::launch::HEADS_MAX;
use crate::launch::attention_prefill::Attention;

/// Bytes of a bf16, and of an f32.
pub(super) const HALF: u64 = 2;
pub(super) const SINGLE: u64 = 4;
/// Tiles of a past that lie apart in memory; further ones are the same again.
const SLOTS_MAX: usize = 8;

/// A matrix product `[rows, inner]` by `[out, inner]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Rows of the input.
    pub rows: usize,
    /// Rows of the weight.
    pub out: usize,
    /// Columns of both.
    pub inner: usize,
    /// Elements from one row of the input to the next.
    pub from_stride: usize,
    /// Added to f32 rather than stored as bf16.
    pub accumulate: bool,
}

impl Product {
    /// Two for each multiplication and addition.
    pub fn flop(&self) -> f64 {
        2.0 * self.rows as f64 * self.out as f64 * self.inner as f64
    }

    /// Device memory it takes to measure.
    pub fn device_bytes(&self) -> u64 {
        self.sizes().iter().map(|bytes| bytes.next_multiple_of(ALIGN)).sum()
    }

    pub(super) fn shape(&self) -> Shape {
        Shape {
            rows: self.rows,
            out: self.out,
            inner: self.inner,
            from_stride: self.from_stride,
            to_stride: self.out,
            to: if self.accumulate { Output::Accumulate } else { Output::Bf16 },
        }
    }

    /// Of weight, input, output and workspace.
    fn sizes(&self) -> [u64; 4] {
        let elements = |rows: usize, columns: usize| rows as u64 * columns as u64;
        let to = if self.accumulate { SINGLE } else { HALF };
        [
            elements(self.out, self.inner) * HALF,
            elements(self.rows, self.from_stride) * HALF,
            elements(self.rows, self.out) * to,
            GEMM_WORKSPACE,
        ]
    }
}

/// The products of one layer of a step of `rows` rows with the MLP in blocks of `mlp_rows`, as a backend runs them,
/// and how often.
pub fn layer_products(spec: &ModelSpec, rows: usize, mlp_rows: usize) -> Vec<(Product, f64)> {
    let (hidden, width) = (spec.hidden, spec.intermediate);
    let (q, kv) = (spec.q_dim(), spec.kv_dim());
    let block = mlp_rows.min(rows);
    let times = rows as f64 / block as f64;
    let product =
        |rows, out, inner, from_stride, accumulate| Product { rows, out, inner, from_stride, accumulate };
    vec![
        (product(rows, q + 2 * kv, hidden, hidden, false), 1.0),
        (product(rows, hidden, q, q, true), 1.0),
        (product(block, 2 * width, hidden, hidden, false), times),
        (product(block, hidden, width, 2 * width, true), times),
    ]
}

/// Attention of some tokens of some heads, in one launch a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attended {
    /// Query tokens.
    pub tokens: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Query heads of a KV head.
    pub group: usize,
    /// Tokens before the query's, all visible.
    pub past: usize,
    /// The past is attended in tiles of this many, each with a launch that carries the state on.
    pub tile: usize,
    /// The query's own tokens are attended too, under the causal mask, with the last tile.
    pub own: bool,
}

impl Attended {
    /// Four for each pair of query and key that the mask lets through, each query head and each element.
    pub fn flop(&self, head_dim: usize) -> f64 {
        let tokens = self.tokens as f64;
        let own = if self.own { tokens * (tokens + 1.0) / 2.0 } else { 0.0 };
        4.0 * (self.kv_heads * self.group * head_dim) as f64 * (tokens * self.past as f64 + own)
    }

    /// K and V, each read once.
    pub fn kv_bytes(&self, head_dim: usize) -> f64 {
        let tokens = self.past + if self.own { self.tokens } else { 0 };
        2.0 * (self.kv_heads * head_dim * tokens) as f64 * HALF as f64
    }

    /// Device memory it takes to measure.
    pub fn device_bytes(&self, head_dim: usize) -> u64 {
        let sizes = self.sizes(head_dim);
        let kv = sizes.slots * self.kv_heads as u64 * 2 * sizes.half;
        [sizes.query, sizes.state, sizes.query, sizes.partials, kv]
            .iter()
            .map(|bytes| bytes.next_multiple_of(ALIGN))
            .sum::<u64>()
            + ALIGN * (3 + 2 * sizes.slots * self.kv_heads as u64)
    }

    fn sizes(&self, head_dim: usize) -> Sizes {
        let rows = (self.tokens * self.group * self.kv_heads) as u64;
        let d = head_dim as u64;
        let decode = if self.tokens <= DECODE_ROWS { rows * SPLITS_IN_FLIGHT as u64 } else { 0 };
        let keys = if self.past > 0 { self.tile.min(self.past) } else { 0 };
        let keys = keys.max(if self.own { self.tokens } else { 0 });
        Sizes {
            query: rows * d * HALF,
            state: rows * (d + 2) * SINGLE,
            partials: decode * (d + 2) * SINGLE,
            half: keys as u64 * d * HALF,
            slots: (self.past.div_ceil(self.tile) + usize::from(self.own)).clamp(1, SLOTS_MAX) as u64,
        }
    }
}

/// Bytes that a measured attention takes.
struct Sizes {
    query: u64,
    state: u64,
    partials: u64,
    /// K or V of one head in one slot.
    half: u64,
    slots: u64,
}

/// Addresses of a measured attention.
struct Attending {
    query: Pointer,
    state: [Pointer; 3],
    out: Pointer,
    partials: (Pointer, u64),
    kv: Vec<Vec<[Pointer; 2]>>,
}

impl Bed {
    /// Seconds of a product.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed or cuBLASLt knows no way.
    ///
    /// # Panics
    /// When the bed is too small.
    pub fn product(&mut self, p: &Product) -> Result<f64, CudaError> {
        let Places { weight, from, to, workspace } = self.places_of(p);
        self.time(|bed| bed.gemm.run(bed.lanes[0].raw(), p.shape(), weight, from, to, workspace))
    }

    /// Where a product's operands lie.
    pub(super) fn places_of(&self, p: &Product) -> Places {
        let mut ranges = Ranges::new(&self.memories);
        let [weight, from, to, workspace] = p.sizes().map(|bytes| ranges.take(bytes));
        Places { weight, from, to, workspace }
    }

    /// Seconds of attention.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the bed is too small, or the heads are more than one launch takes.
    pub fn attention(&mut self, a: &Attended) -> Result<f64, CudaError> {
        assert!(a.kv_heads <= HEADS_MAX, "one launch takes {HEADS_MAX} heads");
        let places = self.places(a);
        self.time(|bed| {
            let launches = a.past.div_ceil(a.tile).max(1);
            (0..launches).try_for_each(|tile| bed.attend(a, &places, tile, tile + 1 == launches))
        })
    }

    fn attend(&self, a: &Attended, places: &Attending, tile: usize, last: bool) -> Result<(), CudaError> {
        let d = self.head_dim;
        let rows = (a.tokens * a.group * d) as u64 * HALF;
        let [slot, after] = [tile, tile + 1].map(|slot| &places.kv[slot % places.kv.len()]);
        let heads = (0u64..).zip(slot.iter().zip(after));
        let heads = heads.map(|(h, (past, own))| [places.query + h * rows, past[0], past[1], own[0], own[1]]);
        let heads: Vec<_> = heads.collect();
        let own = if last && a.own { a.tokens } else { 0 };
        let attention = Attention {
            heads: &heads,
            state: places.state,
            out: if last { places.out } else { 0 },
            out_columns: (a.kv_heads * a.group * d, 0),
            tokens: a.tokens,
            q_start: a.past,
            group: a.group,
            past: tile * a.tile..a.past.min((tile + 1) * a.tile),
            own: a.past..a.past + own,
            window: None,
            first: tile == 0,
            last,
        };
        let stream = self.lanes[0].raw();
        match a.tokens <= DECODE_ROWS {
            true => self.kernels.attention_decode(stream.into(), &attention, places.partials),
            false => self.kernels.attention_prefill(stream, &attention),
        }
    }

    fn places(&self, a: &Attended) -> Attending {
        let sizes = a.sizes(self.head_dim);
        let rows = (a.tokens * a.group * a.kv_heads) as u64;
        let mut ranges = Ranges::new(&self.memories);
        let (query, out) = (ranges.take(sizes.query), ranges.take(sizes.query));
        let state =
            [rows * SINGLE, rows * SINGLE, rows * self.head_dim as u64 * SINGLE].map(|b| ranges.take(b));
        let partials = (ranges.take(sizes.partials), sizes.partials / SINGLE);
        let mut head = |_| [ranges.take(sizes.half), ranges.take(sizes.half)];
        let kv = (0..sizes.slots).map(|_| (0..a.kv_heads).map(&mut head).collect()).collect();
        Attending { query, state, out, partials, kv }
    }
}
