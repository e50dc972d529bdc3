//! Whoever looks on sees where the copies of a step are.

use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::model::random::random_weights;
use headinfer_core::plan::{DeviceKind, Lane, Overrides, Plan, Request, Step};
use headinfer_core::watch::{Spot, Watch};
use headinfer_cuda::CudaOptions;

use crate::run::{has_gpu, open_plan, options};
use crate::support::{request, tiny};

#[test]
fn copies_are_seen_in_their_order_while_a_step_runs_and_never_after() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(6, 8, 8, 64);
    let overrides = Overrides {
        chunk: Some(64),
        tile: Some(256),
        heads_per_group: Some(1),
        resident_heads: Some(0),
        ..Overrides::default()
    };
    let request = Request { overrides, ..request(DeviceKind::Cuda, 2048) };
    let plan = Arc::new(Plan::new(&spec, &request).unwrap());
    // Kernels that do nothing for a while make steps long enough to be looked at.
    let slow = CudaOptions { delays: Some(3), ..options() };
    let mut cuda = open_plan(&plan, &Arc::new(random_weights(&spec, 1)), &slow);
    let watch = cuda.watch().expect("it can tell");
    let now = |watch: &Arc<dyn Watch>| [Lane::In, Lane::Out].map(|lane| watch.now(lane));
    assert_eq!(now(&watch), [None; 2]);
    cuda.fill_past(1900, 1).unwrap();
    for past in [1900, 1901, 1902] {
        let schedule = plan.schedule(Step { past, rows: 1, logit_rows: 1 });
        let of = |lane| schedule.commands.iter().filter(move |c| c.lane == lane);
        let order: Vec<Spot> = of(Lane::In).filter_map(|c| Spot::of(&c.op, &plan)).collect();
        cuda.submit(&schedule, &[1]).unwrap();
        let (mut seen, mut evicted) = (Vec::new(), 0);
        while let [Some(spot), out] = now(&watch) {
            seen.push(spot);
            evicted += usize::from(out.is_some());
        }
        cuda.logits().unwrap();
        assert_eq!(now(&watch), [None; 2], "nothing moves between steps");
        seen.dedup();
        let mut rest = order.iter();
        assert!(seen.iter().all(|spot| rest.any(|next| next == spot)), "{seen:?} is not an order of copies");
        assert!(seen.len() > 10 && evicted > 0, "only {} of {} heads were seen", seen.len(), order.len());
    }
    drop(cuda);
    assert_eq!(now(&watch), [None; 2]);
}
