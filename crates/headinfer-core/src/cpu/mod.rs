//! The CPU backend: an arena plays the device, threads play its lanes, and nothing else is pretended. Tiles are
//! really fetched, new rows really evicted, so the whole method is exercised with no GPU.

mod coded;
mod exec;
mod heads;
mod host;
pub mod kernels;
mod lanes;
pub mod measure;
mod pieces;

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

pub use host::{HostKeys, HostRanges, attend_host};
pub use lanes::LaneOrder;

use crate::backend::{Backend, BackendError, Stats, Timed, copy_overlap};
use crate::memory::{Arena, Memories};
use crate::model::weights::Weights;
use crate::plan::{DECODE_ROWS, Memory, Plan, Role, Schedule};
use crate::watch::Watch;
use exec::Executor;
use kernels::Isa;

/// How a CPU backend runs.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// How lanes are run.
    pub order: LaneOrder,
    /// Fill all memory with NaN first, so that a read before a write cannot go unseen.
    pub poison: bool,
    /// Instruction set; `None` means the best this CPU has.
    pub isa: Option<Isa>,
}

/// Why a CPU backend could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The operating system refused the memory the plan needs.
    #[error("cannot map {bytes} bytes of {memory} memory")]
    Memory {
        /// `device` or `host`.
        memory: &'static str,
        /// What the plan asked for.
        bytes: u64,
        /// The refusal.
        source: std::io::Error,
    },
    /// Threads could not be started.
    #[error("cannot start {0} worker threads")]
    Threads(usize),
    /// Weights of mixed types cannot be copied.
    #[error("{0}")]
    Weights(String),
}

/// The CPU backend of one plan.
pub struct Cpu {
    executor: Executor,
    order: LaneOrder,
    stats: Stats,
    timeline: Vec<Timed>,
    keep_timeline: bool,
    logits: Vec<f32>,
    rows: usize,
    watch: Arc<Watch>,
}

impl Cpu {
    /// Allocates everything `plan` asks for, and copies resident weights.
    ///
    /// # Errors
    /// [`OpenError`] when memory or threads are refused, or when copied weights are not of the declared type.
    pub fn open(plan: Arc<Plan>, weights: Arc<Weights>, options: &CpuOptions) -> Result<Self, OpenError> {
        let arena = |memory, name| {
            let bytes = plan.layout().bytes(memory);
            Arena::new(bytes, options.poison).map_err(|source| OpenError::Memory {
                memory: name,
                bytes,
                source,
            })
        };
        let memories = Memories::new(arena(Memory::Device, "device")?, arena(Memory::Host, "host")?);
        let stats = Stats {
            device_bytes: memories.arena(Memory::Device).bytes(),
            host_bytes: memories.arena(Memory::Host).bytes(),
            ..Stats::default()
        };
        let logits = vec![0.0; plan.knobs().logit_rows * plan.spec.vocab];
        let executor = Executor::open(plan, weights, memories, options)?;
        Ok(Self {
            executor,
            order: options.order,
            stats,
            timeline: Vec::new(),
            keep_timeline: false,
            logits,
            rows: 0,
            watch: Arc::default(),
        })
    }

    /// Hands one tile of a head in the host's store to `change`: K, then V, bf16 bits `[tile, head_dim]`. For
    /// injecting faults between steps, to see what a head is worth.
    ///
    /// # Panics
    /// When the plan keeps no such tile on the host, or keeps it coded.
    pub fn change_tile(
        &mut self,
        layer: usize,
        head: usize,
        tile: usize,
        change: impl FnOnce(&mut [u16], &mut [u16]),
    ) {
        let operands = self.executor.plan.stored_tile_operands(layer, head, tile);
        let grant = self.executor.memories.grant(operands.expect("the plan keeps the tile on the host"));
        change(grant.write(Role::Key, 0), grant.write(Role::Value, 0));
    }
}

impl Backend for Cpu {
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError> {
        let plan = &self.executor.plan;
        assert_eq!(ids.len(), schedule.step.rows, "one id per row");
        self.executor.check_pack_fault()?;
        self.executor.put_ids(ids);
        let timed = lanes::run(schedule, self.order, &|command| {
            self.watch.begin(command.lane, &command.op, plan.layout(), plan.spec.kv_heads);
            self.executor.execute(&schedule.step, &command.op);
        });
        self.watch.rest();
        for t in &timed {
            let command = &schedule.commands[t.command];
            self.stats.busy[t.lane.index()] += t.end - t.start;
            let cost = plan.command_cost(&schedule.step, &command.op);
            self.stats.bytes[t.lane.index()] += cost.lane_bytes(t.lane) as u64;
        }
        let (copy, hidden) = copy_overlap(&timed);
        self.stats.copy += copy;
        self.stats.copy_hidden += hidden;
        self.rows = schedule.step.logit_rows;
        if self.keep_timeline {
            self.timeline = timed;
        }
        self.executor.check_pack_fault()
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        let used = &mut self.logits[..self.rows * self.executor.plan.spec.vocab];
        if !used.is_empty() {
            let grant = self.executor.memories.grant(self.executor.plan.logits_operand(self.rows));
            used.copy_from_slice(grant.read::<f32>(Role::Logits, 0));
        }
        Ok(used)
    }

    fn fill_past(&mut self, rows: usize, seed: u64) -> Result<(), BackendError> {
        self.executor.fill_past(rows, seed)
    }

    fn read_rows(&mut self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        self.executor.read_rows(rows, held, to);
        Ok(())
    }

    fn write_rows(&mut self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        self.executor.write_rows(rows, from)
    }

    /// The matrix products of a library choose their blocks by the processor's caches, so its model is part of it.
    fn numerics(&self) -> Option<String> {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = |name| info.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        Some(format!("cpu {} {} {}", self.executor.isa.name(), line("model name"), line("cache size")))
    }

    fn rows_alike(&self) -> usize {
        DECODE_ROWS
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn watch(&self) -> Option<Arc<Watch>> {
        Some(self.watch.clone())
    }

    fn record_timeline(&mut self, on: bool) {
        self.keep_timeline = on;
    }

    fn timeline(&self) -> &[Timed] {
        &self.timeline
    }
}
