//! One step as a list of commands on lanes, ordered by events.
//!
//! The list is in a legal order of execution: a command's waits are signalled by earlier commands. The In lane
//! runs ahead of the arithmetic by as many tiles as the ring has slots. Streamed weights come after, by `weave`.

use super::Plan;
use super::op::{Command, Event, Heads, Lane, NormKind, Op, Part, Step, WeightBlock};
use super::weave::weave;

/// Commands of one step in a legal order.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// The step's shape.
    pub step: Step,
    /// All commands; each lane runs its own in this order.
    pub commands: Vec<Command>,
    /// Events used, numbered from 0.
    pub events: usize,
}

impl Plan {
    /// The commands of one step.
    ///
    /// # Panics
    /// When the step exceeds the plan: the engine checks contexts and chunks before.
    pub fn schedule(&self, step: Step) -> Schedule {
        let k = self.knobs();
        assert!(step.rows >= 1 && step.rows <= k.chunk, "a step has 1..={} rows, not {}", k.chunk, step.rows);
        assert!(step.past + step.rows <= k.context, "the step passes the context of {}", k.context);
        assert!(step.logit_rows <= step.rows.min(k.logit_rows), "more logits than rows or room");
        let mut b = Builder::new(self, step);
        b.pump();
        b.compute(Op::Embed, &[]);
        for layer in 0..self.spec.layers {
            b.layer(layer);
        }
        for block in self.layout.head_blocks().filter(|_| step.logit_rows > 0) {
            if let WeightBlock::Head { start, end } = block {
                b.compute(Op::Logits { start, end }, &[]);
            }
        }
        weave(self, Schedule { step, commands: b.commands, events: b.events as usize })
    }
}

struct Fetch {
    layer: usize,
    heads: Heads,
    tile: usize,
}

struct Builder<'a> {
    plan: &'a Plan,
    step: Step,
    commands: Vec<Command>,
    events: u32,
    fetches: Vec<Fetch>,
    fetched: Vec<Event>,
    freed: Vec<Event>,
    evicted: Option<Event>,
}

impl<'a> Builder<'a> {
    fn new(plan: &'a Plan, step: Step) -> Self {
        let mut fetches = Vec::new();
        for layer in 0..plan.spec.layers {
            for heads in plan.groups(streamed(plan, &step, layer)) {
                let tiles = plan.visible_tiles(&step, layer);
                let tiles = tiles.filter(|tile| !plan.stored_rows(&step, *tile).is_empty());
                fetches.extend(tiles.map(|tile| Fetch { layer, heads, tile }));
            }
        }
        Self {
            plan,
            step,
            commands: Vec::with_capacity(2 * fetches.len() + 12 * plan.spec.layers),
            events: 0,
            fetches,
            fetched: Vec::new(),
            freed: Vec::new(),
            evicted: None,
        }
    }

    fn layer(&mut self, layer: usize) {
        self.compute(Op::Norm { layer, kind: NormKind::Attention }, &[]);
        let on_host = self.plan.layout.resident(layer).end < self.plan.spec.kv_heads;
        let host_done = match on_host {
            true => self.project(layer),
            false => {
                self.compute(Op::Project { layer }, &[]);
                None
            }
        };
        self.attention(layer, host_done);
        self.compute(Op::OutProject { layer }, &[]);
        self.compute(Op::Norm { layer, kind: NormKind::Mlp }, &[]);
        let block = self.plan.knobs().mlp_rows;
        for start in (0..self.step.rows).step_by(block) {
            let end = (start + block).min(self.step.rows);
            self.compute(Op::Mlp { layer, start, end }, &[]);
        }
    }

    /// Projection of a layer with heads on the host, and what follows from it on other lanes. Returns the end of the
    /// CPU's attention, if there is any.
    fn project(&mut self, layer: usize) -> Option<Event> {
        let heads = self.plan.host_attended(&self.step, layer);
        let by_host = !heads.is_empty() && self.plan.visible_tiles(&self.step, layer).any(|t| self.stored(t));
        let ready = match self.plan.coded() {
            true => self.project_and_pack(layer),
            false => self.project_and_evict(layer),
        };
        by_host.then(|| self.signal(Lane::Host, Op::AttendHost { layer, heads }, &[ready]))
    }

    /// Returns what the CPU waits for.
    fn project_and_evict(&mut self, layer: usize) -> Event {
        // The buffer of new rows is shared by all layers: the last eviction must have read it.
        let evicted = self.evicted.take();
        let projected = self.compute_signal(Op::Project { layer }, evicted.as_slice());
        let evicted = self.signal(Lane::Out, Op::Evict { layer }, &[projected]);
        self.evicted = Some(evicted);
        // The split that the past ends in goes on with own rows, which the host must have by then.
        let own = self.step.split_end() > self.step.past;
        if own { evicted } else { projected }
    }

