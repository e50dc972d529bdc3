//! Every byte that will be allocated: regions of device and host memory, and where things lie inside them.
//!
//! The only code that turns shapes into bytes.

use super::choose::DeviceKind;
use super::format::{KvFormat, UNIT};
use super::op::{Heads, Lane, WeightBlock};
use super::region::{Memory, Region, RegionId, Span};
use crate::dtype::DType;
use crate::model::spec::{LayerTensor, ModelSpec, TensorId};
use crate::units::MIB;

/// Keys before which attention updates its running state; tiles and splits are multiples of it.
pub const BLOCK: usize = 64;
/// Decode cuts a head's tokens at multiples of this, whatever the tile.
pub const SPLIT: usize = 256;
/// Steps of at most this many rows decode (split KV, host attention); longer ones prefill.
pub const DECODE_ROWS: usize = 16;
/// Splits a decode attention keeps in flight.
pub const SPLITS_IN_FLIGHT: usize = 64;
/// Workspace of a GPU's matrix products: what cuBLASLt's documentation advises for its largest devices.
pub const GEMM_WORKSPACE: u64 = 32 * MIB;
/// Rows that lie together in the store of a GPU's head, where a tile is a multiple of them: as the prefill goes on the
/// host's memory is pinned in steps of these, and copies of as many rows of 64 elements are no slower than longer ones.
pub(super) const STORE_PIECE: usize = 16384;
/// Steps that a GPU's host may be ahead of it: each has its own place for token ids.
pub const STEPS_IN_FLIGHT: usize = 2;
/// Copies that a streamed block of weights is cut into, so that KV tiles need not wait for all of it.
pub const WEIGHT_PARTS: usize = 16;
/// Blocks of the output head, give or take one, where a layer's size does not ask for more.
const HEAD_BLOCKS: usize = 4;
/// Rows of a block of the output head are a multiple of this: its columns of the logits stay aligned.
const HEAD_ROWS: usize = 16;
/// Of so many halves one may need a plane. The KV of models measured so far needs none: what does has exponents spread
/// over more than 13 steps in hundreds of values of a head's 256 rows.
const HALVES_OF_PLANE: usize = 16;
/// A unit has at least these planes, so that K and V of one odd head fit a small model too.
const PLANES_MIN: usize = 2;
/// Bytes from one flag to the next: a cache line, so that whoever watches one is not disturbed by another.
const FLAG_BYTES: u64 = 64;
/// Offsets of regions are multiples of this many bytes.
const ALIGN: u64 = 256;

/// Where the weights are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPlace {
    /// Where they are mapped: the CPU's memory is the host's. Costs no device memory.
    InPlace,
    /// Copied to the device once.
    Resident,
    /// Blocks of the output head and all layers but `kept` ones stream through `slots` slots; rows of the embedding
    /// are read where they are. Between steps the first slot holds the first layer, which is never kept.
    Streamed {
        /// Blocks held at once.
        slots: usize,
        /// Layers that stay on the device, fewer than all, spread over the model.
        kept: usize,
    },
}

impl WeightPlace {
    /// Layers that stay on the device while others stream.
    pub fn kept(self) -> usize {
        match self {
            WeightPlace::Streamed { kept, .. } => kept,
            WeightPlace::InPlace | WeightPlace::Resident => 0,
        }
    }
}

/// Everything the planner decides. A layout is a function of these and the model alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Knobs {
    /// What the plan is for.
    pub device: DeviceKind,
    /// Most tokens the KV cache holds.
    pub context: usize,
    /// Most new tokens of one step.
    pub chunk: usize,
    /// Tokens per tile, a multiple of [`SPLIT`].
    pub tile: usize,
    /// KV heads attended per launch and fetched per ring slot.
    pub heads_per_group: usize,
    /// Ring slots.
    pub ring_slots: usize,
    /// (layer, KV head) pairs that never leave the device, spread over the layers.
    pub resident_heads: usize,
    /// (layer, KV head) pairs that the CPU attends to in decode, spread over the layers.
    pub host_heads: usize,
    /// Most rows with logits of one step.
    pub logit_rows: usize,
    /// Rows of one MLP block.
    pub mlp_rows: usize,
    /// Where the weights are read from.
    pub weights: WeightPlace,
    /// Element type of activations between projections.
    pub activation: DType,
    /// How the host's store keeps K and V.
    pub kv: KvFormat,
}

