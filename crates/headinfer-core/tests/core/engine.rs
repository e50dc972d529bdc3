//! Sessions: progress, cancellation, refusals, and contexts too long for arithmetic.

use std::ops::ControlFlow;
use std::sync::Arc;

use headinfer_core::cpu::CpuOptions;
use headinfer_core::engine::generate::{Finish, Limits, generate};
use headinfer_core::engine::sample::{Sampler, Sampling};
use headinfer_core::engine::{Decoder, EngineError, Progress, Session};
use headinfer_core::model::random::random_weights;
use headinfer_core::plan::{DeviceKind, Lane, Overrides, PlacementMode, Plan};
use headinfer_core::trace::Trace;

use crate::run::{logits, open};
use crate::support::{llama_3_8b, request, tiny};

fn session(context: usize) -> Session {
    let spec = tiny(2, 4, 2, 16);
    let weights = Arc::new(random_weights(&spec, 5));
    let mut request = request(DeviceKind::Cpu, context);
    request.placement = PlacementMode::Offload;
    request.overrides = Overrides { chunk: Some(32), tile: Some(256), ..Overrides::default() };
    open(&spec, &weights, &request, &CpuOptions::default())
}

fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * i % 97) as u32).collect()
}

#[test]
fn progress_is_exact_and_ends_at_the_total() {
    let mut seen: Vec<Progress> = Vec::new();
    let mut session = session(200);
    let keep = &mut |p: Progress| {
        seen.push(p);
        ControlFlow::Continue(())
    };
    session.prefill(&ids(100), keep).unwrap();
    assert_eq!(seen.iter().map(|p| p.done).collect::<Vec<_>>(), [32, 64, 96, 100]);
    assert!(seen.iter().all(|p| p.total == 100));
    assert!(seen.last().unwrap().remaining.is_zero());
}

#[test]
fn a_cancelled_prefill_keeps_what_it_finished() {
    let (mut cancelled, mut whole) = (session(200), session(200));
    let stop =
        &mut |p: Progress| if p.done >= 64 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let Err(EngineError::Cancelled { done: 64, total: 100 }) = cancelled.prefill(&ids(100), stop) else {
        panic!("not cancelled after two chunks");
    };
    assert_eq!(cancelled.tokens(), &ids(100)[..64]);
    let rest = logits(&mut cancelled, &ids(100)[64..], 1);
    assert_eq!(rest, logits(&mut whole, &ids(100), 1));
}

#[test]
fn a_shared_prefix_serves_many_questions() {
    let mut shared = session(300);
    logits(&mut shared, &ids(96), 1);
    for question in 0..3u32 {
        let mut fresh = session(300);
        logits(&mut fresh, &ids(96), 1);
        let asked: Vec<u32> = (0..10).map(|i| i + question).collect();
        shared.rewind(96);
        assert_eq!(logits(&mut shared, &asked, 10), logits(&mut fresh, &asked, 10));
    }
}

#[test]
fn what_cannot_be_computed_is_refused_and_changes_nothing() {
    let mut session = session(100);
    logits(&mut session, &ids(50), 1);
    assert!(matches!(session.step(&[], 0), Err(EngineError::Empty)));
    assert!(matches!(session.step(&[97], 1), Err(EngineError::UnknownToken { id: 97, at: 0, vocab: 97 })));
    let quiet = &mut |_| ControlFlow::Continue(());
    let long = session.prefill(&ids(51), quiet).map(|_| ());
    assert!(matches!(long, Err(EngineError::ContextFull { need: 101, context: 100 })));
    assert_eq!(session.tokens().len(), 50);
}

#[test]
fn generation_stops_where_it_should() {
    let mut session = session(120);
    let logits = logits(&mut session, &ids(50), 1);
    let sampler = || Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, 97);
    let generate = |session: &mut Session, limits: &Limits, keep: &mut dyn FnMut(u32) -> ControlFlow<()>| {
        let mut decoder = Decoder::plain(session, &logits);
        generate(session, &mut decoder, &mut sampler(), limits, keep).unwrap()
    };
    let mut made = Vec::new();
    let mut limits = Limits { max_tokens: 8, stop_tokens: Vec::new() };
    let mut keep = |t| {
        made.push(t);
        ControlFlow::Continue(())
    };
    assert_eq!(generate(&mut session, &limits, &mut keep), Finish::Length);
    assert_eq!(made.len(), 8);
    session.rewind(50);
    limits.stop_tokens = vec![made[2]];
    let first = made.iter().position(|t| *t == made[2]).unwrap();
    let mut again = Vec::new();
    let mut keep = |t| {
        again.push(t);
        ControlFlow::Continue(())
    };
    let finish = generate(&mut session, &limits, &mut keep);
    assert_eq!((finish, again.as_slice()), (Finish::StopToken(made[2]), &made[..first]));
    session.rewind(50);
    limits = Limits { max_tokens: 1000, stop_tokens: Vec::new() };
    let finish = generate(&mut session, &limits, &mut |_| ControlFlow::Continue(()));
    assert_eq!(finish, Finish::ContextFull);
    assert_eq!(session.tokens().len(), 120);
}

#[test]
fn a_million_tokens_are_scheduled_without_a_hazard() {
    let spec = llama_3_8b();
    let mut request = request(DeviceKind::Cuda, 1 << 20);
    request.placement = PlacementMode::Offload;
    request.device_budget = 24 << 30;
    let plan = Arc::new(Plan::new(&spec, &request).unwrap());
    let chunk = plan.knobs().chunk;
    let mut session = Session::new(plan.clone(), Box::new(Trace::open(plan.clone())));
    let quiet = &mut |_| ControlFlow::Continue(());
    session.prefill(&vec![0; (1 << 20) - 1], quiet).unwrap();
    session.step(&[0], 1).unwrap();
    let bytes = session.backend().stats().bytes;
    // Every row goes to the host once; chunk i fetches the i chunks before it.
    let row = plan.kv_bytes_per_token();
    let chunks = (1u64 << 20) / chunk as u64;
    let fetched = (0..chunks).map(|i| i * chunk as u64 * row).sum::<u64>() + ((1 << 20) - 1) * row;
    assert_eq!(bytes[Lane::Out.index()], (1 << 20) * row);
    assert_eq!(bytes[Lane::In.index()], fetched);
}
