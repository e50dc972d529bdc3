//! Packing rows of keys and values into units, and back. The format is in core's `cpu::kernels::packed`.

use cudarc::driver::sys::CUstream;
use headinfer_core::cpu::kernels::packed::{UNIT, half_bytes};

use super::{HEADS_MAX, Kernels, Spread, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const PACK_THREADS: u32 = 512;
const UNPACK_THREADS: u32 = 256;
/// Blocks of a half.
const UNPACK_BLOCKS: u32 = 4;
/// Units a launch takes at most (`UNITS_MAX` in the kernels).
const UNITS_MAX: usize = 64;

/// As the kernel takes it; see `kernels/pack.cu` for shapes.
#[repr(C)]
struct PackParams {
    rows: [[Pointer; HEADS_MAX]; 2],
    to: Pointer,
    planes: [Pointer; UNITS_MAX],
    counts: Pointer,
    fault: Pointer,
    unit_stride: u64,
    head_stride: u64,
    heads: u32,
    first_unit: u32,
    planes_max: u32,
}

/// As the kernel takes it; see `kernels/unpack.cu` for shapes.
#[repr(C)]
struct UnpackParams {
    from: [Pointer; HEADS_MAX],
    to: [[Pointer; HEADS_MAX]; 2],
    planes: [Pointer; UNITS_MAX],
    heads: u32,
}

/// Rows that fill units, and where these go.
pub(crate) struct Pack<'a> {
    /// Per head: keys, values of the first unit, bf16 `[units, UNIT, head_dim]`.
    pub(crate) heads: &'a [[Pointer; 2]],
    /// The first half. Keys' and values' halves of a unit lie together…
    pub(crate) to: Pointer,
    /// …and these many bytes from those of the next unit of the head…
    pub(crate) unit_stride: u64,
    /// …and from those of the next head of the unit. Both are multiples of 64.
    pub(crate) head_stride: u64,
    /// Per unit: its first plane, pinned. As many units are packed.
    pub(crate) planes: &'a [Pointer],
    /// Planes of each unit.
    pub(crate) planes_max: usize,
    /// Per unit: planes taken of it so far, u32.
    pub(crate) counts: Pointer,
    /// Number of the first unit.
    pub(crate) first_unit: usize,
    /// Pinned u32: becomes 1 + the number of a unit that has no plane left. What it is packed to is of no use then.
    pub(crate) fault: Pointer,
}

/// Packed units, and where their rows go.
pub(crate) struct Unpack<'a> {
    /// Per head: its units `[unit][K | V]`; its keys and its values, bf16 `[units, UNIT, head_dim]`.
    pub(crate) heads: &'a [[Pointer; 3]],
    /// Per unit: its first plane, pinned. As many units are unpacked.
    pub(crate) planes: &'a [Pointer],
}

impl Kernels {
    /// Packs all units of all heads of `p`.
    pub(crate) fn pack(&self, stream: CUstream, p: &Pack<'_>) -> Result<(), CudaError> {
        for (slice, planes) in p.planes.chunks(UNITS_MAX).enumerate() {
            let unit = slice * UNITS_MAX;
            let rows = (unit * UNIT * self.head_dim * 2) as u64;
            for (group, heads) in p.heads.chunks(HEADS_MAX).enumerate() {
                let first_head = (group * HEADS_MAX) as u64;
                let mut params = PackParams {
                    rows: [0, 1].map(|which| column(heads, which, rows)),
                    to: p.to + unit as u64 * p.unit_stride + first_head * p.head_stride,
                    planes: table(planes),
                    counts: p.counts + 4 * unit as u64,
                    fault: p.fault,
                    unit_stride: p.unit_stride,
                    head_stride: p.head_stride,
                    heads: heads.len() as u32,
                    first_unit: (p.first_unit + unit) as u32,
                    planes_max: p.planes_max as u32,
                };
                let halves = (2 * planes.len() * heads.len()) as u32;
                let spread = Spread { grid: (halves, 1), block: PACK_THREADS, shared: 0 };
                // SAFETY: the kernel's layout; the addresses are the op's spans, planes and the fault are pinned.
                unsafe { launch(self.pack, &spread, stream, "pack", &mut params) }?;
            }
        }
        Ok(())
    }

    /// Unpacks all units of all heads of `p`.
    pub(crate) fn unpack(&self, stream: CUstream, p: &Unpack<'_>) -> Result<(), CudaError> {
        for (slice, planes) in p.planes.chunks(UNITS_MAX).enumerate() {
            let unit = slice * UNITS_MAX;
            let rows = (unit * UNIT * self.head_dim * 2) as u64;
            for heads in p.heads.chunks(HEADS_MAX) {
                let mut params = UnpackParams {
                    from: column(heads, 0, (2 * unit * half_bytes(self.head_dim)) as u64),
                    to: [1, 2].map(|which| column(heads, which, rows)),
                    planes: table(planes),
                    heads: heads.len() as u32,
                };
                let halves = (2 * planes.len() * heads.len()) as u32;
                let spread = Spread { grid: (halves, UNPACK_BLOCKS), block: UNPACK_THREADS, shared: 0 };
                // SAFETY: as above.
                unsafe { launch(self.unpack, &spread, stream, "unpack", &mut params) }?;
            }
        }
        Ok(())
    }
}

/// Column `which` of a table of heads, `offset` bytes further on.
pub(super) fn column<const N: usize>(
    heads: &[[Pointer; N]],
    which: usize,
    offset: u64,
) -> [Pointer; HEADS_MAX] {
    let mut all = [0; HEADS_MAX];
    all.iter_mut().zip(heads).for_each(|(to, head)| *to = head[which] + offset);
    all
}

fn table(planes: &[Pointer]) -> [Pointer; UNITS_MAX] {
    let mut all = [0; UNITS_MAX];
    all[..planes.len()].copy_from_slice(planes);
    all
}
