//! What the CPU reaches: a pool of threads, memory to measure on, ceilings, attention kernels beside them.

use anyhow::Result;
use headinfer_core::cpu::kernels::{Isa, ceiling};
use headinfer_core::cpu::measure::{Field, HeadShape, PrefillLoad};
use headinfer_core::units::{Bytes, GIB, MIB};
use rayon::ThreadPool;
use serde::Serialize;

use crate::error::{Exit, Failure};
use crate::machine;

/// Threads as the CPU backend has them; `None` means one per core.
///
/// # Errors
/// When the system refuses the threads.
pub(crate) fn pool(threads: Option<u16>) -> Result<ThreadPool> {
    // As the backend's: attention keeps its blocks on the stack.
    const STACK: usize = 8 << 20;
    let threads = threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build();
    Ok(pool.map_err(|e| Failure::new(Exit::Failed, "cannot start threads to measure with").because(e))?)
}

/// Memory to measure on, filled by the current pool: `wanted` bytes, but no more than a sixteenth of what is available,
/// nor than 4 GiB, of which the largest cache of today holds a tenth.
///
/// # Errors
/// When the system refuses the memory.
pub(crate) fn field(wanted: u64) -> Result<Field> {
    let bytes = wanted.min(machine::available_memory() / 16).clamp(64 * MIB, 4 * GIB);
    let refused =
        |e| Failure::new(Exit::Failed, format!("cannot map {} to measure on", Bytes(bytes))).because(e);
    Ok(Field::new(bytes as usize).map_err(refused)?)
}

/// What no kernel can pass, with all threads of the pool it was measured in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ceilings {
    /// f32 multiply-adds as two operations each, FLOP/s.
    pub(crate) fma_flops: f64,
    /// Reading memory, bytes/s.
    pub(crate) read_bytes_s: f64,
}

impl Ceilings {
    /// Measures in the current pool, once.
    pub(crate) fn measure(field: &Field) -> Self {
        let isa = Isa::detect();
        Self { fma_flops: ceiling::fma_flops(isa), read_bytes_s: field.read_bytes_s(isa) }
    }
}

/// Attention kernels at one shape of heads, each measured in turns with its ceiling: medians.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attention {
    pub(crate) head_dim: usize,
    /// Query heads per KV head.
    pub(crate) group: usize,
    pub(crate) prefill_gflops: f64,
    /// f32 multiply-adds in the turns between.
    pub(crate) prefill_peak_gflops: f64,
    pub(crate) prefill_of_peak: f64,
    /// Least and largest ratio of a turn.
    pub(crate) prefill_of_peak_spread: (f64, f64),
    pub(crate) decode_gb_s: f64,
    /// Memory read in the turns between, the same memory.
    pub(crate) decode_read_gb_s: f64,
    pub(crate) decode_of_read: f64,
    pub(crate) decode_of_read_spread: (f64, f64),
}

/// KV heads of the decode measured, which share the field.
pub(crate) const KV_HEADS: usize = 8;
/// The prefill measured: a chunk of a layer over part of a tile.
pub(crate) const PREFILL: PrefillLoad = PrefillLoad { heads: KV_HEADS, tokens: 512, keys: 4096 };
/// Turns of kernel and ceiling.
const ROUNDS: usize = 5;

impl Attention {
    /// Measures both kernels in the current pool.
    pub(crate) fn measure(isa: Isa, field: &Field, shape: HeadShape) -> Self {
        let prefill = field.prefill_in_turns(isa, shape, PREFILL, ROUNDS);
        let decode = field.decode_in_turns(isa, shape, KV_HEADS, ROUNDS);
        Self {
            head_dim: shape.head_dim,
            group: shape.group,
            prefill_gflops: prefill.rate / 1e9,
            prefill_peak_gflops: prefill.ceiling / 1e9,
            prefill_of_peak: prefill.ratio,
            prefill_of_peak_spread: prefill.spread,
            decode_gb_s: decode.rate / 1e9,
            decode_read_gb_s: decode.ceiling / 1e9,
            decode_of_read: decode.ratio,
            decode_of_read_spread: decode.spread,
        }
    }
}
