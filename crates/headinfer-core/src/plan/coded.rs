//! What a coded store changes: which rows lie in units and which are open, and where either are.
//!
//! A step's open rows, those of the past after its last whole unit, are copied in front of its own rows
//! ([`RegionId::KvNew`]), so that both follow one another. A step that completes units codes them from there
//! ([`RegionId::PackedNew`]), on their way to the store; what is left goes back to [`RegionId::OpenKv`].

use std::ops::Range;

use super::Plan;
use super::format::UNIT;
use super::layout::Place;
use super::op::{Heads, Step};
use super::operands::Addresses;
use super::region::{RegionId, Span};
use super::role::{Access, Operands, Role};
use crate::backend::BackendError;

impl Plan {
    /// Whether heads on the host lie there coded: whole units of [`UNIT`] rows there, rows after them on the device.
    pub fn coded(&self) -> bool {
        self.layout.coded(&self.spec)
    }

    /// Of the first `rows` rows, those that lie in an open unit: the last ones.
    pub fn open_rows(&self, rows: usize) -> usize {
        if self.coded() { rows % UNIT } else { 0 }
    }

    /// Past rows of `tile` that the host's store has.
    pub fn stored_rows(&self, step: &Step, tile: usize) -> Range<usize> {
        let first = tile * self.knobs().tile;
        let whole = step.past - self.open_rows(step.past);
        first..(first + self.tile_rows(step, tile)).min(whole).max(first)
    }

    /// Units that `step` completes, by number.
    pub fn new_units(&self, step: &Step) -> Range<usize> {
        if self.coded() { step.past / UNIT..(step.past + step.rows) / UNIT } else { 0..0 }
    }

    /// K and V of `unit` in the store, head by head, and its planes.
    pub fn unit_operands(&self, unit: usize, access: Access) -> Operands {
        let mut o = Operands::default();
        self.addresses(|at| {
            let role = if access == Access::Write { Role::UnitsTo } else { Role::Units };
            for (layer, head) in self.heads_on_host() {
                at.stored_units(layer, head, unit..unit + 1).for_each(|span| o.push(role, access, span));
            }
            at.planes(unit..unit + 1).for_each(|span| o.push(Role::Planes, access, span));
        });
        o
    }

    /// K and V of some rows of the open unit, counted from its start, of all heads on the host.
    pub fn open_operands(&self, rows: Range<usize>, access: Access) -> Operands {
        let mut o = Operands::default();
        self.addresses(|at| {
            for (layer, head) in self.heads_on_host() {
                let (key, value) = at.open(layer, head, rows.clone());
                o.push(Role::OpenKey, access, key);
                o.push(Role::OpenValue, access, value);
            }
        });
        o
    }

    /// How many planes of some units are taken.
    pub fn plane_counts_operand(&self, units: Range<usize>) -> Operands {
        let mut o = Operands::default();
        self.addresses(|at| o.write(Role::PlaneCounts, at.plane_counts(units)));
        o
    }

    /// Where some units of a head, all of one piece of the store, are made of rows that no step computed: the rows, the
    /// units coded in a ring slot, their place in the store, and what packing takes besides.
    pub fn unit_fill_operands(&self, layer: usize, head: usize, units: Range<usize>) -> Operands {
        let mut o = self.plane_counts_operand(units.clone());
        self.addresses(|at| {
            let (key, value) = at.unpacked(0, 0..units.len() * UNIT);
            o.write(Role::Key, key);
            o.write(Role::Value, value);
            o.write(Role::Units, at.slot_units(0, 0, 0..units.len()));
            at.stored_units(layer, head, units.clone()).for_each(|span| o.write(Role::UnitsTo, span));
            at.planes(units).for_each(|span| o.write(Role::Planes, span));
        });
        o.write(Role::PackFault, self.layout.span(RegionId::PackFault, 0, 4));
        o
    }

