//! The op `AttendHost` on the CPU: its ranges of pinned memory become slices, then core's kernel runs over them.

use std::sync::Arc;

use headinfer_core::cpu::kernels::{Isa, StateMut};
use headinfer_core::cpu::{HostKeys, HostRanges, attend_host};
use headinfer_core::plan::{Op, Operands, Plan, Role, Span, Step};

use crate::arena::Memories;

/// The work of `op`, an `AttendHost`, for the Host lane.
pub(crate) fn work(
    plan: &Arc<Plan>,
    memories: &Arc<Memories>,
    step: Step,
    op: &Op,
) -> Box<dyn FnOnce() + Send> {
    let Op::AttendHost { layer, .. } = *op else { unreachable!("the Host lane runs no other op") };
    let (operands, plan, memories) = (plan.operands(&step, op), plan.clone(), memories.clone());
    Box::new(move || run(&plan, &memories, &step, layer, &operands))
}

fn run(plan: &Plan, memories: &Memories, step: &Step, layer: usize, operands: &Operands) {
    let spans = |role| operands.as_slice().iter().filter(move |o| o.role == role).map(|o| o.span);
    let first = |role| spans(role).next().expect("the op declares its state and its scratch");
    let rows = |span: Span| -> &[u16] { memories.host(span) };
    let bytes = |span: Span| -> &[u8] { memories.host(span) };
    let keys = match plan.coded() {
        true => HostKeys::Coded {
            units: spans(Role::Units).map(bytes).collect(),
            planes: spans(Role::Planes).map(bytes).collect(),
        },
        false => HostKeys::Plain(spans(Role::Key).map(rows).zip(spans(Role::Value).map(rows)).collect()),
    };
    let ranges = HostRanges {
        queries: spans(Role::HostQuery).map(|span| -> &[f32] { memories.host(span) }).collect(),
        keys,
        state: StateMut {
            max: memories.host(first(Role::StateMax)),
            sum: memories.host(first(Role::StateSum)),
            acc: memories.host(first(Role::StateAcc)),
        },
        scratch: memories.host(first(Role::Partials)),
    };
    attend_host(Isa::detect(), plan, step, layer, ranges);
}
