//! Which bytes an op touches: the one place where ids become addresses.
//!
//! The hazard check orders these ranges, the CPU backend borrows exactly these ranges, a GPU backend turns
//! them into pointers. What an op does not declare here it cannot reach.

use std::ops::Range;

use super::choose::DeviceKind;
use super::layout::{DECODE_ROWS, Place, STEPS_IN_FLIGHT};
use super::op::{Heads, Op, Part, Step};
use super::region::{RegionId, Span};
use super::role::{Access, Operands, Role};
use super::{Layout, Plan};

impl Plan {
    /// Where one step's token ids are put before it starts.
    pub fn ids_operand(&self, rows: usize) -> Operands {
        let mut o = Operands::default();
        o.write(Role::Ids, self.layout.span(RegionId::Ids, 0, rows as u64 * 4));
        o
    }

    /// Where the logits of `rows` rows lie after a step.
    pub fn logits_operand(&self, rows: usize) -> Operands {
        let mut o = Operands::default();
        let bytes = rows as u64 * self.spec.vocab as u64 * 4;
        o.read(Role::Logits, self.layout.span(RegionId::Logits, 0, bytes));
        o
    }

    /// Where rows `[0, rows)` of one head are kept between steps: keys and values in pieces of consecutive rows.
    ///
    /// # Panics
    /// When they are coded: the head lives on the host, in a coded store.
    pub fn past_operands(&self, layer: usize, head: usize, rows: usize) -> Operands {
        let step = Step { past: rows, rows: 0, logit_rows: 0 };
        let at = Addresses { plan: self, layout: &self.layout, step: &step };
        let mut o = Operands::default();
        let mut piece = |(key, value)| {
            o.write(Role::Key, key);
            o.write(Role::Value, value);
        };
        if let Place::Resident(index) = self.layout.place(layer, head, self.spec.kv_heads) {
            piece(at.resident(index, 0, rows as u64));
            return o;
        }
        assert!(!self.coded(), "layer {layer} head {head} is coded");
        at.stored(layer, head, 0..rows).for_each(piece);
        o
    }

    /// One whole tile of a head in the host's store, to be written; `None` when the head is resident or has no
    /// such tile, or when the store is coded.
    pub fn stored_tile_operands(&self, layer: usize, head: usize, tile: usize) -> Option<Operands> {
        let spec = &self.spec;
        if self.coded()
            || layer >= spec.layers
            || head >= spec.kv_heads
            || tile >= self.layout.store_rows() / self.knobs().tile
        {
            return None;
        }
        if matches!(self.layout.place(layer, head, spec.kv_heads), Place::Resident(_)) {
            return None;
        }
        let mut o = Operands::default();
        let at =
            Addresses { plan: self, layout: &self.layout, step: &Step { past: 0, rows: 0, logit_rows: 0 } };
        let size = self.knobs().tile;
        for (key, value) in at.stored(layer, head, tile * size..(tile + 1) * size) {
            o.write(Role::Key, key);
            o.write(Role::Value, value);
        }
        Some(o)
    }

    /// Where the token ids of a step wait for their copy to a GPU; `turn` is which of the steps in flight.
    pub fn host_ids_operand(&self, rows: usize, turn: usize) -> Operands {
        let mut o = Operands::default();
        let offset = (turn % STEPS_IN_FLIGHT * self.knobs().chunk) as u64 * 4;
        o.write(Role::HostIds, self.layout.span(RegionId::HostIds, offset, rows as u64 * 4));
        o
    }

    /// Where the logits of `rows` rows go when copied from a GPU.
    pub fn host_logits_operand(&self, rows: usize) -> Operands {
        let mut o = Operands::default();
        let bytes = rows as u64 * self.spec.vocab as u64 * 4;
        o.write(Role::HostLogits, self.layout.span(RegionId::HostLogits, 0, bytes));
        o
    }

