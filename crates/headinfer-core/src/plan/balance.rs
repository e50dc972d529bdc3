//! How many heads the CPU attends to where they lie: as many as keep it at work no longer than the link is with the
//! others, in a step of one row. A step of a few has the share that each of its rows would have alone: the CPU rounds
//! otherwise than a device, and guesses, which come along as further rows, must not change a bit.

use super::Plan;
use super::layout::{DECODE_ROWS, SPLIT, SPLITS_IN_FLIGHT, spread};
use super::op::{Heads, Step};

/// What a layer costs the CPU besides its bytes and the device's weights, seconds: the way of queries and states over the
/// link, starting threads and waiting for the last of them, launches between. So much was seen beside an H100.
pub const HOST_ROUND_S: f64 = 160e-6;
/// Share of its rate alone that the CPU keeps beside the link, where nobody measured it: on 16 cores of a Sapphire Rapids
/// 77 of 94 GB/s were seen.
const BESIDE: f64 = 0.8;

/// Heads of a group, as far as they are more than those of a ring slot: a launch takes no more.
const GROUP_MAX: usize = 32;

impl Plan {
    /// KV heads of `layer` whose past the CPU attends to in `step`: none in prefill, the last ones in decode.
    pub fn host_attended(&self, step: &Step, layer: usize) -> Heads {
        let all = self.layout.host_attended(layer, self.spec.kv_heads);
        if step.rows > DECODE_ROWS {
            return Heads { start: all.end, ..all };
        }
        if !self.host_share_varies() {
            return all;
        }
        let counts = spread(self.balanced_host_heads(step.past), self.spec.layers);
        Heads { start: all.start.max(all.end - (counts[layer + 1] - counts[layer]).min(all.len())), ..all }
    }

    /// Where a step of few rows after `past` must end, at the latest, for [`Plan::host_attended`] to be for each row what it
    /// would be alone: at the end of the split, where the share follows the past, else nowhere before the context.
    pub fn share_end(&self, past: usize) -> usize {
        let context = self.knobs().context;
        if self.host_share_varies() { ((past / SPLIT + 1) * SPLIT).min(context) } else { context }
    }

    fn host_share_varies(&self) -> bool {
        let overrides = &self.request.overrides;
        overrides.balance_host && overrides.host_heads.is_none() && self.layout.host_attended_total() > 0
    }

    /// The heads of [`Plan::host_attended`] in groups whose state is carried together: a step of few rows leaves room for
    /// that of more heads than a chunk does.
    pub fn host_groups(&self, step: &Step, layer: usize) -> impl Iterator<Item = Heads> + use<> {
        let (k, heads) = (self.knobs(), self.host_attended(step, layer));
        let room = k.heads_per_group * (k.chunk / step.rows).min(SPLITS_IN_FLIGHT);
        let size = room.min(k.heads_per_group.max(GROUP_MAX));
        let group = move |start| Heads { start, end: (start + size).min(heads.end) };
        heads.iter().step_by(size).map(group)
    }

    /// (layer, KV head) pairs that the CPU attends to in `step`.
    pub fn host_attended_heads(&self, step: &Step) -> usize {
        (0..self.spec.layers).map(|layer| self.host_attended(step, layer).len()).sum()
    }