    /// What the bits of K and V depend on where the store is lossy: how it is coded, and which heads are.
    pub fn lossy(&self) -> Option<String> {
        let (format, heads) = (self.knobs().kv, self.knobs().resident_heads);
        let quantised = self.coded() && format.quantised().is_some();
        quantised.then(|| format!("{}, {heads} heads on the device", format.name()))
    }

    /// Rows of a pass with guesses after `past` tokens, at most. A lossy unit is coded when it is full, and what it held
    /// does not come back: guesses, which may be taken back, do not fill one.
    pub fn guess_rows_max(&self, past: usize) -> usize {
        match self.lossy() {
            Some(_) => (UNIT - 1 - past % UNIT).max(1),
            None => usize::MAX,
        }
    }

    /// Where packing says that a unit had no plane left.
    pub fn pack_fault_operand(&self) -> Operands {
        let mut o = Operands::default();
        o.write(Role::PackFault, self.layout.span(RegionId::PackFault, 0, 4));
        o
    }

    /// What there is to say when packing met a unit without planes left.
    pub fn no_plane(&self, unit: usize) -> BackendError {
        let (first, planes) = (unit * UNIT, self.layout.planes(&self.spec));
        BackendError(format!(
            "more than {planes} of the heads' keys and values of tokens {first}..{} do not shrink: their exponents are \
             spread too widely; use --kv-dtype bf16",
            first + UNIT
        ))
    }

    /// (layer, KV head) pairs that live on the host, in the order of their places.
    pub fn heads_on_host(&self) -> impl Iterator<Item = (usize, usize)> {
        let heads =
            |layer| (self.layout.resident(layer).end..self.spec.kv_heads).map(move |head| (layer, head));
        (0..self.spec.layers).flat_map(heads)
    }

    fn addresses(&self, ask: impl FnOnce(Addresses<'_>)) {
        let step = Step { past: 0, rows: 0, logit_rows: 0 };
        ask(Addresses { plan: self, layout: &self.layout, step: &step });
    }
}

impl Addresses<'_> {
    /// K and V of some units of a head in the store, cut at its pieces.
    pub(super) fn stored_units(
        &self,
        layer: usize,
        head: usize,
        units: Range<usize>,
    ) -> impl Iterator<Item = Span> {
        let (Place::Streamed(index) | Place::HostAttend(index)) =
            self.layout.place(layer, head, self.plan.spec.kv_heads)
        else {
            panic!("layer {layer} head {head} has no store on the host");
        };
        let head_bytes = self.units(self.layout.piece_rows() / UNIT);
        self.in_pieces(units).map(move |(base, within)| {
            let offset = base + index as u64 * head_bytes + self.units(within.start);
            self.layout.span(RegionId::HostKv, offset, self.units(within.len()))
        })
    }

    /// Planes of some units, cut at the store's pieces; none where the format has none.
    pub(super) fn planes(&self, units: Range<usize>) -> impl Iterator<Item = Span> {
        let spec = &self.plan.spec;
        let heads = self.layout.host_heads_total(spec) as u64;
        let first = heads * self.units(self.layout.piece_rows() / UNIT);
        let plane = self.plan.knobs().kv.plane_bytes(spec.head_dim);
        let each = (self.layout.planes(spec) * plane) as u64;
        self.in_pieces(units).map(move |(base, within)| {
            let offset = base + first + within.start as u64 * each;
            self.layout.span(RegionId::HostKv, offset, within.len() as u64 * each)
        })
    }

    /// Where a piece of the store begins, and which of its units are asked for.
    fn in_pieces(&self, units: Range<usize>) -> impl Iterator<Item = (u64, Range<usize>)> + use<> {
        let each = self.layout.piece_rows() / UNIT;
        let bytes = self.layout.piece_bytes(&self.plan.spec);
        (units.start / each..units.end.div_ceil(each)).map(move |piece| {
            let first = piece * each;
            (piece as u64 * bytes, units.start.max(first) - first..units.end.min(first + each) - first)
        })
    }