/// Where one (layer, KV head) lives; the index is dense over its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Never leaves the device.
    Resident(usize),
    /// Lives on the host, streamed through the ring.
    Streamed(usize),
    /// Lives on the host, attended there in decode and streamed in prefill.
    HostAttend(usize),
}

/// Regions of both memories, and the arithmetic of addresses inside them.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(super) knobs: Knobs,
    regions: Vec<Region>,
    device_bytes: u64,
    host_bytes: u64,
    resident_before: Vec<usize>,
    host_before: Vec<usize>,
    host_attended: Vec<usize>,
    kept_before: Vec<usize>,
    weight_offsets: Vec<(LayerTensor, u64, u64)>,
    shared_offsets: Vec<(TensorId, u64, u64)>,
    layer_bytes: u64,
    shared_bytes: u64,
    slot_bytes: u64,
    head_row_bytes: u64,
    head_block: usize,
    vocab: usize,
}

impl Layout {
    /// Lays out `spec` under `knobs`. `weight_bytes(id, elements)` gives a tensor's stored size.
    pub fn new(spec: &ModelSpec, knobs: Knobs) -> Self {
        let mut layout = Self {
            regions: Vec::new(),
            device_bytes: 0,
            host_bytes: 0,
            resident_before: spread(knobs.resident_heads, spec.layers),
            host_before: Vec::new(),
            host_attended: Vec::new(),
            kept_before: spread(knobs.weights.kept(), spec.layers),
            weight_offsets: Vec::new(),
            shared_offsets: Vec::new(),
            layer_bytes: 0,
            shared_bytes: 0,
            slot_bytes: 0,
            head_row_bytes: (spec.hidden * spec.dtype.bytes()) as u64,
            head_block: 0,
            vocab: spec.vocab,
            knobs,
        };
        layout.place_heads(spec);
        layout.measure_weights(spec);
        layout.place_weights(spec);
        layout.place_activations(spec);
        layout.place_staging(spec);
        layout.place_kv(spec);
        layout
    }

    /// All regions, none empty, in address order per memory.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of all regions of `memory`, alignment included: what is allocated.
    pub fn bytes(&self, memory: Memory) -> u64 {
        match memory {
            Memory::Device => self.device_bytes,
            Memory::Host => self.host_bytes,
        }
    }

    /// Bytes of one region; 0 when the plan has no use for it.
    pub fn region_bytes(&self, id: RegionId) -> u64 {
        self.regions.iter().find(|r| r.id == id).map_or(0, |r| r.span.bytes)
    }

    /// Heads of `layer` that never leave the device; they come first.
    pub fn resident(&self, layer: usize) -> Heads {
        Heads { start: 0, end: self.resident_before[layer + 1] - self.resident_before[layer] }
    }

    /// Heads of `layer` that the CPU attends to in decode; they come last.
    pub fn host_attended(&self, layer: usize, kv_heads: usize) -> Heads {
        Heads { start: kv_heads - self.host_attended[layer], end: kv_heads }
    }

    /// Heads of `layer` that are streamed in every step.
    pub fn streamed(&self, layer: usize, kv_heads: usize) -> Heads {
        Heads { start: self.resident(layer).end, end: self.host_attended(layer, kv_heads).start }
    }

    /// (layer, KV head) pairs that the CPU attends to in decode.
    pub fn host_attended_total(&self) -> usize {
        self.host_attended.iter().sum()
    }

    /// The flag that `lane` raises, u32; only in plans of a GPU with heads that the CPU attends to.
    pub fn flag(&self, lane: Lane) -> Span {
        self.span(RegionId::HostFlags, lane.index() as u64 * FLAG_BYTES, 4)
    }

    /// Where one head lives.
    pub fn place(&self, layer: usize, head: usize, kv_heads: usize) -> Place {
        let resident = self.resident(layer);
        if head < resident.end {
            return Place::Resident(self.resident_before[layer] + head);
        }
        let dense = self.host_before[layer] + head - resident.end;
        if head >= self.host_attended(layer, kv_heads).start {
            Place::HostAttend(dense)
        } else {
            Place::Streamed(dense)
        }
    }

