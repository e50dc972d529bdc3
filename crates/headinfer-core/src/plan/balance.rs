//! How many heads the CPU attends to where they lie: as many as keep it at work no longer than the link is with the
//! others.

use super::Plan;
use super::layout::{DECODE_ROWS, spread};
use super::op::{Heads, Step};

/// What a layer costs the CPU besides its bytes, seconds: the way of queries and states over the link, starting threads
/// and waiting for the last of them, and launches between.
const ROUND_S: f64 = 100e-6;
/// Share of its rate alone that the CPU keeps beside the link, where nobody measured it: on 16 cores of a Sapphire Rapids
/// 77 of 94 GB/s were seen.
const BESIDE: f64 = 0.8;

impl Plan {
    /// KV heads of `layer` whose past the CPU attends to in `step`: none in prefill, the last ones in decode.
    pub fn host_attended(&self, step: &Step, layer: usize) -> Heads {
        let all = self.layout.host_attended(layer, self.spec.kv_heads);
        if step.rows > DECODE_ROWS {
            return Heads { start: all.end, ..all };
        }
        let overrides = &self.request.overrides;
        if all.is_empty() || overrides.host_heads.is_some() || !overrides.balance_host {
            return all;
        }
        let counts = spread(self.balanced_host_heads(step), self.spec.layers);
        Heads { start: all.start.max(all.end - (counts[layer + 1] - counts[layer]).min(all.len())), ..all }
    }

    /// (layer, KV head) pairs that the CPU attends to in `step`.
    pub fn host_attended_heads(&self, step: &Step) -> usize {
        (0..self.spec.layers).map(|layer| self.host_attended(step, layer).len()).sum()
    }

    /// (layer, KV head) pairs with which CPU and link take equally long for a step, of those that live on the host.
    pub(super) fn balanced_host_heads(&self, step: &Step) -> usize {
        let (spec, machine) = (&self.spec, &self.request.machine);
        let row = (4 * spec.head_dim) as f64;
        let on_host = |layer| spec.kv_heads - self.layout.resident(layer).len();
        let heads: usize = (0..spec.layers).map(on_host).sum();
        let past = |layer| on_host(layer) as f64 * self.visible_past(step, layer) as f64 * row;
        let bytes: f64 = (0..spec.layers).map(past).sum();
        if heads == 0 || bytes == 0.0 {
            return 0;
        }
        let (link, host) = self.rates_together(step);
        let streamed: u64 =
            self.weight_fetches(step).into_iter().map(|block| self.layout.weight_block_bytes(block)).sum();
        // While the device multiplies by weights the next queries are not there, and the CPU waits.
        let weights = (spec.parameters() * spec.dtype.bytes() as u64) as f64;
        let waits = weights / machine.device_bytes_s + spec.layers as f64 * ROUND_S;
        let one = bytes / heads as f64;
        let balanced = ((bytes + streamed as f64) / link - waits) / (one / link + one / host);
        (balanced.max(0.0) as usize).min(heads)
    }

    /// Bytes per second of the link, and of K and V that the CPU attends to at this many rows.
    fn rates_together(&self, step: &Step) -> (f64, f64) {
        let machine = &self.request.machine;
        // A byte of K or V is half of an element that each query row multiplies once.
        let flop_a_byte = (step.rows * self.spec.group()) as f64;
        match machine.together {
            Some(rates) => (rates.link_bytes_s, rates.host_bytes_s.min(rates.host_flops / flop_a_byte)),
            None => (machine.link_bytes_s, BESIDE * machine.host_bytes_s / step.rows as f64),
        }
    }
}
