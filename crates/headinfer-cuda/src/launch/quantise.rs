//! Quantising rows of keys and values into units, and back. The format is in core's `cpu::kernels::quantised`.

use cudarc::driver::sys::CUstream;
use headinfer_core::cpu::kernels::packed::UNIT;
use headinfer_core::cpu::kernels::quantised::Quantised;

use super::pack::column;
use super::{HEADS_MAX, Kernels, Spread, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;
/// Blocks of a half that is restored.
const BLOCKS: u32 = 4;

/// As the kernel takes it; see `kernels/quantise.cu` for shapes.
#[repr(C)]
struct QuantiseParams {
    rows: [[Pointer; HEADS_MAX]; 2],
    to: Pointer,
    unit_stride: u64,
    head_stride: u64,
    heads: u32,
}

/// As the kernel takes it; see `kernels/dequantise.cu` for shapes.
#[repr(C)]
struct DequantiseParams {
    from: [Pointer; HEADS_MAX],
    to: [[Pointer; HEADS_MAX]; 2],
    heads: u32,
}

/// Rows that fill units, and where these go.
pub(crate) struct Quantise<'a> {
    /// How they are coded.
    pub(crate) format: Quantised,
    /// Per head: keys, values of the first unit, bf16 `[units, UNIT, head_dim]`.
    pub(crate) heads: &'a [[Pointer; 2]],
    /// Units of each head.
    pub(crate) units: usize,
    /// The first half. Keys' and values' halves of a unit lie together…
    pub(crate) to: Pointer,
    /// …and these many bytes from those of the next unit of the head…
    pub(crate) unit_stride: u64,
    /// …and from those of the next head of the unit. Both are multiples of 64.
    pub(crate) head_stride: u64,
}

/// Quantised units, and where their rows go.
pub(crate) struct Dequantise<'a> {
    /// How they are coded.
    pub(crate) format: Quantised,
    /// Per head: its units `[unit][K | V]`; its keys and its values, bf16 `[units, UNIT, head_dim]`.
    pub(crate) heads: &'a [[Pointer; 3]],
    /// Units of each head.
    pub(crate) units: usize,
}

impl Kernels {
    /// Codes all units of all heads of `q`.
    pub(crate) fn quantise(&self, stream: CUstream, q: &Quantise<'_>) -> Result<(), CudaError> {
        for (group, heads) in q.heads.chunks(HEADS_MAX).enumerate() {
            let mut params = QuantiseParams {
                rows: [0, 1].map(|which| column(heads, which, 0)),
                to: q.to + (group * HEADS_MAX) as u64 * q.head_stride,
                unit_stride: q.unit_stride,
                head_stride: q.head_stride,
                heads: heads.len() as u32,
            };
            let halves = (2 * q.units * heads.len()) as u32;
            let spread = Spread { grid: (halves, 1), block: THREADS, shared: 0 };
            let function = self.quantise[q.format as usize];
            // SAFETY: the kernel's layout; the addresses are the op's spans.
            unsafe { launch(function, &spread, stream, "quantise", &mut params) }?;
        }
        Ok(())
    }

    /// Restores all units of all heads of `q`.
    pub(crate) fn dequantise(&self, stream: CUstream, q: &Dequantise<'_>) -> Result<(), CudaError> {
        for heads in q.heads.chunks(HEADS_MAX) {
            let mut params = DequantiseParams {
                from: column(heads, 0, 0),
                to: [1, 2].map(|which| column(heads, which, 0)),
                heads: heads.len() as u32,
            };
            let halves = (2 * q.units * heads.len()) as u32;
            let spread = Spread { grid: (halves, BLOCKS), block: THREADS, shared: 0 };
            let function = self.dequantise[q.format as usize];
            // SAFETY: as above.
            unsafe { launch(function, &spread, stream, "dequantise", &mut params) }?;
        }
        Ok(())
    }
}

// The order of `Kernels::quantise`, and a block of keys a block.
const _: () = assert!(Quantised::Int8 as usize == 0 && Quantised::Int4 as usize == 1);
const _: () = assert!(UNIT == BLOCKS as usize * 64);