    /// As `project_and_evict`, for a coded store: all but whole units stays on the device.
    fn project_and_pack(&mut self, layer: usize) -> Event {
        let projected = self.compute_signal(Op::Project { layer }, &[]);
        if self.plan.new_units(&self.step).is_empty() {
            self.compute(Op::Pack { layer }, &[]);
            return projected;
        }
        // The buffer of new units is shared by all layers.
        let evicted = self.evicted.take();
        let packed = self.compute_signal(Op::Pack { layer }, evicted.as_slice());
        self.evicted = Some(self.signal(Lane::Out, Op::Evict { layer }, &[packed]));
        projected
    }

    /// Whether the host's store has rows of `tile`.
    fn stored(&self, tile: usize) -> bool {
        !self.plan.stored_rows(&self.step, tile).is_empty()
    }

    fn attention(&mut self, layer: usize, host_done: Option<Event>) {
        let plan = self.plan;
        for heads in plan.groups(plan.layout.resident(layer)) {
            self.compute(Op::Attend { layer, heads, part: Part::Resident, first: true, last: true }, &[]);
        }
        for heads in plan.groups(streamed(plan, &self.step, layer)) {
            let tiles = plan.visible_tiles(&self.step, layer);
            if tiles.is_empty() {
                self.compute(Op::Attend { layer, heads, part: Part::Own, first: true, last: true }, &[]);
            }
            for tile in tiles.clone() {
                self.attend_tile(layer, heads, tile, (tile == tiles.start, tile + 1 == tiles.end));
            }
        }
        // The CPU has no more than the store has.
        let open = plan.coded() && !plan.visible_tiles(&self.step, layer).is_empty();
        let part = if open { Part::Open } else { Part::Own };
        let mut wait = host_done;
        for heads in plan.host_groups(&self.step, layer) {
            if host_done.is_some() {
                self.compute(Op::Merge { layer, heads }, wait.take().as_slice());
            }
            let first = host_done.is_none();
            self.compute(Op::Attend { layer, heads, part, first, last: true }, &[]);
        }
    }

    /// The last tile takes the step's own rows with it: they are there since the projection.
    fn attend_tile(&mut self, layer: usize, heads: Heads, tile: usize, (first, last): (bool, bool)) {
        if !self.stored(tile) {
            self.compute(Op::Attend { layer, heads, part: Part::Open, first, last }, &[]);
            return;
        }
        let index = self.freed.len();
        let slot = index % self.plan.knobs().ring_slots;
        let attend = Op::Attend { layer, heads, part: Part::Slot { tile, slot, own: last }, first, last };
        let fetched = self.fetched[index];
        let coded = self.plan.coded();
        let reader = if coded { Op::Unpack { layer, heads, tile, slot } } else { attend.clone() };
        // The slot is free again for the tile that comes `ring_slots` later, if there is one.
        if index + self.plan.knobs().ring_slots < self.fetches.len() {
            let done = self.compute_signal(reader, &[fetched]);
            self.freed.push(done);
        } else {
            self.compute(reader, &[fetched]);
            self.freed.push(fetched);
        }
        if coded {
            self.compute(attend, &[]);
        }
        self.pump();
    }

    /// Lets the In lane run ahead: every fetch whose slot's last reader has been scheduled.
    fn pump(&mut self) {
        let slots = self.plan.knobs().ring_slots;
        while self.fetched.len() < self.fetches.len().min(self.freed.len() + slots) {
            let index = self.fetched.len();
            let Fetch { layer, heads, tile } = self.fetches[index];
            let free = index.checked_sub(slots).map(|last_user| self.freed[last_user]);
            let op = Op::Fetch { layer, heads, tile, slot: index % slots };
            let event = self.signal(Lane::In, op, free.as_slice());
            self.fetched.push(event);
        }
    }

    fn compute(&mut self, op: Op, waits: &[Event]) {
        self.commands.push(Command { lane: Lane::Compute, op, waits: waits.to_vec(), signals: None });
    }

    fn compute_signal(&mut self, op: Op, waits: &[Event]) -> Event {
        self.signal(Lane::Compute, op, waits)
    }

    fn signal(&mut self, lane: Lane, op: Op, waits: &[Event]) -> Event {
        let event = Event(self.events);
        self.events += 1;
        self.commands.push(Command { lane, op, waits: waits.to_vec(), signals: Some(event) });
        event
    }
}

/// Heads that go through the ring in this step: in prefill those too that the CPU attends to in decode.
fn streamed(plan: &Plan, step: &Step, layer: usize) -> Heads {
    Heads { start: plan.layout.resident(layer).end, end: plan.host_attended(step, layer).start }
}
