//! Regions of memory and byte ranges inside them.

/// A memory that a plan allocates from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Memory {
    /// The GPU's, or the arena that plays it.
    Device,
    /// The host's.
    Host,
}

/// A byte range of one memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Which memory.
    pub memory: Memory,
    /// From its start.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

impl Span {
    /// Whether two spans share a byte.
    pub fn overlaps(&self, other: &Span) -> bool {
        self.memory == other.memory
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// Names a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegionId {
    /// Final norm, embedding, output head, when copied to the device; only the first when weights are streamed.
    SharedWeights,
    /// All layers, when resident; slots for a block of weights each, when streamed.
    LayerWeights,
    /// Layers that stay, when others are streamed.
    KeptLayers,
    /// Token ids of the step, u32 `[chunk]`.
    Ids,
    /// cos then sin, f32 `[chunk, head_dim / 2]` each.
    RopeTable,
    /// Residual stream, f32 `[chunk, hidden]`.
    Hidden,
    /// Normalised rows, activation type `[chunk, hidden]`.
    Normed,
    /// Projections before they are taken apart, or one row block of the MLP: the two never live together.
    Scratch,
    /// Rotated queries, activation type `[kv_heads][chunk, group, head_dim]`.
    Query,
    /// New rows of the heads that live on the host, bf16 `[head][K | V][chunk, head_dim]`; where the store is coded
    /// `[head][K | V][UNIT + chunk, head_dim]`: those of the open unit end where the step's own begin.
    KvNew,
    /// Units that a step completes, coded, of one layer's heads on the host: `[head][unit][K half | V half]`.
    PackedNew,
    /// Rows past the last whole unit, of all heads on the host, bf16 `[layer, KV head][K | V][UNIT, head_dim]`.
    OpenKv,
    /// Planes taken of each unit, u32 `[unit]`.
    PlaneCounts,
    /// A group's tile out of its ring slot, bf16 `[head][K tile | V tile]`.
    Unpacked,
    /// Carried attention state of one group, f32: max, sum, accumulator.
    State,
    /// Partial states of a decode attention in flight, f32.
    DecodeScratch,
    /// Attention output, activation type `[chunk, q_heads * head_dim]`.
    AttnOut,
    /// Workspace of matrix products on a GPU.
    GemmWorkspace,
    /// f32 `[logit_rows, vocab]`.
    Logits,
    /// Ring slots, bf16 `[slot][head][K tile | V tile]`, or coded `[slot][head][unit][K half | V half]`.
    Ring,
    /// Heads that never leave the device, bf16 `[head][K rows | V rows]`.
    ResidentKv,
    /// The KV store, bf16 `[piece][layer][kv_head][K rows | V rows]`: it fills from its start to its end. The last
    /// of the host's regions. Coded, a piece is `[layer][kv_head][unit][K half | V half]`, then `[unit][plane]`.
    HostKv,
    /// What a GPU streams of the weights: copies need memory that is pinned. Shared ones, then each layer's that is
    /// not kept.
    HostWeights,
    /// Token ids on their way to a GPU, u32 `[STEPS_IN_FLIGHT][chunk]`.
    HostIds,
    /// Logits on their way from a GPU, f32 `[logit_rows, vocab]`.
    HostLogits,
    /// Queries of host-attended heads, f32.
    HostQuery,
    /// States of host-attended heads, f32.
    HostState,
    /// Partial states of a host decode attention in flight, f32.
    HostScratch,
    /// 1 + the number of a unit that had no plane left, u32; 0 so far.
    PackFault,
    /// By lane, how often it has called on another that waits at a flag: where a GPU and the CPU work on one step.
    HostFlags,
}

/// A named range of one memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Which.
    pub id: RegionId,
    /// For people.
    pub name: &'static str,
    /// Where it lies.
    pub span: Span,
}