    /// (layer, KV head) pairs with which CPU and link take equally long for a step of one row, of those that live on the
    /// host: the same for all steps whose past ends in the same split.
    pub(super) fn balanced_host_heads(&self, past: usize) -> usize {
        let (spec, machine) = (&self.spec, &self.request.machine);
        let step = &Step { past: past / SPLIT * SPLIT, rows: 1, logit_rows: 1 };
        let row = (4 * spec.head_dim) as f64 / self.knobs().kv.ratio(spec.head_dim);
        let on_host = |layer| spec.kv_heads - self.layout.resident(layer).len();
        let heads: usize = (0..spec.layers).map(on_host).sum();
        let stored = |layer| {
            let past = self.visible_past(step, layer);
            past - self.open_rows(past)
        };
        let past = |layer| on_host(layer) as f64 * stored(layer) as f64 * row;
        let bytes: f64 = (0..spec.layers).map(past).sum();
        if heads == 0 || bytes == 0.0 {
            return 0;
        }
        let (link, host) = self.rates_together();
        let streamed: u64 =
            self.weight_fetches(step).into_iter().map(|block| self.layout.weight_block_bytes(block)).sum();
        // While the device multiplies by weights the next queries are not there, and the CPU waits.
        let weights = (spec.parameters() * spec.dtype.bytes() as u64) as f64;
        let waits = weights / machine.device_bytes_s + spec.layers as f64 * HOST_ROUND_S;
        let one = bytes / heads as f64;
        let balanced = ((bytes + streamed as f64) / link - waits) / (one / link + one / host);
        (balanced.max(0.0) as usize).min(heads)
    }