    /// Rows a head's store holds: the context, up to a whole piece.
    pub fn store_rows(&self) -> usize {
        self.knobs.context.next_multiple_of(self.piece_rows())
    }

    /// Consecutive rows that lie together in a head's store; a tile is a whole number of pieces.
    pub fn piece_rows(&self) -> usize {
        match self.knobs.device {
            DeviceKind::Cuda if self.knobs.tile.is_multiple_of(STORE_PIECE) => STORE_PIECE,
            // The CPU attends to a tile where it lies.
            DeviceKind::Cuda | DeviceKind::Cpu => self.knobs.tile,
        }
    }

    /// Host memory that the first `rows` rows of a context need, bytes from its start: all but the KV store, and the
    /// store's pieces up to the last of them.
    pub fn host_extent(&self, rows: usize) -> u64 {
        let Some(store) = self.regions.iter().find(|r| r.id == RegionId::HostKv) else {
            return self.host_bytes;
        };
        let (pieces, all) = (rows.div_ceil(self.piece_rows()), self.store_rows() / self.piece_rows());
        store.span.offset + store.span.bytes / all as u64 * pieces.min(all) as u64
    }

    /// Which of the kept layers `layer` is; `None` when it streams or all are resident.
    pub fn kept_layer(&self, layer: usize) -> Option<usize> {
        let before = self.kept_before[layer];
        (self.kept_before[layer + 1] > before).then_some(before)
    }

    /// Layers before `layer` that are not kept.
    pub(super) fn streamed_before(&self, layer: usize) -> usize {
        layer - self.kept_before[layer]
    }

    /// Bytes of one layer's weights as copied, tensors aligned.
    pub fn layer_weight_bytes(&self) -> u64 {
        self.layer_bytes
    }

    /// A part of a region.
    pub(super) fn span(&self, id: RegionId, offset: u64, bytes: u64) -> Span {
        let region = self.regions.iter().find(|r| r.id == id);
        let region = region.unwrap_or_else(|| panic!("the plan has no region {id:?}"));
        assert!(offset + bytes <= region.span.bytes, "{id:?}: {offset} + {bytes} > {}", region.span.bytes);
        Span { memory: region.span.memory, offset: region.span.offset + offset, bytes }
    }

    /// Blocks of the output head in the order in which they are computed, in every plan of a model alike: a product
    /// of another size may round otherwise.
    pub fn head_blocks(&self) -> impl Iterator<Item = WeightBlock> + use<> {
        let (block, vocab) = (self.head_block, self.vocab);
        (0..vocab)
            .step_by(block)
            .map(move |start| WeightBlock::Head { start, end: (start + block).min(vocab) })
    }

    /// The slot that a streamed block goes through: one after another, so that the last block of a step with logits
    /// leaves the first slot alone.
    pub fn weight_slot(&self, block: WeightBlock) -> usize {
        let WeightPlace::Streamed { slots, .. } = self.knobs.weights else { return 0 };
        let index = match block {
            WeightBlock::Layer(layer) => self.streamed_before(layer),
            WeightBlock::Head { start, .. } => {
                self.streamed_before(self.kept_before.len() - 1) + start / self.head_block
            }
        };
        index % slots
    }

    /// Bytes of a part of a block of weights, counted from the block's start; perhaps none.
    pub fn weight_part(&self, block: WeightBlock, part: usize) -> std::ops::Range<u64> {
        let bytes = self.weight_block_bytes(block);
        let cut = |part: usize| match part {
            WEIGHT_PARTS => bytes,
            part => bytes * part as u64 / WEIGHT_PARTS as u64 / ALIGN * ALIGN,
        };
        cut(part)..cut(part + 1)
    }

    /// Bytes of a block of weights as copied.
    pub fn weight_block_bytes(&self, block: WeightBlock) -> u64 {
        match block {
            WeightBlock::Layer(_) => self.layer_bytes,
            WeightBlock::Head { start, end } => (end - start) as u64 * self.head_row_bytes,
        }
    }

    /// Bytes of a row of the output head.
    pub(super) fn head_row_bytes(&self) -> u64 {
        self.head_row_bytes
    }

