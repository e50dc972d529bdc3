//! Measurements of this machine: a pool of threads, memory to measure on, ceilings.

use anyhow::Result;
use headinfer_core::cpu::kernels::{Isa, ceiling};
use headinfer_core::cpu::measure::Field;
use headinfer_core::units::{Bytes, GIB, MIB};
use rayon::ThreadPool;

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
