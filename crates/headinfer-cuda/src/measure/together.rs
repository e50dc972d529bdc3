//! What the link and the CPU reach while both read the host's memory.

use std::time::Instant;

use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::measure::{Decode, HeadShape};
use headinfer_core::plan::{DECODE_ROWS, Together};

use super::Bed;
use crate::OpenError;
use crate::handover::threads_beside;

/// Copies go on for about so long, and the CPU works meanwhile.
const SECONDS: f64 = 0.3;
/// Bytes of a copy, and how many there are at most: the driver takes no more ahead of the device.
const COPY: u64 = 32 << 20;
const COPIES_MAX: u64 = 512;
/// KV heads that the CPU attends to at once.
const HEADS: usize = 4;

impl Bed {
    /// Copies to the device from one half of the host's memory, at about `link_bytes_s`, and decode
    /// attention on all cores but one over the other half.
    ///
    /// # Errors
    /// [`OpenError`] when the device failed, or the system refuses threads.
    pub fn together(&mut self, group: usize, link_bytes_s: f64) -> Result<Together, OpenError> {
        let shape = HeadShape { head_dim: self.head_dim, group };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads_beside()).build();
        let refused = |error| OpenError::Threads(std::io::Error::other(error));
        let pool = pool.map_err(refused)?;
        let (link_bytes_s, host_bytes_s) = self.round(&pool, shape, 1, link_bytes_s)?;
        let (_, of_many_rows) = self.round(&pool, shape, DECODE_ROWS, link_bytes_s)?;
        Ok(Together { link_bytes_s, host_bytes_s, host_flops: of_many_rows * (DECODE_ROWS * group) as f64 })
    }

    /// Bytes per second of the link and of the CPU.
    fn round(
        &mut self,
        pool: &rayon::ThreadPool,
        shape: HeadShape,
        tokens: usize,
        link_bytes_s: f64,
    ) -> Result<(f64, f64), OpenError> {
        self.context.enter()?;
        let bytes = COPY.min(self.half);
        let count = self.half / bytes;
        let copies = ((SECONDS * link_bytes_s / bytes as f64) as u64).clamp(1, COPIES_MAX);
        let (lane, [begin, end, _]) = (&self.lanes[0], &self.marks);
        let field: &[u16] = self.memories.host(self.host(self.half, self.half));
        let mut decode = Decode::new(field, shape, HEADS, tokens);
        lane.record(begin)?;
        for at in (0..copies).map(|i| i % count * bytes) {
            self.memories.copy(self.host(at, bytes), self.device(at, bytes), lane.raw())?;
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
