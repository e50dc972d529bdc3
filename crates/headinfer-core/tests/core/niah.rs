//! Needles are found at every depth, and every head of every layer has a part in it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use headinfer_core::backend::{Backend, BackendError, Stats, Timed};
use headinfer_core::cpu::{Cpu, CpuOptions};
use headinfer_core::engine::{EngineError, Session};
use headinfer_core::model::retrieval::{Retrieval, Sizes, retrieval_spec, retrieval_weights};
use headinfer_core::model::spec::{LayerTensor, ModelSpec, TensorId};
use headinfer_core::model::weights::Weights;
use headinfer_core::niah::{
    Cell, Event, Haystack, NiahError, Question, Request, ask, code_haystack, even_depths, run, text_haystack,
};
use headinfer_core::plan::{self, DeviceKind, Memory, Overrides, PlacementMode, Plan, Schedule};

use crate::run::{logits, open};
use crate::support;

const TILE: usize = 256;

fn offloaded(context: usize) -> plan::Request {
    let overrides = Overrides {
        chunk: Some(256),
        tile: Some(TILE),
        heads_per_group: Some(1),
        logit_rows: Some(1),
        ..Overrides::default()
    };
    let placement = PlacementMode::Offload;
    plan::Request { placement, overrides, ..support::request(DeviceKind::Cpu, context) }
}

fn wanted(context: usize, depths: usize) -> Request {
    Request { context, depths: even_depths(depths), seed: 3 }
}

fn quiet(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn cells(model: &Retrieval, request: &Request, chain: usize) -> Vec<Cell> {
    let weights = Arc::new(retrieval_weights(model.spec()));
    let haystack = code_haystack(model, request, chain).unwrap();
    let mut session = open(model.spec(), &weights, &offloaded(request.context), &CpuOptions::default());
    run(&mut session, &haystack, &mut quiet).unwrap()
}

fn default_model() -> Retrieval {
    Retrieval::of(&retrieval_spec(None).unwrap()).unwrap()
}

#[test]
fn every_depth_is_found_with_an_eighth_of_the_cache_on_the_device() {
    const CONTEXT: usize = 4096;
    let model = default_model();
    let weights = Arc::new(retrieval_weights(model.spec()));
    let haystack = code_haystack(&model, &wanted(CONTEXT, 11), 3).unwrap();
    let mut session = open(model.spec(), &weights, &offloaded(CONTEXT), &CpuOptions::default());
    let (plan, cells) = (session.plan().clone(), run(&mut session, &haystack, &mut quiet).unwrap());
    eprintln!("margins {:?}", cells.iter().map(|c| c.margin_min).collect::<Vec<_>>());
    assert!(
        plan.layout().bytes(Memory::Device) <= plan.kv_bytes_per_token() * CONTEXT as u64 / 8,
        "{} of {}",
        plan.layout().bytes(Memory::Device),
        plan.kv_bytes_per_token() * CONTEXT as u64
    );
    assert_eq!(cells.len(), 11);
    for (cell, depth) in cells.iter().zip(even_depths(11)) {
        assert_eq!((cell.depth, cell.correct, cell.answers.len()), (depth, true, 3), "{cell:?}");
        assert!(cell.margin_min > 10.0, "{cell:?}");
    }
}
