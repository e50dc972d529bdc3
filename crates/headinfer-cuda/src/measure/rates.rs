//! The rates of one plan: what its floors are divided by.

use headinfer_core::plan::{Machine, Plan, Together};

use super::{Attended, Bed, Way, layer_products};
use crate::{CudaOptions, OpenError};

/// Memory to copy within, and half of it each way over the link; far larger than caches.
const COPIED: u64 = 512 << 20;
/// Past that attention is measured over, tokens at most.
const PAST_MAX: usize = 1 << 17;

/// What this device reaches at the shapes of a plan's steps, each rate alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// The device's name.
    pub device: String,
    /// Prefill attention over a past in tiles, FLOP/s.
    pub attention_flops: f64,
    /// Prefill attention of a chunk over itself, under the causal mask, FLOP/s.
    pub own_attention_flops: f64,
    /// A layer's products, FLOP/s.
    pub gemm_flops: f64,
    /// Copies to the device, bytes/s.
    pub link_in_bytes_s: f64,
    /// Copies from the device, bytes/s.
    pub link_out_bytes_s: f64,
    /// Each way while both run, bytes/s.
    pub link_both_bytes_s: f64,
    /// Bytes of one such copy: a head's tile.
    pub link_copy_bytes: u64,
    /// Link and CPU while both read the host's memory, where the plan gives heads to the CPU.
    pub together: Option<Together>,
    /// Copies within the device, bytes read and written per second.
    pub device_copy_bytes_s: f64,
    /// Device memory taken besides the memory measured on: the context, kernels, other processes.
    pub overhead_bytes: u64,
}

impl Rates {
    /// Measures in a few seconds, on memory that is freed before this returns: at most half a GiB each of device and host,
    /// or what one product of the plan takes where that is more; where the CPU takes part, 4 GiB of the host, but no more than
    /// the plan does. No backend may be open.
    ///
    /// # Errors
    /// [`OpenError`] when the device cannot be opened, fails, or has no memory, or the plan is of a kind that it does
    /// not run.
    pub fn measure(plan: &Plan, options: &CudaOptions) -> Result<Self, OpenError> {
        crate::backend::check(plan)?;
        let (spec, k) = (&plan.spec, plan.knobs());
        let products = layer_products(spec, k.chunk, k.mlp_rows);
        let past = k.tile.max(PAST_MAX / k.tile * k.tile);
        let heads = k.heads_per_group;
        let chunk = |past, own| Attended {
            tokens: k.chunk,
            kv_heads: heads,
            group: spec.group(),
            past,
            tile: k.tile,
            own,
        };
        let (over_past, over_own) = (chunk(past, false), chunk(0, true));
        let copied = COPIED.min(plan.device_bytes()).next_multiple_of(1 << 20);
        let tile_bytes = (k.tile * spec.head_dim * 4) as u64;
        let most = [
            copied,
            2 * tile_bytes,
            over_past.device_bytes(spec.head_dim),
            over_own.device_bytes(spec.head_dim),
        ];
        let most = most.into_iter().chain(products.iter().map(|(p, _)| p.device_bytes())).max();
        let mut bed = Bed::open(options, spec.head_dim, most.unwrap_or(copied), copied.max(2 * tile_bytes))?;
        let mut seconds = 0.0;
        for (product, times) in &products {
            seconds += times * bed.product(product)?;
        }
        let flop: f64 = products.iter().map(|(product, times)| times * product.flop()).sum();
        let link_in_bytes_s = bed.link(Way::In, tile_bytes)?;
        Ok(Self {
            device: bed.info().name.clone(),
            attention_flops: over_past.flop(spec.head_dim) / bed.attention(&over_past)?,
            own_attention_flops: over_own.flop(spec.head_dim) / bed.attention(&over_own)?,
            gemm_flops: flop / seconds,
            link_in_bytes_s,
            together: match plan.layout().host_attended_total() {
                0 => None,
                _ => Some(bed.together(spec.group(), link_in_bytes_s, plan.host_bytes())?),
            },
            link_out_bytes_s: bed.link(Way::Out, tile_bytes)?,
            link_both_bytes_s: bed.link(Way::Both, tile_bytes)?,
            link_copy_bytes: tile_bytes,
            device_copy_bytes_s: bed.device_copy()?,
            overhead_bytes: bed.overhead_bytes()?,
        })
    }

    /// The mean of two measurements, before and after the work they are held against.
    #[must_use]
    pub fn mean(self, other: &Self) -> Self {
        let mean = |a: f64, b: f64| (a + b) / 2.0;
        Self {
            attention_flops: mean(self.attention_flops, other.attention_flops),
            own_attention_flops: mean(self.own_attention_flops, other.own_attention_flops),
            gemm_flops: mean(self.gemm_flops, other.gemm_flops),
            link_in_bytes_s: mean(self.link_in_bytes_s, other.link_in_bytes_s),
            link_out_bytes_s: mean(self.link_out_bytes_s, other.link_out_bytes_s),
            link_both_bytes_s: mean(self.link_both_bytes_s, other.link_both_bytes_s),
            together: self.together.zip(other.together).map(|(a, b)| Together {
                link_bytes_s: mean(a.link_bytes_s, b.link_bytes_s),
                host_bytes_s: mean(a.host_bytes_s, b.host_bytes_s),
                host_flops: mean(a.host_flops, b.host_flops),
            }),
            device_copy_bytes_s: mean(self.device_copy_bytes_s, other.device_copy_bytes_s),
            overhead_bytes: self.overhead_bytes.max(other.overhead_bytes),
            ..self
        }
    }

    /// As the planner takes them. `host_bytes_s` is what the CPU reads, `device_overhead` what the driver takes.
    pub fn machine(&self, source: String, host_bytes_s: f64, device_overhead: u64) -> Machine {
        Machine {
            source,
            gemm_flops: self.gemm_flops,
            attention_flops: self.attention_flops,
            device_bytes_s: self.device_copy_bytes_s,
            link_bytes_s: self.link_in_bytes_s,
            host_bytes_s,
            device_overhead,
            together: self.together,
        }
    }
}