    fn plane_counts(&self, units: Range<usize>) -> Span {
        self.layout.span(RegionId::PlaneCounts, units.start as u64 * 4, units.len() as u64 * 4)
    }

    /// Bytes of so many units of a head.
    fn units(&self, count: usize) -> u64 {
        self.layout.head_rows_bytes(count * UNIT, self.plan.spec.head_dim)
    }

    fn row(&self) -> u64 {
        self.plan.spec.head_dim as u64 * 2
    }

    /// K and V of some rows of a head's open unit, counted from its start.
    fn open(&self, layer: usize, head: usize, rows: Range<usize>) -> (Span, Span) {
        let (Place::Streamed(index) | Place::HostAttend(index)) =
            self.layout.place(layer, head, self.plan.spec.kv_heads)
        else {
            panic!("layer {layer} head {head} has no open unit");
        };
        let half = UNIT as u64 * self.row();
        let base = index as u64 * 2 * half + rows.start as u64 * self.row();
        let bytes = rows.len() as u64 * self.row();
        let span = |offset| self.layout.span(RegionId::OpenKv, offset, bytes);
        (span(base), span(base + half))
    }

    /// K and V of some of a head's open and own rows, counted from the start of the step's open unit.
    pub(super) fn seam(&self, layer: usize, head: usize, rows: Range<usize>) -> (Span, Span) {
        let before = self.layout.seam_rows() - self.plan.open_rows(self.step.past);
        let half = (self.layout.seam_rows() + self.plan.knobs().chunk) as u64 * self.row();
        let base = (head - self.layout.resident(layer).end) as u64 * 2 * half;
        let (offset, bytes) = ((before + rows.start) as u64 * self.row(), rows.len() as u64 * self.row());
        let span = |offset| self.layout.span(RegionId::KvNew, offset, bytes);
        (span(base + offset), span(base + half + offset))
    }

    /// K and V of the first `rows` rows of one head of a tile out of its slot.
    pub(super) fn unpacked(&self, head_in_group: usize, rows: Range<usize>) -> (Span, Span) {
        let half = self.plan.knobs().tile as u64 * self.row();
        let base = head_in_group as u64 * 2 * half + rows.start as u64 * self.row();
        let bytes = rows.len() as u64 * self.row();
        let span = |offset| self.layout.span(RegionId::Unpacked, offset, bytes);
        (span(base), span(base + half))
    }

    /// The units of one head in a ring slot.
    fn slot_units(&self, slot: usize, head_in_group: usize, units: Range<usize>) -> Span {
        let k = self.plan.knobs();
        let base = (slot * k.heads_per_group + head_in_group) as u64 * self.units(k.tile / UNIT);
        self.layout.span(RegionId::Ring, base + self.units(units.start), self.units(units.len()))
    }

    /// The units that the step completes of one head of a layer.
    fn new_units(&self, layer: usize, head: usize, units: Range<usize>) -> Span {
        let each = self.plan.knobs().chunk.div_ceil(UNIT);
        let base = (head - self.layout.resident(layer).end) * each;
        self.layout.span(RegionId::PackedNew, self.units(base + units.start), self.units(units.len()))
    }

    /// Rows of the open unit to the place before the step's own.
    pub(super) fn open_to_seam(&self, o: &mut Operands, layer: usize) {
        let rows = 0..self.plan.open_rows(self.step.past);
        for head in self.layout.resident(layer).end..self.plan.spec.kv_heads {
            let (key, value) = self.open(layer, head, rows.clone());
            let (to_key, to_value) = self.seam(layer, head, rows.clone());
            o.read(Role::OpenKey, key);
            o.write(Role::KeyTo, to_key);
            o.read(Role::OpenValue, value);
            o.write(Role::ValueTo, to_value);
        }
    }

