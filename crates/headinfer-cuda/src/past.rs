//! A past that nobody computed, by the law of `headinfer_core::model::synthetic`: made on the device where a head is
//! resident, and made there and copied out where it lives on the host, at the speed of the link.

use cudarc::driver::sys::CUstream;
use headinfer_core::model::synthetic::{Half, SyntheticKv};
use headinfer_core::plan::{Memory, RegionId, Role, Span};

use crate::error::CudaError;
use crate::exec::Executor;

/// Bytes of a bf16.
const WIDTH: u64 = 2;

/// Writes `rows` rows of every head where its rows are kept; done when `stream` is. The ring is written over.
pub(crate) fn fill(x: &Executor, rows: usize, seed: u64, stream: CUstream) -> Result<(), CudaError> {
    let (plan, spec) = (&x.plan, &x.plan.spec);
    for (layer, head) in (0..spec.layers).flat_map(|l| (0..spec.kv_heads).map(move |h| (l, h))) {
        let operands = plan.past_operands(layer, head, rows);
        for (role, half) in [(Role::Key, Half::Key), (Role::Value, Half::Value)] {
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
