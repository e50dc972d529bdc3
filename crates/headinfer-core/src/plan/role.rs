//! Byte ranges of an op, and what each is to it.

use super::region::Span;

/// How a range is used. A range that is updated in place is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Written, perhaps read first.
    Write,
}

/// What a range is to its op. Where an op has several of a role they come in the order the op states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Token ids.
    Ids,
    /// Cosines of the rows.
    Cos,
    /// Sines of the rows.
    Sin,
    /// Residual stream.
    Hidden,
    /// Normalised rows.
    Normed,
    /// Projection or MLP scratch.
    Scratch,
    /// Queries, per head.
    Query,
    /// Queries for the CPU, per head.
    HostQuery,
    /// Keys to read or append, per head (fetch and evict: per piece).
    Key,
    /// Values, likewise.
    Value,
    /// Keys of the step's own rows to attend, per head; past ones are `Key`.
    OwnKey,
    /// Values, likewise.
    OwnValue,
    /// Coded units to read, per head (and per piece of the store): K half, V half of each.
    Units,
    /// Where coded units go, likewise.
    UnitsTo,
    /// Planes of units, of all heads: per piece of the store `[unit][plane]`.
    Planes,
    /// Planes taken of the units, u32.
    PlaneCounts,
    /// 1 + the number of a unit that had no plane left, u32.
    PackFault,
    /// Keys of the open unit to read, per head.
    OpenKey,
    /// Values, likewise.
    OpenValue,
    /// Where a copy goes: keys.
    KeyTo,
    /// Where a copy goes: values.
    ValueTo,
    /// Running maxima.
    StateMax,
    /// Running sums.
    StateSum,
    /// Accumulators.
    StateAcc,
    /// A state to merge from: max.
    FromMax,
    /// A state to merge from: sum.
    FromSum,
    /// A state to merge from: accumulator.
    FromAcc,
    /// Partial states in flight.
    Partials,
    /// Attention output.
    AttnOut,
    /// Logits.
    Logits,
    /// A layer's weights, resident or in their slot; or a part of any block on its way into a slot.
    LayerWeights,
    /// The embedding: on the device when resident, on the host when a GPU streams weights.
    Embedding,
    /// The final norm, when copied to the device.
    FinalNorm,
    /// A block of the output head, resident or in its slot.
    HeadWeights,
    /// A part of a block of weights on the host, when a GPU streams them.
    HostWeights,
    /// A tensor's place, to be filled when a backend opens.
    Tensor,
    /// Token ids on the host, on their way to a GPU.
    HostIds,
    /// Logits on the host, copied from a GPU.
    HostLogits,
    /// Workspace of a GPU's matrix products.
    Workspace,
}

/// A byte range and its use by an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// What it is to the op.
    pub role: Role,
    /// How it is used.
    pub access: Access,
    /// Where it lies.
    pub span: Span,
}

/// All ranges of one op.
#[derive(Clone, Debug, Default)]
pub struct Operands(Vec<Operand>);

impl Operands {
    /// The ranges in the op's order.
    pub fn as_slice(&self) -> &[Operand] {
        &self.0
    }

    /// Adds a range; an empty one is left out.
    pub fn push(&mut self, role: Role, access: Access, span: Span) {
        if span.bytes > 0 {
            self.0.push(Operand { role, access, span });
        }
    }

    pub(super) fn read(&mut self, role: Role, span: Span) {
        self.push(role, Access::Read, span);
    }

    pub(super) fn write(&mut self, role: Role, span: Span) {
        self.push(role, Access::Write, span);
    }
}
