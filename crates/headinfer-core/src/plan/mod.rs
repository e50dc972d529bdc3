//! The plan: from a model, a budget and a context to every byte that will be allocated and every command that
//! will run.
//!
//! `Plan::new` decides and lays out; `schedule` turns a step into commands; `hazard` proves that commands on
//! different lanes are ordered; `cost` gives each its bytes and FLOP; `report` prints. Knows no backend.

mod balance;
mod choose;
mod coded;
pub mod cost;
mod format;
pub mod hazard;
mod kept;
mod layout;
mod op;
mod operands;
pub mod paper;
mod region;
pub mod report;
mod role;
mod schedule;
mod weave;
mod weights;
mod why;

use std::ops::Range;

pub use choose::{DeviceKind, Overrides, PlacementMode, PlanError, Request, WeightsMode};
pub use cost::{Cost, Machine, Together};
pub use format::{KvFormat, UNIT};
pub use layout::{
    BLOCK, DECODE_ROWS, GEMM_WORKSPACE, Knobs, Layout, Place, SPLIT, SPLITS_IN_FLIGHT, STEPS_IN_FLIGHT,
    WEIGHT_PARTS, WeightPlace,
};
pub use op::{Command, Event, Heads, Lane, NormKind, Op, Part, Step, WeightBlock};
pub use region::{Memory, Region, RegionId, Span};
pub use role::{Access, Operand, Operands, Role};
pub use schedule::Schedule;

use crate::model::spec::ModelSpec;

/// What will be allocated and how steps run. Made by [`Plan::new`]; immutable after.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's shape.
    pub spec: ModelSpec,
    /// What it was made for.
    pub request: Request,
    layout: Layout,
    why: Vec<String>,
}

impl Plan {
    /// All decisions.
    pub fn knobs(&self) -> &Knobs {
        &self.layout.knobs
    }

    /// Regions and addresses.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One sentence per decision, for people.
    pub fn why(&self) -> &[String] {
        &self.why
    }

    /// Bytes of K and V per token over all layers and heads.
    pub fn kv_bytes_per_token(&self) -> u64 {
        kv_bytes_per_token(&self.spec)
    }

    /// Tiles of `layer` that hold a past row visible to some row of `step`.
    pub fn visible_tiles(&self, step: &Step, layer: usize) -> Range<usize> {
        let tile = self.knobs().tile;
        let first_visible = match self.spec.windows[layer] {
            Some(window) => (step.past + 1).saturating_sub(window),
            None => 0,
        };
        if first_visible >= step.past {
            return 0..0;
        }
        first_visible / tile..step.past.div_ceil(tile)
    }

    /// Past rows of the visible tiles of `layer`.
    pub fn visible_past(&self, step: &Step, layer: usize) -> usize {
        let tiles = self.visible_tiles(step, layer);
        if tiles.is_empty() { 0 } else { step.past - tiles.start * self.knobs().tile }
    }

    /// Past rows that `tile` holds in `step`.
    pub fn tile_rows(&self, step: &Step, tile: usize) -> usize {
        let size = self.knobs().tile;
        step.past.saturating_sub(tile * size).min(size)
    }

    /// Past rows that `part` holds in `step`; the step's own, if it has them, come after.
    pub fn past_rows(&self, step: &Step, part: Part) -> Range<usize> {
        match part {
            Part::Slot { tile, .. } => {
                let first = tile * self.knobs().tile;
                first..first + self.tile_rows(step, tile)
            }
            Part::Open => step.past - self.open_rows(step.past)..step.past,
            Part::Resident => 0..step.past,
            Part::Own => step.past..step.past,
        }
    }

    /// Rows that the CPU attends to with a tile of its heads: those of the past, and with the last tile the own rows that
    /// belong to the split which the past ends in. Of a coded store whole units, as the device has all other rows.
    pub fn host_rows(&self, step: &Step, tile: usize) -> Range<usize> {
        if self.coded() {
            return self.stored_rows(step, tile);
        }
        let first = tile * self.knobs().tile;
        let end = first + self.tile_rows(step, tile);
        first..if end == step.past { step.split_end() } else { end }
    }

    /// KV heads of a layer in groups of at most `heads_per_group`.
    pub fn groups(&self, heads: Heads) -> impl Iterator<Item = Heads> + use<> {
        let size = self.knobs().heads_per_group;
        (heads.start..heads.end)
            .step_by(size)
            .map(move |start| Heads { start, end: (start + size).min(heads.end) })
    }
}

/// Bytes of K and V per token over all layers and heads, in bf16.
pub fn kv_bytes_per_token(spec: &ModelSpec) -> u64 {
    2 * spec.layers as u64 * spec.kv_dim() as u64 * 2
}
