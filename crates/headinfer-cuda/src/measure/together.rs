//! What the link and the CPU reach while both read the host's memory.

use std::time::Instant;

use cudarc::driver::sys;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::measure::{Decode, HeadShape};
use headinfer_core::plan::{DECODE_ROWS, Together};

use super::Bed;
use crate::OpenError;
use crate::error::Named;
use crate::handover::threads_beside;
use crate::slab::HostSlab;

/// Copies go on for about so long, and the CPU works meanwhile.
const SECONDS: f64 = 0.3;
/// Bytes of a copy, and how many there are at most: the driver takes no more ahead of the device.
const COPY: u64 = 32 << 20;
const COPIES_MAX: u64 = 512;
/// Bytes of host memory at most, a half for the link and one for the CPU: many times what the caches of a large server
/// hold, which gave the CPU 168 GB/s beside the link where memory had 90 left.
const FIELD_MAX: u64 = 4 << 30;
/// KV heads that the CPU attends to at once.
const HEADS: usize = 4;

impl Bed {
    /// Copies to the device from one half of some pinned memory, at about `link_bytes_s`, and decode
    /// attention on all cores but one over the other half. At most `host_bytes` are taken for it, and freed.
    ///
    /// # Errors
    /// [`OpenError`] when the device failed, or the system refuses memory or threads.
    pub fn together(
        &mut self,
        group: usize,
        link_bytes_s: f64,
        host_bytes: u64,
    ) -> Result<Together, OpenError> {
        let shape = HeadShape { head_dim: self.head_dim, group };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads_beside()).build();
        let refused = |error| OpenError::Threads(std::io::Error::other(error));
        let pool = pool.map_err(refused)?;
        self.context.enter()?;
        let bytes = self.copy_bytes();
        let field = HostSlab::new(host_bytes.clamp(2 * bytes, FIELD_MAX) / (2 * bytes) * 2 * bytes, false)?;
        // A copy stays within what was pinned together, and pieces are multiples of a copy.
        for at in (0..field.bytes()).step_by(bytes as usize) {
            let from = self.memories.pointer(self.device(at % self.half / bytes * bytes, bytes));
            // SAFETY: both ranges are inside their memories, which outlive the copy.
            unsafe { sys::cuMemcpyDtoH_v2(field.at(at, bytes).cast(), from, bytes as usize) }
                .result()
                .named("cuMemcpyDtoH")?;
        }
        let (link_bytes_s, host_bytes_s) = self.round(&pool, &field, shape, 1, link_bytes_s)?;
        let (_, of_many_rows) = self.round(&pool, &field, shape, DECODE_ROWS, link_bytes_s)?;
        Ok(Together { link_bytes_s, host_bytes_s, host_flops: of_many_rows * (DECODE_ROWS * group) as f64 })
    }

    /// Bytes of a copy: a power of two, so that pieces of pinned memory are multiples of it.
    fn copy_bytes(&self) -> u64 {
        COPY.min(1 << self.half.ilog2())
    }

    /// Bytes per second of the link and of the CPU.
    fn round(
        &mut self,
        pool: &rayon::ThreadPool,
        field: &HostSlab,
        shape: HeadShape,
        tokens: usize,
        link_bytes_s: f64,
    ) -> Result<(f64, f64), OpenError> {
        let half = field.bytes() / 2;
        let bytes = self.copy_bytes();
        let count = half / bytes;
        let copies = ((SECONDS * link_bytes_s / bytes as f64) as u64).clamp(1, COPIES_MAX);
        let (lane, [begin, end, _]) = (&self.lanes[0], &self.marks);
        // SAFETY: inside the slab, whole, and only read from here on; bf16 is any bits.
        let keys =
            unsafe { std::slice::from_raw_parts(field.at(half, half).cast::<u16>(), half as usize / 2) };
        let mut decode = Decode::new(keys, shape, HEADS, tokens);
        lane.record(begin)?;
        for at in (0..copies).map(|i| i % count * bytes) {
            let to = self.memories.pointer(self.device(at % self.half / bytes * bytes, bytes));
            // SAFETY: as above; the lane is waited for before the slab goes.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, field.at(at, bytes).cast(), bytes as usize, lane.raw()) }
                .result()
                .named("cuMemcpyHtoDAsync")?;
        }
        lane.record(end)?;
        let begun = Instant::now();
        let mut rates = Vec::new();
        while rates.is_empty() || begun.elapsed().as_secs_f64() < SECONDS {
            rates.push(pool.install(|| decode.bytes_s(Isa::detect())));
        }
        lane.synchronize()?;
        let link = (copies * bytes) as f64 / end.since(begin)?.as_secs_f64().max(1e-9);
        Ok((link, headinfer_core::cpu::measure::median(&rates)))
    }
}