    /// Bytes of all weights that no layer owns, aligned.
    pub(super) fn shared_weight_bytes(&self) -> u64 {
        self.shared_bytes
    }

    /// Bytes from one slot of [`RegionId::LayerWeights`] to the next.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Where a copied weight lies: offset and bytes within [`RegionId::SharedWeights`], or within one layer
    /// of [`RegionId::LayerWeights`].
    pub fn weight(&self, id: TensorId) -> Option<(u64, u64)> {
        match id {
            TensorId::Layer(_, tensor) => {
                self.weight_offsets.iter().find(|(t, _, _)| *t == tensor).map(|(_, o, b)| (*o, *b))
            }
            shared => self.shared_offsets.iter().find(|(t, _, _)| *t == shared).map(|(_, o, b)| (*o, *b)),
        }
    }

    fn place_heads(&mut self, spec: &ModelSpec) {
        self.host_attended =
            spread(self.knobs.host_heads, spec.layers).windows(2).map(|w| w[1] - w[0]).collect();
        self.host_before = vec![0];
        for layer in 0..spec.layers {
            let resident = self.resident(layer).len();
            self.host_attended[layer] = self.host_attended[layer].min(spec.kv_heads - resident);
            self.host_before.push(self.host_before[layer] + spec.kv_heads - resident);
        }
    }

    /// Offsets and sizes of weights: the same in every plan of a model.
    fn measure_weights(&mut self, spec: &ModelSpec) {
        let (mut layer_end, mut shared_end) = (0u64, 0u64);
        let mut tensors = spec.tensors();
        // First, so that it can be on the device without the large ones.
        tensors.sort_by_key(|(id, _)| *id != TensorId::FinalNorm);
        for (id, [rows, cols]) in tensors {
            let bytes = rows as u64 * cols as u64 * spec.dtype.bytes() as u64;
            match id {
                TensorId::Layer(0, tensor) => {
                    self.weight_offsets.push((tensor, layer_end, bytes));
                    layer_end += bytes.next_multiple_of(ALIGN);
                }
                TensorId::Layer(..) => {}
                shared => {
                    self.shared_offsets.push((shared, shared_end, bytes));
                    shared_end += bytes.next_multiple_of(ALIGN);
                }
            }
        }
        (self.layer_bytes, self.shared_bytes) = (layer_end, shared_end);
        let least = spec.vocab.div_ceil(HEAD_BLOCKS).next_multiple_of(HEAD_ROWS);
        let most = (layer_end / self.head_row_bytes) as usize / HEAD_ROWS * HEAD_ROWS;
        let blocks = spec.vocab.div_ceil(most.max(least));
        // Two slots take turns: with an even number of blocks the next step's first layer is fetched beside the last.
        let blocks = blocks + (spec.layers + blocks) % 2;
        self.head_block = spec.vocab.div_ceil(blocks).next_multiple_of(HEAD_ROWS);
        let head = (self.head_block.min(spec.vocab)) as u64 * self.head_row_bytes;
        self.slot_bytes = layer_end.max(head).next_multiple_of(ALIGN);
    }

    fn place_weights(&mut self, spec: &ModelSpec) {
        use Memory::Device;
        match self.knobs.weights {
            WeightPlace::InPlace => {}
            WeightPlace::Resident => {
                let layers = self.layer_bytes * spec.layers as u64;
                self.add(RegionId::SharedWeights, "embedding and output head", Device, self.shared_bytes);
                self.add(RegionId::LayerWeights, "layer weights", Device, layers);
            }
            WeightPlace::Streamed { slots, kept } => {
                let norm = self.weight(TensorId::FinalNorm).map_or(0, |(_, bytes)| bytes);
                self.add(RegionId::SharedWeights, "final norm", Device, norm);
                self.add(RegionId::LayerWeights, "weight slots", Device, self.slot_bytes * slots as u64);
                self.add(RegionId::KeptLayers, "layers kept", Device, self.layer_bytes * kept as u64);
            }
        }
    }

