//! What measurements stand on: a synthetic past is what the law says, and rates leave no memory behind.

use std::sync::Arc;

use headinfer_core::backend::Backend;
use headinfer_core::model::random::random_weights;
use headinfer_core::model::synthetic::{Half, SyntheticKv};
use headinfer_core::plan::{DeviceKind, KvFormat, Overrides, Plan, Request};
use headinfer_cuda::measure::{Attended, Bed, Rates, Way};
use headinfer_cuda::probe;

use crate::run::{has_gpu, open_plan, options};
use crate::support::{request, tiny};

#[test]
fn a_synthetic_past_has_the_bytes_of_its_law_wherever_it_is_kept() {
    if !has_gpu() {
        return;
    }
    let spec = tiny(2, 4, 2, 72);
    let (rows, seed) = (801, 7);
    for kv in KvFormat::EXACT {
        let overrides = Overrides {
            tile: Some(256),
            heads_per_group: Some(1),
            ring_slots: Some(1),
            resident_heads: Some(1),
            kv,
            ..Overrides::default()
        };
        let request = Request { overrides, ..request(DeviceKind::Cuda, 900) };
        let plan = Arc::new(Plan::new(&spec, &request).unwrap());
        let mut cuda = open_plan(&plan, &Arc::new(random_weights(&spec, 0)), &options());
        cuda.fill_past(rows, seed).unwrap();
        let mut got = vec![0; rows * plan.kv_bytes_per_token() as usize];
        cuda.read_rows(0..rows, rows, &mut got).unwrap();
        cuda.read_rows(7..7, rows, &mut []).unwrap();
        for (index, half) in got.chunks_exact(rows * spec.head_dim * 2).enumerate() {
            let law = SyntheticKv::new(seed, index / 2, [Half::Key, Half::Value][index % 2]);
            let expected: Vec<u8> =
                (0..(rows * spec.head_dim) as u64).flat_map(|i| law.value(i).to_le_bytes()).collect();
            assert!(half == expected, "{kv:?}: half {index}");
        }
    }
}

#[test]
fn rates_are_measured_in_memory_that_is_given_back() {
    if !has_gpu() {
        return;
    }
    let plan = Plan::new(&tiny(2, 4, 2, 64), &request(DeviceKind::Cuda, 4096)).unwrap();
    let before = probe(0).unwrap().free_bytes;
    let rates = Rates::measure(&plan, &options()).unwrap();
    let after = probe(0).unwrap().free_bytes;
    assert!(before.abs_diff(after) < 64 << 20, "{before} and {after} bytes free");
    for rate in [
        rates.attention_flops,
        rates.own_attention_flops,
        rates.gemm_flops,
        rates.link_in_bytes_s,
        rates.link_out_bytes_s,
        rates.link_both_bytes_s,
        rates.device_copy_bytes_s,
    ] {
        assert!(rate.is_finite() && rate > 0.0, "{rates:?}");
    }
}

#[test]
fn a_bed_measures_every_kind_of_shape() {
    if !has_gpu() {
        return;
    }
    let of = |tokens, past, own| Attended { tokens, kv_heads: 2, group: 3, past, tile: 512, own };
    let shapes =
        [of(100, 0, true), of(100, 1500, false), of(40, 700, true), of(1, 5000, false), of(9, 300, true)];
    let most = shapes.iter().map(|shape| shape.device_bytes(64)).max().unwrap();
    let mut bed = Bed::open(&options(), 64, most.max(8 << 20), 8 << 20).unwrap();
    for shape in &shapes {
        assert!(bed.attention(shape).unwrap() > 0.0, "{shape:?}");
    }
    for way in [Way::In, Way::Out, Way::Both] {
        assert!(bed.link(way, 1 << 20).unwrap() > 0.0, "{way:?}");
    }
    let together = bed.together(3, 1e9, 64 << 20).unwrap();
    let rates = [together.link_bytes_s, together.host_bytes_s, together.host_flops];
    assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0), "{together:?}");
}
