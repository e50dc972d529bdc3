//! What the CPU reaches: a pool of threads, memory to measure on, ceilings, attention kernels beside them.

use anyhow::Result;
use headinfer_core::cpu::kernels::{Isa, ceiling};
use headinfer_core::cpu::measure::{Field, HeadShape};
use headinfer_core::units::{Bytes, MIB};
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

/// Memory to measure on, far larger than caches where the machine has it, filled by the current pool.
///
/// # Errors
/// When the system refuses the memory.
pub(crate) fn field() -> Result<Field> {
    let bytes = (machine::available_memory() / 8).clamp(64 * MIB, 512 * MIB);
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
    /// Measures in the current pool.
    pub(crate) fn measure(field: &Field) -> Self {
        let isa = Isa::detect();
        Self { fma_flops: ceiling::fma_flops(isa), read_bytes_s: field.read_bytes_s(isa) }
    }

    /// The higher of each: other work on the machine can only lower them.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            fma_flops: self.fma_flops.max(other.fma_flops),
            read_bytes_s: self.read_bytes_s.max(other.read_bytes_s),
        }
    }
}

/// Attention kernels at one shape of heads.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attention {
    pub(crate) head_dim: usize,
    /// Query heads per KV head.
    pub(crate) group: usize,
    pub(crate) prefill_gflops: f64,
    pub(crate) prefill_of_peak: f64,
    pub(crate) decode_gb_s: f64,
    pub(crate) decode_of_read: f64,
}

/// Query rows and keys of the prefill measured.
pub(crate) const PREFILL: (usize, usize) = (512, 8192);
/// KV heads of the decode measured.
pub(crate) const KV_HEADS: usize = 8;

/// Measures both kernels at each shape, between two measurements of what they are held against.
pub(crate) fn attention(
    pool: &ThreadPool,
    field: &Field,
    shapes: &[HeadShape],
) -> (Vec<Attention>, Ceilings) {
    let isa = Isa::detect();
    let before = pool.install(|| Ceilings::measure(field));
    let kernels: Vec<(HeadShape, f64, f64)> = shapes
        .iter()
        .map(|shape| {
            let (rows, keys) = (PREFILL.0 * 4 / shape.group.min(4), PREFILL.1);
            let prefill = pool.install(|| field.prefill_flops(isa, *shape, rows, keys));
            (*shape, prefill, pool.install(|| field.decode_bytes_s(isa, *shape, KV_HEADS)))
        })
        .collect();
    let ceilings = before.or(pool.install(|| Ceilings::measure(field)));
    let attention = kernels.into_iter().map(|(shape, prefill, decode)| Attention {
        head_dim: shape.head_dim,
        group: shape.group,
        prefill_gflops: prefill / 1e9,
        prefill_of_peak: prefill / ceilings.fma_flops,
        decode_gb_s: decode / 1e9,
        decode_of_read: decode / ceilings.read_bytes_s,
    });
    (attention.collect(), ceilings)
}