    /// The byte ranges `op` touches in a step.
    pub fn operands(&self, step: &Step, op: &Op) -> Operands {
        let mut o = Operands::default();
        let at = Addresses { plan: self, layout: &self.layout, step };
        match *op {
            Op::Embed => {
                at.embedding(&mut o);
                o.read(Role::Ids, at.rows(RegionId::Ids, step.rows, 4));
                at.rope(&mut o, Access::Write);
                o.write(Role::Hidden, at.hidden(0, step.rows));
            }
            Op::FetchWeights { block, part, slot } => at.fetch_weights(&mut o, block, part, slot),
            Op::Norm { layer, .. } => {
                at.layer_weights(&mut o, layer);
                o.read(Role::Hidden, at.hidden(0, step.rows));
                o.write(Role::Normed, at.normed(0, step.rows));
            }
            Op::Project { layer } => at.project(&mut o, layer),
            Op::Pack { layer } => at.pack(&mut o, layer),
            Op::Evict { layer } if self.coded() => at.evict_units(&mut o, layer),
            Op::Evict { layer } => at.evict(&mut o, layer),
            Op::Fetch { layer, heads, tile, slot } if self.coded() => {
                at.fetch_units(&mut o, layer, heads, tile, slot);
            }
            Op::Fetch { layer, heads, tile, slot } => at.fetch(&mut o, layer, heads, tile, slot),
            Op::Unpack { layer, heads, tile, slot } => at.unpack(&mut o, layer, heads, tile, slot),
            Op::Attend { layer, heads, part, last, .. } => at.attend(&mut o, layer, heads, part, last),
            Op::AttendHost { layer, heads } => at.attend_host(&mut o, layer, heads),
            Op::Merge { layer, heads } => {
                at.host_state(
                    &mut o,
                    layer,
                    heads,
                    [Role::FromMax, Role::FromSum, Role::FromAcc],
                    Access::Read,
                );
                at.state(&mut o, heads);
            }
            Op::OutProject { layer } => {
                at.layer_weights(&mut o, layer);
                o.read(Role::AttnOut, at.attn_out());
                o.write(Role::Hidden, at.hidden(0, step.rows));
                at.workspace(&mut o);
            }
            Op::Mlp { layer, start, end } => {
                at.layer_weights(&mut o, layer);
                o.read(Role::Normed, at.normed(start, end));
                let width = 2 * self.spec.intermediate * self.knobs().activation.bytes();
                o.write(Role::Scratch, at.rows(RegionId::Scratch, end - start, width));
                o.write(Role::Hidden, at.hidden(start, end));
                at.workspace(&mut o);
            }
            Op::Logits { start, end } => {
                at.head_weights(&mut o, start, end);
                if start == 0 {
                    at.final_norm(&mut o);
                    o.read(Role::Hidden, at.hidden(step.rows - step.logit_rows, step.rows));
                    o.write(Role::Normed, at.normed(0, step.logit_rows));
                } else {
                    o.read(Role::Normed, at.normed(0, step.logit_rows));
                }
                o.write(Role::Logits, at.rows(RegionId::Logits, step.logit_rows, self.spec.vocab * 4));
                at.workspace(&mut o);
            }
        }
        o
    }
}

pub(super) struct Addresses<'a> {
    pub(super) plan: &'a Plan,
    pub(super) layout: &'a Layout,
    pub(super) step: &'a Step,
}