    fn place_activations(&mut self, spec: &ModelSpec) {
        use Memory::Device;
        let k = self.knobs.clone();
        let (act, rows) = (k.activation.bytes() as u64, k.chunk as u64);
        let (hidden, q, kv) = (spec.hidden as u64, spec.q_dim() as u64, spec.kv_dim() as u64);
        let d = spec.head_dim as u64;
        let state_rows = (k.heads_per_group * k.chunk * spec.group()) as u64;
        self.add(RegionId::Ids, "token ids", Device, rows * 4);
        self.add(RegionId::RopeTable, "rope table", Device, rows * d * 4);
        self.add(RegionId::Hidden, "residual stream", Device, rows * hidden * 4);
        self.add(RegionId::Normed, "normalised rows", Device, rows * hidden * act);
        let mlp = k.mlp_rows as u64 * 2 * spec.intermediate as u64;
        self.add(RegionId::Scratch, "projections / MLP block", Device, (rows * (q + 2 * kv)).max(mlp) * act);
        self.add(RegionId::Query, "queries", Device, rows * q * act);
        let any_host = self.host_heads_total(spec) > 0;
        if any_host {
            let most = (0..spec.layers).map(|l| spec.kv_heads - self.resident(l).len()).max().unwrap_or(0);
            let new = rows + self.seam_rows() as u64;
            self.add(RegionId::KvNew, "new K/V rows", Device, most as u64 * 2 * new * d * 2);
            self.place_units(spec, most);
        }
        self.add(RegionId::State, "attention state", Device, state_rows * (d + 2) * 4);
        let scratch = decode_scratch_floats(spec, k.heads_per_group, k.chunk) * 4;
        self.add(RegionId::DecodeScratch, "decode partial states", Device, scratch);
        self.add(RegionId::AttnOut, "attention output", Device, rows * q * act);
        self.add(RegionId::Logits, "logits", Device, k.logit_rows as u64 * spec.vocab as u64 * 4);
        if k.device == DeviceKind::Cuda {
            self.add(RegionId::GemmWorkspace, "GEMM workspace", Device, GEMM_WORKSPACE);
        }
        let host_attended = self.host_attended.iter().copied().max().unwrap_or(0);
        if host_attended > 0 {
            let rows = (host_attended * k.chunk.min(DECODE_ROWS) * spec.group()) as u64;
            self.add(RegionId::HostQuery, "queries for the CPU", Memory::Host, rows * d * 4);
            self.add(RegionId::HostState, "states from the CPU", Memory::Host, rows * (d + 2) * 4);
            let scratch = decode_scratch_floats(spec, host_attended, k.chunk) * 4;
            self.add(RegionId::HostScratch, "host partial states", Memory::Host, scratch);
        }
    }

    fn place_kv(&mut self, spec: &ModelSpec) {
        let row = spec.head_dim as u64 * 2;
        let resident = self.knobs.resident_heads as u64;
        let rows = self.resident_rows();
        self.add(RegionId::ResidentKv, "resident KV", Memory::Device, resident * 2 * rows * row);
        if self.host_heads_total(spec) > 0 {
            let tile = self.head_rows_bytes(self.knobs.tile, spec.head_dim);
            let slots = (self.knobs.ring_slots * self.knobs.heads_per_group) as u64;
            self.add(RegionId::Ring, "KV ring", Memory::Device, slots * tile);
            let pieces = (self.store_rows() / self.piece_rows()) as u64;
            self.add(RegionId::HostKv, "KV store", Memory::Host, pieces * self.piece_bytes(spec));
        }
    }

    /// What a coded store asks for beside it, with `most` heads of a layer on the host.
    fn place_units(&mut self, spec: &ModelSpec, most: usize) {
        use Memory::Device;
        if !self.coded(spec) {
            return;
        }
        let (k, row) = (self.knobs.clone(), spec.head_dim as u64 * 4);
        let unit = self.head_rows_bytes(UNIT, spec.head_dim);
        self.add(RegionId::PackedNew, "new units", Device, (most * k.chunk.div_ceil(UNIT)) as u64 * unit);
        let open = (self.host_heads_total(spec) * UNIT) as u64 * row;
        self.add(RegionId::OpenKv, "K/V rows of open units", Device, open);
        let units = (self.store_rows() / UNIT) as u64;
        self.add(RegionId::PlaneCounts, "planes taken", Device, units * 4);
        self.add(RegionId::Unpacked, "unpacked tile", Device, (k.heads_per_group * k.tile) as u64 * row);
        self.add(RegionId::PackFault, "fault of packing", Memory::Host, 4);
    }

