//! Weights as a plan moves them: where they lie when a backend opens, which blocks stream in a step, and the bytes of
//! each.

use super::Plan;
use super::choose::DeviceKind;
use super::layout::WeightPlace;
use super::op::{Step, WeightBlock};
use super::operands::Addresses;
use super::region::{RegionId, Span};
use super::role::{Operands, Role};
use crate::model::spec::TensorId;

impl Plan {
    /// Blocks that a step computes with and that a slot holds when weights stream, in its order.
    pub(super) fn weight_blocks(&self, step: &Step) -> Vec<WeightBlock> {
        let streamed = |layer: &usize| self.layout.kept_layer(*layer).is_none();
        let layers = (0..self.spec.layers).filter(streamed).map(WeightBlock::Layer);
        let head = self.layout.head_blocks().filter(|_| step.logit_rows > 0);
        layers.chain(head).collect()
    }

    /// Blocks that stream in a step, in order: all but the first layer, which is there, and then the first layer for
    /// the next step when its slot was taken. Empty when weights do not stream.
    pub(super) fn weight_fetches(&self, step: &Step) -> Vec<WeightBlock> {
        let WeightPlace::Streamed { .. } = self.knobs().weights else { return Vec::new() };
        let mut blocks = self.weight_blocks(step);
        let first = blocks.remove(0);
        if blocks.iter().any(|block| self.layout.weight_slot(*block) == self.layout.weight_slot(first)) {
            blocks.push(first);
        }
        blocks
    }

    /// Where a tensor's bytes are put when a backend opens, each a [`Role::Tensor`]; nowhere when it is read where it
    /// is mapped.
    pub fn weight_homes(&self, id: TensorId) -> Operands {
        let mut o = Operands::default();
        let Some((offset, bytes)) = self.layout.weight(id) else { return o };
        let (place, l) = (self.knobs().weights, &self.layout);
        let kept = match id {
            TensorId::Layer(layer, _) => l.kept_layer(layer),
            _ => None,
        };
        let streamed = matches!(place, WeightPlace::Streamed { .. }) && kept.is_none();
        if streamed && self.knobs().device == DeviceKind::Cuda {
            let base = match id {
                TensorId::Layer(layer, _) => self.host_block(WeightBlock::Layer(layer)),
                _ => 0,
            };
            o.write(Role::Tensor, l.span(RegionId::HostWeights, base + offset, bytes));
        }
        let device = match (place, id) {
            (WeightPlace::InPlace, _) => None,
            (WeightPlace::Resident, TensorId::Layer(layer, _)) => {
                Some((RegionId::LayerWeights, layer as u64 * l.layer_weight_bytes()))
            }
            (WeightPlace::Streamed { .. }, TensorId::Layer(layer, _)) if layer > 0 => {
                kept.map(|index| (RegionId::KeptLayers, index as u64 * l.layer_weight_bytes()))
            }
            // A step finds the first layer in its slot.
            (WeightPlace::Streamed { .. }, TensorId::Layer(..)) => Some((RegionId::LayerWeights, 0)),
            (WeightPlace::Resident, _) | (WeightPlace::Streamed { .. }, TensorId::FinalNorm) => {
                Some((RegionId::SharedWeights, 0))
            }
            (WeightPlace::Streamed { .. }, _) => None,
        };
        if let Some((region, base)) = device {
            o.write(Role::Tensor, l.span(region, base + offset, bytes));
        }
        o
    }

    /// Where a block of weights starts within [`RegionId::HostWeights`].
    fn host_block(&self, block: WeightBlock) -> u64 {
        match block {
            WeightBlock::Layer(layer) => {
                let before = self.layout.streamed_before(layer) as u64;
                self.layout.shared_weight_bytes() + before * self.layout.layer_weight_bytes()
            }
            WeightBlock::Head { start, .. } => {
                self.head_offset() + start as u64 * self.layout.head_row_bytes()
            }
        }
    }

    /// Where the output head lies among the shared weights.
    fn head_offset(&self) -> u64 {
        let head = if self.spec.tied { TensorId::Embed } else { TensorId::LmHead };
        self.layout.weight(head).map_or(0, |(offset, _)| offset)
    }
}

impl Addresses<'_> {
    /// Part of a weight slot.
    fn slot_span(&self, slot: usize, offset: u64, bytes: u64) -> Span {
        self.layout.span(RegionId::LayerWeights, slot as u64 * self.layout.slot_bytes() + offset, bytes)
    }

    pub(super) fn layer_weights(&self, o: &mut Operands, layer: usize) {
        let bytes = self.layout.layer_weight_bytes();
        match self.plan.knobs().weights {
            WeightPlace::InPlace => {}
            WeightPlace::Resident => {
                let span = self.layout.span(RegionId::LayerWeights, layer as u64 * bytes, bytes);
                o.read(Role::LayerWeights, span);
            }
            WeightPlace::Streamed { .. } => {
                let span = match self.layout.kept_layer(layer) {
                    Some(index) => self.layout.span(RegionId::KeptLayers, index as u64 * bytes, bytes),
                    None => self.slot_span(self.layout.weight_slot(WeightBlock::Layer(layer)), 0, bytes),
                };
                o.read(Role::LayerWeights, span);
            }
        }
    }

    pub(super) fn fetch_weights(&self, o: &mut Operands, block: WeightBlock, part: usize, slot: usize) {
        let range = self.layout.weight_part(block, part);
        let bytes = range.end - range.start;
        if self.layout.region_bytes(RegionId::HostWeights) > 0 {
            let from = self.plan.host_block(block) + range.start;
            o.read(Role::HostWeights, self.layout.span(RegionId::HostWeights, from, bytes));
        }
        o.write(Role::LayerWeights, self.slot_span(slot, range.start, bytes));
    }

    pub(super) fn embedding(&self, o: &mut Operands) {
        let region = match self.plan.knobs().weights {
            WeightPlace::Resident => RegionId::SharedWeights,
            WeightPlace::Streamed { .. } => RegionId::HostWeights,
            WeightPlace::InPlace => return,
        };
        // On the CPU streamed weights are read where they are mapped, too.
        if let (Some((offset, bytes)), true) =
            (self.layout.weight(TensorId::Embed), self.layout.region_bytes(region) > 0)
        {
            o.read(Role::Embedding, self.layout.span(region, offset, bytes));
        }
    }

    pub(super) fn final_norm(&self, o: &mut Operands) {
        if let (Some((offset, bytes)), true) =
            (self.layout.weight(TensorId::FinalNorm), self.layout.region_bytes(RegionId::SharedWeights) > 0)
        {
            o.read(Role::FinalNorm, self.layout.span(RegionId::SharedWeights, offset, bytes));
        }
    }

    /// Rows `[start, end)` of the output head.
    pub(super) fn head_weights(&self, o: &mut Operands, start: usize, end: usize) {
        let block = WeightBlock::Head { start, end };
        let bytes = self.layout.weight_block_bytes(block);
        match self.plan.knobs().weights {
            WeightPlace::InPlace => {}
            WeightPlace::Resident => {
                let offset = self.plan.head_offset() + start as u64 * self.layout.head_row_bytes();
                o.read(Role::HeadWeights, self.layout.span(RegionId::SharedWeights, offset, bytes));
            }
            WeightPlace::Streamed { .. } => {
                o.read(Role::HeadWeights, self.slot_span(self.layout.weight_slot(block), 0, bytes));
            }
        }
    }
}
