//! What a step is made of: operations, the lanes that run them, and the events that order lanes.
//!
//! An op holds ids and row ranges, never pointers or sizes; `operands` turns one into bytes.

use super::layout::SPLIT;
use std::ops::Range;

/// A queue of commands that run in order. Lanes run beside one another; only events order them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// The device's arithmetic.
    Compute,
    /// Host to device copies.
    In,
    /// Device to host copies.
    Out,
    /// Attention on the CPU over KV where it lies.
    Host,
}

impl Lane {
    /// All lanes, in the order of their index.
    pub const ALL: [Lane; 4] = [Lane::Compute, Lane::In, Lane::Out, Lane::Host];

    /// Position in per-lane tables.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Name in traces and tables.
    pub fn name(self) -> &'static str {
        ["compute", "in", "out", "host"][self.index()]
    }
}

/// KV heads `[start, end)` of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    /// First KV head.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

impl Heads {
    /// Number of KV heads.
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.end == self.start
    }

    /// The heads one by one.
    pub fn iter(self) -> Range<usize> {
        self.start..self.end
    }
}

/// Where an [`Op::Attend`] finds its keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// A fetched tile in a ring slot: past rows.
    Slot {
        /// Tile index within the head.
        tile: usize,
        /// Ring slot that holds it.
        slot: usize,
        /// The step's own rows after them: the state of a group's last tile then never leaves the kernel.
        own: bool,
    },
    /// Past rows of the open unit, where the store is coded, and the step's own.
    Open,
    /// Heads that never leave the device: all past rows and the step's own.
    Resident,
    /// The step's own rows, fresh from the projection (causal).
    Own,
}

impl Part {
    /// Whether the step's own rows are among it. They come last.
    pub fn has_own(self) -> bool {
        !matches!(self, Part::Slot { own: false, .. })
    }
}

/// Weights that go through a slot together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightBlock {
    /// All of a layer.
    Layer(usize),
    /// Rows `[start, end)` of the output head.
    Head {
        /// First row.
        start: usize,
        /// One past the last.
        end: usize,
    },
}

/// Which RMSNorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Before attention.
    Attention,
    /// Before the MLP.
    Mlp,
}

/// One operation of a step of `rows` new tokens after `past`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Token ids to the residual stream; cos and sin for the rows' positions.
    Embed,
    /// A part of a block of weights into its slot.
    FetchWeights {
        /// Which block.
        block: WeightBlock,
        /// Which of its [`WEIGHT_PARTS`](super::WEIGHT_PARTS).
        part: usize,
        /// Weight slot it goes to.
        slot: usize,
    },
    /// Residual stream, normalised, ready for a projection.
    Norm {
        /// Which layer.
        layer: usize,
        /// Before attention or before the MLP.
        kind: NormKind,
    },
    /// Fused QKV projection, QK norm, rotation, and appending the new K and V rows.
    Project {
        /// Which layer.
        layer: usize,
    },
    /// Units that the step completes, of the heads that live on the host, are coded; rows after them become the open
    /// unit's. Only where the store is coded. That of the first layer has all planes of these units free again.
    Pack {
        /// Which layer.
        layer: usize,
    },
    /// New K and V rows of the heads that live on the host, or new units, device to host.
    Evict {
        /// Which layer.
        layer: usize,
    },
    /// One tile of a group of heads, host to ring slot.
    Fetch {
        /// Which layer.
        layer: usize,
        /// The group.
        heads: Heads,
        /// Tile index within each head.
        tile: usize,
        /// Ring slot it goes to.
        slot: usize,
    },
    /// A coded tile out of its ring slot, and open rows that belong to it behind it: as attention reads it.
    Unpack {
        /// Which layer.
        layer: usize,
        /// The group.
        heads: Heads,
        /// Tile index within each head.
        tile: usize,
        /// Ring slot that holds it.
        slot: usize,
    },
    /// Attention of the step's rows over one part of the KV of a group; carries (max, sum, accumulator).
    Attend {
        /// Which layer.
        layer: usize,
        /// The group.
        heads: Heads,
        /// Where the keys and values lie.
        part: Part,
        /// Start from an empty state.
        first: bool,
        /// Normalise and write the output.
        last: bool,
    },
    /// Attention over the past of heads that lie on the host, by the CPU, into a state on the host.
    AttendHost {
        /// Which layer.
        layer: usize,
        /// All host-attended heads of the layer.
        heads: Heads,
    },
    /// The host's state of a group becomes the carried state.
    Merge {
        /// Which layer.
        layer: usize,
        /// The group.
        heads: Heads,
    },
    /// Attention output projection, added to the residual stream.
    OutProject {
        /// Which layer.
        layer: usize,
    },
    /// SwiGLU MLP over a block of rows, added to the residual stream.
    Mlp {
        /// Which layer.
        layer: usize,
        /// First row of the block.
        start: usize,
        /// One past its last row.
        end: usize,
    },
    /// Some rows of the output head for the step's last rows; the first of a step normalises those.
    Logits {
        /// First row of the head: the first token it gives a logit to.
        start: usize,
        /// One past the last.
        end: usize,
    },
}

impl Op {
    /// Name in traces and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed => "embed",
            Op::FetchWeights { .. } => "fetch_weights",
            Op::Norm { .. } => "norm",
            Op::Project { .. } => "project",
            Op::Pack { .. } => "pack",
            Op::Evict { .. } => "evict",
            Op::Fetch { .. } => "fetch",
            Op::Unpack { .. } => "unpack",
            Op::Attend { .. } => "attend",
            Op::AttendHost { .. } => "attend_host",
            Op::Merge { .. } => "merge",
            Op::OutProject { .. } => "out_project",
            Op::Mlp { .. } => "mlp",
            Op::Logits { .. } => "logits",
        }
    }

    /// The streamed weights it computes with, if any.
    pub fn weight_block(&self) -> Option<WeightBlock> {
        match *self {
            Op::Norm { layer, .. }
            | Op::Project { layer }
            | Op::OutProject { layer }
            | Op::Mlp { layer, .. } => Some(WeightBlock::Layer(layer)),
            Op::Logits { start, end } => Some(WeightBlock::Head { start, end }),
            _ => None,
        }
    }
}

/// A one-shot event of a step: signalled by one command, waited for by any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Event(pub u32);

/// An op in a lane's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The queue it runs in.
    pub lane: Lane,
    /// What it does.
    pub op: Op,
    /// Must all have been signalled before it starts.
    pub waits: Vec<Event>,
    /// Signalled when it has finished.
    pub signals: Option<Event>,
}

/// The shape of a step: `rows` new tokens after `past` known ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Tokens whose K and V are already stored.
    pub past: usize,
    /// New tokens, at least 1.
    pub rows: usize,
    /// Logits are computed for this many of the last rows.
    pub logit_rows: usize,
}

impl Step {
    /// Position at which a step of a few rows leaves the split that its past ends in: own rows before it belong to
    /// that split, for all rows but the last are past to some other.
    pub fn split_end(&self) -> usize {
        self.past.next_multiple_of(SPLIT).min(self.past + self.rows - 1)
    }
}
