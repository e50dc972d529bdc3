//! Rows of the embedding, and the table of angles.

use cudarc::driver::sys::CUstream;

use super::{Kernels, Spread, blocks, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;
const HALF_MAX: usize = 128;

#[repr(C)]
struct IdsParams {
    from: Pointer,
    to: Pointer,
    count: u32,
}

#[repr(C)]
struct EmbedParams {
    ids: Pointer,
    table: Pointer,
    hidden: Pointer,
    width: u32,
}

#[repr(C)]
struct RopeParams {
    cos: Pointer,
    sin: Pointer,
    start: u64,
    scale: f64,
    inv_freq: [f64; HALF_MAX],
    half: u32,
    count: u32,
}

/// Angles of consecutive positions.
pub(crate) struct Angles<'a> {
    pub(crate) cos: Pointer,
    pub(crate) sin: Pointer,
    pub(crate) start: u64,
    pub(crate) rows: usize,
    /// Per pair of dimensions, at most 128.
    pub(crate) inv_freq: &'a [f64],
    pub(crate) scale: f64,
}

impl Kernels {
    /// Token ids from the host. By a kernel: a copy would queue with those of the other lanes, and what follows a copy
    /// on its stream, be it an event, may have to wait until their queue is empty.
    pub(crate) fn take_ids(
        &self,
        stream: CUstream,
        from: Pointer,
        (to, count): (Pointer, usize),
    ) -> Result<(), CudaError> {
        let mut params = IdsParams { from, to, count: count as u32 };
        let spread = Spread { grid: (blocks(count as u64, THREADS), 1), block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; `from` is pinned, and the addresses are the step's spans.
        unsafe { launch(self.take_ids, &spread, stream, "take_ids", &mut params) }
    }

    /// Rows `ids` of the table `[vocab, width]` to f32.
    pub(crate) fn embed(
        &self,
        stream: CUstream,
        (ids, rows): (Pointer, usize),
        table: Pointer,
        hidden: Pointer,
        width: usize,
    ) -> Result<(), CudaError> {
        let mut params = EmbedParams { ids, table, hidden, width: width as u32 };
        let spread = Spread { grid: (rows as u32, 1), block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.embed, &spread, stream, "embed", &mut params) }
    }

    /// Fills the rope table.
    pub(crate) fn rope_table(&self, stream: CUstream, angles: &Angles<'_>) -> Result<(), CudaError> {
        let half = angles.inv_freq.len();
        let mut inv_freq = [0.0; HALF_MAX];
        inv_freq[..half].copy_from_slice(angles.inv_freq);
        let count = angles.rows * half;
        let mut params = RopeParams {
            cos: angles.cos,
            sin: angles.sin,
            start: angles.start,
            scale: angles.scale,
            inv_freq,
            half: half as u32,
            count: count as u32,
        };
        let spread = Spread { grid: (blocks(count as u64, THREADS), 1), block: THREADS, shared: 0 };
        // SAFETY: as above.
        unsafe { launch(self.rope_table, &spread, stream, "rope_table", &mut params) }
    }
}