    /// Bytes per second of the link, and of K and V that the CPU attends to for one row.
    fn rates_together(&self) -> (f64, f64) {
        let machine = &self.request.machine;
        // A byte of K or V is half of an element that each query row multiplies once.
        let (kv, d) = (self.knobs().kv, self.spec.head_dim);
        let flop_a_byte = self.spec.group() as f64 * kv.ratio(d) + kv.decode_flop_a_byte(d);
        match machine.together {
            Some(rates) => (rates.link_bytes_s, rates.host_bytes_s.min(rates.host_flops / flop_a_byte)),
            None => (machine.link_bytes_s, BESIDE * machine.host_bytes_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known::known_shape;
    use crate::model::spec::ModelSpec;
    use crate::plan::{
        DeviceKind, KvFormat, Machine, Overrides, PlacementMode, Request, Together, WeightsMode, hazard,
    };
    use crate::simulate::timeline;

    /// An H100 beside 16 cores.
    fn machine() -> Machine {
        let together = Together { link_bytes_s: 50e9, host_bytes_s: 77e9, host_flops: 1e12 };
        Machine {
            device_bytes_s: 2.8e12,
            link_bytes_s: together.link_bytes_s,
            host_bytes_s: together.host_bytes_s,
            together: Some(together),
            ..Machine::default_cuda()
        }
    }

    fn llama() -> ModelSpec {
        known_shape("llama-3-8b").unwrap()
    }

    fn plan(context: usize, weights: WeightsMode, overrides: Overrides) -> Plan {
        let request = Request {
            device: DeviceKind::Cuda,
            context,
            device_budget: 24 << 30,
            host_budget: 1 << 50,
            stored: None,
            guesses: false,
            placement: PlacementMode::Offload,
            weights,
            overrides,
            machine: machine(),
        };
        Plan::new(&llama(), &request).unwrap()
    }

    fn balanced(context: usize, weights: WeightsMode) -> Plan {
        plan(context, weights, Overrides { balance_host: true, ..Overrides::default() })
    }

    fn step(past: usize, rows: usize) -> Step {
        Step { past, rows, logit_rows: 1 }
    }

    /// When the last command ends, by the cost model.
    fn seconds(plan: &Plan, step: Step) -> f64 {
        let ends = timeline(plan, &plan.schedule(step)).into_iter().map(|t| t.end.as_secs_f64());
        ends.fold(0.0, f64::max)
    }

    #[test]
    fn without_being_asked_for_the_cpu_attends_to_nothing() {
        let plan = plan(1 << 17, WeightsMode::Auto, Overrides::default());
        assert_eq!(plan.host_attended_heads(&step(100_000, 1)), 0);
        assert_eq!(plan.layout().region_bytes(crate::plan::RegionId::HostFlags), 0);
    }

    #[test]
    fn no_other_share_is_much_faster() {
        // Long enough for what the cost model does not know, the rounds between device and CPU, to be little.
        use KvFormat::{Bf16, Bf16Packed};
        let (stay, stream) = (WeightsMode::Auto, WeightsMode::Stream);
        for (context, weights, kv) in [
            (1 << 17, stay, Bf16),
            (1 << 20, stay, Bf16),
            (1 << 18, stream, Bf16),
            (1 << 18, stay, Bf16Packed),
            (1 << 20, stay, Bf16Packed),
        ] {
            let step = step(context - 1, 1);
            let overrides = Overrides { kv, ..Overrides::default() };
            let balanced = Overrides { balance_host: true, ..overrides.clone() };
            let picked = seconds(&plan(context, weights, balanced), step);
            let forced = |n| {
                let overrides = Overrides { host_heads: Some(n), ..overrides.clone() };
                (seconds(&plan(context, weights, overrides), step), n)
            };
            let all = (0..=256).step_by(8).map(forced);
            let (best, n) = all.fold((f64::INFINITY, 0), |a, b| if b.0 < a.0 { b } else { a });
            assert!(
                picked <= 1.03 * best,
                "{context} {weights:?} {kv:?}: {picked} s, {best} s with {n} heads"
            );
        }
    }

    #[test]
    fn the_share_grows_with_the_past() {
        let plan = balanced(1 << 17, WeightsMode::Auto);
        let heads = |past, rows| plan.host_attended_heads(&step(past, rows));
        assert!(heads(100_000, 1) > heads(10_000, 1), "short pasts are not worth as many rounds");
        assert_eq!([heads(500, 1), heads(0, 1), heads(100_000, 17)], [0; 3]);
    }

    /// More rows are more work for the CPU and none for the link, and would be balanced with fewer heads. But then a row
    /// would be attended to by the CPU where it came alone, by the device where guesses came along, and rounded otherwise.
    #[test]
    fn a_row_among_others_has_the_share_that_it_has_alone() {
        let plan = balanced(1 << 17, WeightsMode::Auto);
        let mut shares = std::collections::BTreeSet::new();
        for past in (9_000..100_000).step_by(997) {
            let share = |past, rows| -> Vec<Heads> {
                (0..32).map(|layer| plan.host_attended(&step(past, rows), layer)).collect()
            };
            let end = plan.share_end(past);
            assert!(past < end && end <= past + SPLIT, "{end} after {past}");
            for rows in 1..=DECODE_ROWS.min(end - past) {
                let among = share(past, rows);
                assert!((past..past + rows).all(|alone| share(alone, 1) == among), "{rows} after {past}");
            }
            shares.insert(plan.host_attended_heads(&step(past, 1)));
        }
        assert!(shares.len() > 20, "the share hardly moves: {shares:?}");
    }

    #[test]
    fn a_share_that_is_given_ends_with_the_context() {
        let given = Overrides { host_heads: Some(40), ..Overrides::default() };
        for overrides in [given, Overrides::default()] {
            assert_eq!(plan(5000, WeightsMode::Auto, overrides).share_end(300), 5000);
        }
        assert_eq!(balanced(100_000, WeightsMode::Auto).share_end(99_999), 100_000);
    }

    #[test]
    fn steps_of_every_share_are_ordered() {
        let plan = balanced(1 << 16, WeightsMode::Stream);
        for rows in [1, 2, 5, 16, 17, 1024] {
            for past in [0, 600, 9000, 60_000] {
                let schedule = plan.schedule(step(past, rows));
                assert_eq!(hazard::check(&plan, &schedule), [], "{rows} rows after {past}");
            }
        }
    }

    #[test]
    fn heads_that_stay_on_the_device_are_not_the_cpus() {
        let overrides = Overrides { resident_heads: Some(200), balance_host: true, ..Overrides::default() };
        let plan = plan(1 << 14, WeightsMode::Stream, overrides);
        let step = step((1 << 14) - 1, 1);
        let heads = plan.host_attended_heads(&step);
        assert!(heads <= 56, "{heads}");
        for layer in 0..32 {
            assert!(plan.host_attended(&step, layer).start >= plan.layout().resident(layer).end);
        }
    }
}