    /// Host memory that a GPU's copies start from or end in, besides the KV store.
    fn place_staging(&mut self, spec: &ModelSpec) {
        if self.knobs.device == DeviceKind::Cpu {
            return;
        }
        if let WeightPlace::Streamed { kept, .. } = self.knobs.weights {
            let bytes = self.shared_bytes + self.layer_bytes * (spec.layers - kept) as u64;
            self.add(RegionId::HostWeights, "weights to stream", Memory::Host, bytes);
        }
        if self.host_attended_total() > 0 {
            let flags = Lane::ALL.len() as u64 * FLAG_BYTES;
            self.add(RegionId::HostFlags, "flags of the lanes", Memory::Host, flags);
        }
        let ids = (STEPS_IN_FLIGHT * self.knobs.chunk) as u64 * 4;
        self.add(RegionId::HostIds, "token ids to copy", Memory::Host, ids);
        let logits = self.knobs.logit_rows as u64 * spec.vocab as u64 * 4;
        self.add(RegionId::HostLogits, "logits copied", Memory::Host, logits);
    }

    /// Whether the host's store is coded; it is not where there is none.
    pub fn coded(&self, spec: &ModelSpec) -> bool {
        self.knobs.kv != KvFormat::Bf16 && self.host_heads_total(spec) > 0
    }

    /// Rows of [`RegionId::KvNew`] before a step's own.
    pub(super) fn seam_rows(&self) -> usize {
        if self.knobs.kv == KvFormat::Bf16 { 0 } else { UNIT }
    }

    /// Bytes of K and V of some rows of a head in the store: whole units where it is coded.
    pub(super) fn head_rows_bytes(&self, rows: usize, head_dim: usize) -> u64 {
        (rows / UNIT * 2 * self.knobs.kv.half_bytes(head_dim)) as u64
    }

    /// Bytes of a piece of the store: K and V of all heads on the host, then planes.
    pub(super) fn piece_bytes(&self, spec: &ModelSpec) -> u64 {
        let heads = self.host_heads_total(spec) as u64;
        let planes = (self.piece_rows() / UNIT * self.planes(spec)) as u64;
        heads * self.head_rows_bytes(self.piece_rows(), spec.head_dim)
            + planes * self.knobs.kv.plane_bytes(spec.head_dim) as u64
    }

    /// Planes of each unit, for halves of any head of any layer.
    pub fn planes(&self, spec: &ModelSpec) -> usize {
        if !self.knobs.kv.has_planes() {
            return 0;
        }
        (2 * self.host_heads_total(spec)).div_ceil(HALVES_OF_PLANE).max(PLANES_MIN)
    }

    /// Rows a resident head holds.
    pub(super) fn resident_rows(&self) -> u64 {
        self.knobs.context.next_multiple_of(BLOCK) as u64
    }

    pub(super) fn host_heads_total(&self, spec: &ModelSpec) -> usize {
        spec.layers * spec.kv_heads - self.knobs.resident_heads
    }

    fn add(&mut self, id: RegionId, name: &'static str, memory: Memory, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let end = match memory {
            Memory::Device => &mut self.device_bytes,
            Memory::Host => &mut self.host_bytes,
        };
        self.regions.push(Region { id, name, span: Span { memory, offset: *end, bytes } });
        *end += bytes.next_multiple_of(ALIGN);
    }
}

/// Floats that a decode attention over `heads` KV heads keeps as partial states: (max, sum, accumulator) for
/// each row of each split in flight.
pub(super) fn decode_scratch_floats(spec: &ModelSpec, heads: usize, chunk: usize) -> u64 {
    let rows = (heads * chunk.min(DECODE_ROWS) * spec.group()) as u64;
    rows * (spec.head_dim as u64 + 2) * SPLITS_IN_FLIGHT as u64
}

/// Cumulative counts of `total` things spread over `layers` as evenly as whole numbers allow.
pub(super) fn spread(total: usize, layers: usize) -> Vec<usize> {
    (0..=layers).map(|l| total * l / layers).collect()
}