    /// Per head on the host: rows that complete units, to be coded; and the rows after them, or the step's own where they
    /// complete none, to the open unit. Then the planes and counts of the units.
    pub(super) fn pack(&self, o: &mut Operands, layer: usize) {
        let (open, units) = (self.plan.open_rows(self.step.past), self.plan.new_units(self.step));
        let whole = units.len() * UNIT;
        let rest = if units.is_empty() { open } else { whole }..open + self.step.rows;
        for head in self.layout.resident(layer).end..self.plan.spec.kv_heads {
            let (key, value) = self.seam(layer, head, 0..whole);
            o.read(Role::Key, key);
            o.read(Role::Value, value);
            o.write(Role::UnitsTo, self.new_units(layer, head, 0..units.len()));
            let (key, value) = self.seam(layer, head, rest.clone());
            let (to_key, to_value) = self.open(layer, head, rest.start - whole..rest.end - whole);
            o.read(Role::OwnKey, key);
            o.write(Role::KeyTo, to_key);
            o.read(Role::OwnValue, value);
            o.write(Role::ValueTo, to_value);
        }
        if !units.is_empty() {
            self.planes(units.clone()).for_each(|span| o.write(Role::Planes, span));
            o.write(Role::PlaneCounts, self.plane_counts(units));
            o.write(Role::PackFault, self.layout.span(RegionId::PackFault, 0, 4));
        }
    }

    pub(super) fn evict_units(&self, o: &mut Operands, layer: usize) {
        let units = self.plan.new_units(self.step);
        for head in self.layout.resident(layer).end..self.plan.spec.kv_heads {
            let from = self.new_units(layer, head, 0..units.len());
            let mut done = 0;
            for to in self.stored_units(layer, head, units.clone()) {
                o.read(Role::Units, Span { offset: from.offset + done, bytes: to.bytes, ..from });
                o.write(Role::UnitsTo, to);
                done += to.bytes;
            }
        }
    }

    pub(super) fn fetch_units(&self, o: &mut Operands, layer: usize, heads: Heads, tile: usize, slot: usize) {
        let units = self.tile_units(tile);
        for head in heads.iter() {
            let to = self.slot_units(slot, head - heads.start, 0..units.len());
            let mut done = 0;
            for from in self.stored_units(layer, head, units.clone()) {
                o.read(Role::Units, from);
                o.write(Role::UnitsTo, Span { offset: to.offset + done, bytes: from.bytes, ..to });
                done += from.bytes;
            }
        }
    }

    /// Per head: its units in the slot, the open rows if they belong to the tile, and where both go. Then the planes.
    pub(super) fn unpack(&self, o: &mut Operands, layer: usize, heads: Heads, tile: usize, slot: usize) {
        let (units, rows) = (self.tile_units(tile), self.plan.tile_rows(self.step, tile));
        for head in heads.iter() {
            o.read(Role::Units, self.slot_units(slot, head - heads.start, 0..units.len()));
            let (key, value) = self.seam(layer, head, 0..rows - units.len() * UNIT);
            o.read(Role::OpenKey, key);
            o.read(Role::OpenValue, value);
            let (key, value) = self.unpacked(head - heads.start, 0..rows);
            o.write(Role::KeyTo, key);
            o.write(Role::ValueTo, value);
        }
        self.planes(units).for_each(|span| o.read(Role::Planes, span));
    }

    /// Per visible tile: the units of each head, in the store's pieces, then their planes.
    pub(super) fn attend_host_units(&self, o: &mut Operands, layer: usize, heads: Heads) {
        for tile in self.plan.visible_tiles(self.step, layer) {
            let units = self.tile_units(tile);
            for head in heads.iter() {
                self.stored_units(layer, head, units.clone()).for_each(|span| o.read(Role::Units, span));
            }
            self.planes(units).for_each(|span| o.read(Role::Planes, span));
        }
    }

    /// Units of the store that a tile holds, by number.
    fn tile_units(&self, tile: usize) -> Range<usize> {
        let rows = self.plan.stored_rows(self.step, tile);
        rows.start / UNIT..rows.end / UNIT
    }
}