impl Addresses<'_> {
    fn act(&self) -> u64 {
        self.plan.knobs().activation.bytes() as u64
    }

    fn d(&self) -> u64 {
        self.plan.spec.head_dim as u64
    }

    /// Query rows of one KV head in this step.
    fn head_rows(&self) -> u64 {
        (self.step.rows * self.plan.spec.group()) as u64
    }

    fn rows(&self, id: RegionId, rows: usize, width: usize) -> Span {
        self.layout.span(id, 0, (rows * width) as u64)
    }

    fn hidden(&self, start: usize, end: usize) -> Span {
        let width = self.plan.spec.hidden as u64 * 4;
        self.layout.span(RegionId::Hidden, start as u64 * width, (end - start) as u64 * width)
    }

    fn normed(&self, start: usize, end: usize) -> Span {
        let width = self.plan.spec.hidden as u64 * self.act();
        self.layout.span(RegionId::Normed, start as u64 * width, (end - start) as u64 * width)
    }

    fn attn_out(&self) -> Span {
        self.layout.span(RegionId::AttnOut, 0, (self.step.rows * self.plan.spec.q_dim()) as u64 * self.act())
    }

    fn rope(&self, o: &mut Operands, access: Access) {
        let half = self.plan.knobs().chunk as u64 * self.d() * 2;
        let bytes = self.step.rows as u64 * self.d() * 2;
        o.push(Role::Cos, access, self.layout.span(RegionId::RopeTable, 0, bytes));
        o.push(Role::Sin, access, self.layout.span(RegionId::RopeTable, half, bytes));
    }

    fn workspace(&self, o: &mut Operands) {
        let bytes = self.layout.region_bytes(RegionId::GemmWorkspace);
        if self.plan.knobs().device == DeviceKind::Cuda {
            o.write(Role::Workspace, self.layout.span(RegionId::GemmWorkspace, 0, bytes));
        }
    }

    fn query(&self, head: usize) -> Span {
        let bytes = self.head_rows() * self.d() * self.act();
        self.layout.span(RegionId::Query, head as u64 * bytes, bytes)
    }

    fn host_query(&self, layer: usize, head: usize) -> Span {
        let bytes = self.head_rows() * self.d() * 4;
        let first = self.layout.host_attended(layer, self.plan.spec.kv_heads).start;
        self.layout.span(RegionId::HostQuery, (head - first) as u64 * bytes, bytes)
    }

    /// K and V of the step's own rows.
    fn own(&self, layer: usize, head: usize) -> (Span, Span) {
        match self.layout.place(layer, head, self.plan.spec.kv_heads) {
            Place::Resident(index) => self.resident(index, self.step.past as u64, self.step.rows as u64),
            Place::Streamed(_) | Place::HostAttend(_) => {
                let open = self.plan.open_rows(self.step.past);
                self.seam(layer, head, open..open + self.step.rows)
            }
        }
    }

    /// K and V of a resident head's rows `[first, first + rows)`.
    fn resident(&self, index: usize, first: u64, rows: u64) -> (Span, Span) {
        let half = self.layout.resident_rows() * self.d() * 2;
        let base = index as u64 * 2 * half;
        let (offset, bytes) = (first * self.d() * 2, rows * self.d() * 2);
        (
            self.layout.span(RegionId::ResidentKv, base + offset, bytes),
            self.layout.span(RegionId::ResidentKv, base + half + offset, bytes),
        )
    }

    /// K and V of some rows of a head's store, cut at its pieces.
    fn stored(&self, layer: usize, head: usize, rows: Range<usize>) -> impl Iterator<Item = (Span, Span)> {
        let piece = self.layout.piece_rows();
        (rows.start / piece..rows.end.div_ceil(piece)).map(move |index| {
            let (first, end) = (rows.start.max(index * piece), rows.end.min((index + 1) * piece));
            self.stored_piece(layer, head, index, first - index * piece..end - index * piece)
        })
    }

    /// K and V of some rows of one piece of a head's store.
    fn stored_piece(&self, layer: usize, head: usize, piece: usize, rows: Range<usize>) -> (Span, Span) {
        let (Place::Streamed(index) | Place::HostAttend(index)) =
            self.layout.place(layer, head, self.plan.spec.kv_heads)
        else {
            panic!("layer {layer} head {head} has no store on the host");
        };
        let half = self.layout.piece_rows() as u64 * self.d() * 2;
        let heads = self.layout.host_heads_total(&self.plan.spec) as u64;
        let base = (piece as u64 * heads + index as u64) * 2 * half;
        let (offset, bytes) = (rows.start as u64 * self.d() * 2, rows.len() as u64 * self.d() * 2);
        (
            self.layout.span(RegionId::HostKv, base + offset, bytes),
            self.layout.span(RegionId::HostKv, base + half + offset, bytes),
        )
    }

    /// Rows of the past that a tile holds.
    fn tile(&self, tile: usize) -> Range<usize> {
        let first = tile * self.plan.knobs().tile;
        first..first + self.plan.tile_rows(self.step, tile)
    }

    /// K and V of the first `rows` rows of one head in a ring slot.
    fn slot(&self, slot: usize, head_in_group: usize, rows: usize) -> (Span, Span) {
        let half = self.plan.knobs().tile as u64 * self.d() * 2;
        let base = (slot * self.plan.knobs().heads_per_group + head_in_group) as u64 * 2 * half;
        let bytes = rows as u64 * self.d() * 2;
        (self.layout.span(RegionId::Ring, base, bytes), self.layout.span(RegionId::Ring, base + half, bytes))
    }

    fn state(&self, o: &mut Operands, heads: Heads) {
        let rows = heads.len() as u64 * self.head_rows();
        let k = self.plan.knobs();
        let capacity = (k.heads_per_group * k.chunk * self.plan.spec.group()) as u64;
        o.write(Role::StateMax, self.layout.span(RegionId::State, 0, rows * 4));
        o.write(Role::StateSum, self.layout.span(RegionId::State, capacity * 4, rows * 4));
        o.write(Role::StateAcc, self.layout.span(RegionId::State, capacity * 8, rows * self.d() * 4));
    }

    fn host_state(&self, o: &mut Operands, layer: usize, heads: Heads, roles: [Role; 3], access: Access) {
        let all = self.layout.host_attended(layer, self.plan.spec.kv_heads);
        let first = (heads.start - all.start) as u64 * self.head_rows();
        let rows = heads.len() as u64 * self.head_rows();
        let capacity = all.len() as u64 * self.head_rows();
        let span = |offset, bytes| self.layout.span(RegionId::HostState, offset, bytes);
        o.push(roles[0], access, span(first * 4, rows * 4));
        o.push(roles[1], access, span((capacity + first) * 4, rows * 4));
        o.push(roles[2], access, span((2 * capacity + first * self.d()) * 4, rows * self.d() * 4));
    }

    fn project(&self, o: &mut Operands, layer: usize) {
        let spec = &self.plan.spec;
        self.layer_weights(o, layer);
        o.read(Role::Normed, self.normed(0, self.step.rows));
        self.rope(o, Access::Read);
        let width = (spec.q_dim() + 2 * spec.kv_dim()) * self.plan.knobs().activation.bytes();
        o.write(Role::Scratch, self.rows(RegionId::Scratch, self.step.rows, width));
        self.workspace(o);
        for head in 0..spec.kv_heads {
            o.write(Role::Query, self.query(head));
            let (k, v) = self.own(layer, head);
            o.write(Role::Key, k);
            o.write(Role::Value, v);
        }
        for head in self.plan.host_attended(self.step, layer).iter() {
            o.write(Role::HostQuery, self.host_query(layer, head));
        }
        if self.plan.coded() {
            self.open_to_seam(o, layer);
        }
    }

    fn evict(&self, o: &mut Operands, layer: usize) {
        let rows = self.step.past..self.step.past + self.step.rows;
        for head in self.layout.resident(layer).end..self.plan.spec.kv_heads {
            let (key, value) = self.own(layer, head);
            let mut done = 0;
            for (to_k, to_v) in self.stored(layer, head, rows.clone()) {
                let part = |s: Span| Span { offset: s.offset + done, bytes: to_k.bytes, ..s };
                o.read(Role::Key, part(key));
                o.write(Role::KeyTo, to_k);
                o.read(Role::Value, part(value));
                o.write(Role::ValueTo, to_v);
                done += to_k.bytes;
            }
        }
    }

    fn fetch(&self, o: &mut Operands, layer: usize, heads: Heads, tile: usize, slot: usize) {
        let rows = self.plan.tile_rows(self.step, tile);
        for head in heads.iter() {
            let (to_k, to_v) = self.slot(slot, head - heads.start, rows);
            let mut done = 0;
            for (from_k, from_v) in self.stored(layer, head, self.tile(tile)) {
                let part = |s: Span| Span { offset: s.offset + done, bytes: from_k.bytes, ..s };
                o.read(Role::Key, from_k);
                o.write(Role::KeyTo, part(to_k));
                o.read(Role::Value, from_v);
                o.write(Role::ValueTo, part(to_v));
                done += from_k.bytes;
            }
        }
    }

    fn attend(&self, o: &mut Operands, layer: usize, heads: Heads, part: Part, last: bool) {
        for head in heads.iter() {
            o.read(Role::Query, self.query(head));
            if let Some((k, v)) = self.past(layer, head, head - heads.start, part) {
                o.read(Role::Key, k);
                o.read(Role::Value, v);
            }
            if part.has_own() {
                let (k, v) = self.own(layer, head);
                o.read(Role::OwnKey, k);
                o.read(Role::OwnValue, v);
            }
        }
        self.state(o, heads);
        if self.step.rows <= DECODE_ROWS {
            let bytes = self.layout.region_bytes(RegionId::DecodeScratch);
            o.write(Role::Partials, self.layout.span(RegionId::DecodeScratch, 0, bytes));
        }
        if last {
            o.write(Role::AttnOut, self.attn_out());
        }
    }

    /// K and V of a head's past rows in `part`; `None` when it has none.
    fn past(&self, layer: usize, head: usize, head_in_group: usize, part: Part) -> Option<(Span, Span)> {
        let rows = self.plan.past_rows(self.step, part).len();
        match part {
            Part::Slot { .. } if self.plan.coded() => Some(self.unpacked(head_in_group, 0..rows)),
            Part::Slot { slot, .. } => Some(self.slot(slot, head_in_group, rows)),
            Part::Open => Some(self.seam(layer, head, 0..rows)),
            Part::Resident => {
                let Place::Resident(index) = self.layout.place(layer, head, self.plan.spec.kv_heads) else {
                    panic!("layer {layer} head {head} is not resident");
                };
                Some(self.resident(index, 0, rows as u64))
            }
            Part::Own => None,
        }
    }

    fn attend_host(&self, o: &mut Operands, layer: usize, heads: Heads) {
        for head in heads.iter() {
            o.read(Role::HostQuery, self.host_query(layer, head));
        }
        if self.plan.coded() {
            self.attend_host_units(o, layer, heads);
        } else {
            self.attend_host_rows(o, layer, heads);
        }
        self.host_state(o, layer, heads, [Role::StateMax, Role::StateSum, Role::StateAcc], Access::Write);
        let bytes = self.layout.region_bytes(RegionId::HostScratch);
        o.write(Role::Partials, self.layout.span(RegionId::HostScratch, 0, bytes));
    }

    fn attend_host_rows(&self, o: &mut Operands, layer: usize, heads: Heads) {
        for tile in self.plan.visible_tiles(self.step, layer) {
            let rows = self.plan.host_rows(self.step, tile);
            for head in heads.iter() {
                for (k, v) in self.stored(layer, head, rows.clone()) {
                    o.read(Role::Key, k);
                    o.read(Role::Value, v);
                }
            }
        }
    }
}
