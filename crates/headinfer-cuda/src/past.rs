//! A past that nobody computed, by the law of `headinfer_core::model::synthetic`: made on the device where a head is
//! resident, and made there and copied out where it lives on the host, at the speed of the link.

use cudarc::driver::sys::CUstream;
use headinfer_core::model::synthetic::{Half, SyntheticKv};
use headinfer_core::plan::{Access, Memory, RegionId, Role, Span, UNIT};

use crate::error::CudaError;
use crate::exec::Executor;

/// Bytes of a bf16.
const WIDTH: u64 = 2;
const HALVES: [(Role, Half); 2] = [(Role::Key, Half::Key), (Role::Value, Half::Value)];

/// Writes `rows` rows of every head where its rows are kept; done when `stream` is. The ring is written over.
pub(crate) fn fill(x: &Executor, rows: usize, seed: u64, stream: CUstream) -> Result<(), CudaError> {
    let (plan, spec) = (&x.plan, &x.plan.spec);
    if plan.coded() {
        fill_units(x, rows, seed, stream)?;
    }
    for (layer, head) in (0..spec.layers).flat_map(|l| (0..spec.kv_heads).map(move |h| (l, h))) {
        if plan.coded() && head >= plan.layout().resident(layer).end {
            continue;
        }
        let operands = plan.past_operands(layer, head, rows);
        for (role, half) in HALVES {
            let law = SyntheticKv::new(seed, layer * spec.kv_heads + head, half);
            let mut first = 0;
            for operand in operands.as_slice().iter().filter(|o| o.role == role) {
                piece(x, law, first, operand.span, stream)?;
                first += operand.span.bytes / WIDTH;
            }
        }
    }
    Ok(())
}

/// Rows of one half of a head that lie together, the first element with index `first`.
fn piece(x: &Executor, law: SyntheticKv, first: u64, to: Span, stream: CUstream) -> Result<(), CudaError> {
    if to.memory == Memory::Device {
        let at = x.memories.pointer(to);
        return x.kernels.synthetic_kv(stream, law, first, at, to.bytes / WIDTH);
    }
    let ring = x.plan.layout().regions().iter().find(|r| r.id == RegionId::Ring);
    let ring = ring.expect("a plan with heads on the host has a ring").span;
    // A ring slot holds whole rows, so its size is a multiple of an element's.
    for done in (0..to.bytes).step_by(ring.bytes as usize) {
        let bytes = ring.bytes.min(to.bytes - done);
        let staged = Span { bytes, ..ring };
        let at = x.memories.pointer(staged);
        x.kernels.synthetic_kv(stream, law, first + done / WIDTH, at, bytes / WIDTH)?;
        x.memories.copy(staged, Span { offset: to.offset + done, bytes, ..to }, stream)?;
    }
    Ok(())
}

/// The rows of heads that lie coded on the host: whole units, a piece of a head at a time through a ring slot, and what
/// is left to the open unit.
fn fill_units(x: &Executor, rows: usize, seed: u64, stream: CUstream) -> Result<(), CudaError> {
    let (plan, spec) = (&x.plan, &x.plan.spec);
    let (units, piece) = (rows / UNIT, plan.layout().piece_rows() / UNIT);
    if units > 0 {
        let counts = plan.plane_counts_operand(0..units).as_slice()[0].span;
        x.kernels.clear_words(stream, x.memories.pointer(counts), units)?;
    }
    for (layer, head) in plan.heads_on_host() {
        let law = |half| SyntheticKv::new(seed, layer * spec.kv_heads + head, half);
        for first in (0..units).step_by(piece) {
            let some = first..units.min(first + piece);
            let o = plan.unit_fill_operands(layer, head, some.clone());
            // The host's memory may still be growing, and planes have no address before they are there.
            let ends = o.as_slice().iter().filter(|o| o.span.memory == Memory::Host);
            x.memories.host.wait(ends.map(|o| o.span.offset + o.span.bytes).max().unwrap_or(0))?;
            for (role, half) in HALVES {
                let (to, at) = (o.span(role, 0), (first * UNIT * spec.head_dim) as u64);
                x.kernels.synthetic_kv(stream, law(half), at, x.memories.pointer(to), to.bytes / WIDTH)?;
            }
            let heads = [[Role::Key, Role::Value].map(|role| x.memories.pointer(o.span(role, 0)))];
            let slot = x.memories.pointer(o.span(Role::Units, 0));
            x.pack(stream, &o, &heads, (slot, 0), some)?;
            x.memories.copy(o.span(Role::Units, 0), o.span(Role::UnitsTo, 0), stream)?;
        }
    }
    let open = plan.open_operands(0..rows % UNIT, Access::Write);
    // None where the rows end with a unit.
    let heads = plan.heads_on_host().take(open.spans(Role::OpenKey).count());
    for (k, (layer, head)) in heads.enumerate() {
        for (role, half) in [(Role::OpenKey, Half::Key), (Role::OpenValue, Half::Value)] {
            let law = SyntheticKv::new(seed, layer * spec.kv_heads + head, half);
            let (to, at) = (open.span(role, k), (units * UNIT * spec.head_dim) as u64);
            x.kernels.synthetic_kv(stream, law, at, x.memories.pointer(to), to.bytes / WIDTH)?;
        }
    }
    Ok(())
}
