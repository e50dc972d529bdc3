//! What a run is held against: the machine's rates, measured before and after it in the same process, and the floors
//! they imply.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use headinfer_core::cpu::measure::{Field, InTurns};
use headinfer_core::plan::{DeviceKind, Machine, Plan, Step};
use headinfer_cuda::measure::Rates;
use rayon::ThreadPool;
use serde::Serialize;

use crate::measure::{cpu, cuda};

/// Measures before a run and after it. On the CPU also after each step, so that what else the machine does meets both;
/// on a GPU never while a backend is open: what is measured on would add to the peak.
pub(super) enum Meter {
    Cpu(Turns),
    Cuda { plan: Arc<Plan>, cache: Option<PathBuf>, before: Rates },
}

/// Ceilings of the CPU in turns with what steps reached.
pub(super) struct Turns {
    pool: ThreadPool,
    field: Field,
    ceilings: Vec<cpu::Ceilings>,
    reached: Vec<Reached>,
    machine: Machine,
}

/// What a step reached.
pub(super) struct Reached {
    pub(super) attention_flops: f64,
    pub(super) kv_bytes_s: f64,
    /// K, V and weights over the time of the whole step.
    pub(super) step_bytes_s: f64,
}

impl Meter {
    /// Measures before the run.
    ///
    /// # Errors
    /// When the system or the device refuses memory or threads.
    pub(super) fn start(plan: &Arc<Plan>, threads: Option<u16>, cache: Option<&Path>) -> Result<Self> {
        if plan.knobs().device == DeviceKind::Cuda {
            let before = cuda::rates(plan, cache)?;
            return Ok(Self::Cuda { plan: plan.clone(), cache: cache.map(Path::to_owned), before });
        }
        let pool = cpu::pool(threads)?;
        // As much as the last step reads: caches shorten both the same.
        let cost = plan.step_cost(&Step { past: plan.knobs().context - 1, rows: 1, logit_rows: 1 });
        let field = pool.install(|| cpu::field((cost.device_bytes + cost.host_bytes) as u64))?;
        let ceilings = vec![pool.install(|| cpu::Ceilings::measure(&field))];
        let machine = plan.request.machine.clone();
        Ok(Self::Cpu(Turns { pool, field, ceilings, reached: Vec::new(), machine }))
    }

    /// Measures after a step, where that can be.
    pub(super) fn after(&mut self, step: Reached) {
        if let Self::Cpu(turns) = self {
            turns.reached.push(step);
            let field = &turns.field;
            turns.ceilings.push(turns.pool.install(|| cpu::Ceilings::measure(field)));
        }
    }

    /// Forgets the steps so far: ceilings and their ratios are of what follows.
    pub(super) fn begin(&mut self) {
        if let Self::Cpu(turns) = self {
            turns.reached.clear();
            turns.ceilings.drain(..turns.ceilings.len() - 1);
        }
    }

    /// Measures after the run. On a GPU the mean of before and after counts, as its clock falls while it works.
    ///
    /// # Errors
    /// As [`Meter::start`].
    pub(super) fn finish(self) -> Result<Ceilings> {
        Ok(match self {
            Self::Cpu(turns) => Ceilings::Cpu {
                attention: turns.of(|r| r.attention_flops, |c| c.fma_flops),
                kv: turns.of(|r| r.kv_bytes_s, |c| c.read_bytes_s),
                step: turns.of(|r| r.step_bytes_s, |c| c.read_bytes_s),
                machine: turns.machine,
            },
            Self::Cuda { plan, cache, before } => {
                Ceilings::Cuda(before.mean(&cuda::rates(&plan, cache.as_deref())?))
            }
        })
    }
}

impl Turns {
    /// A rate of every step beside a ceiling.
    fn of(&self, rate: fn(&Reached) -> f64, ceiling: fn(&cpu::Ceilings) -> f64) -> InTurns {
        let ceilings: Vec<f64> = self.ceilings.iter().map(ceiling).collect();
        InTurns::of(&ceilings, &self.reached.iter().map(rate).collect::<Vec<f64>>())
    }
}

/// What was measured.
pub(super) enum Ceilings {
    /// Attention beside the multiply-add peak, K and V read beside the read bandwidth, all that a step reads beside it;
    /// floors are by the planner's rates.
    Cpu { attention: InTurns, kv: InTurns, step: InTurns, machine: Machine },
    /// What device, link and kernels reach alone.
    Cuda(Rates),
}

impl Ceilings {
    /// Whose rates the floors use.
    pub(super) fn source(&self) -> String {
        match self {
            Self::Cpu { machine, .. } => machine.source.clone(),
            Self::Cuda(rates) => format!("measured in this run, {}", rates.device),
        }
    }

    /// Attention at `flops` as a share of the multiply-add peak on the CPU, of what the kernel reaches alone on a GPU.
    pub(super) fn attention_share(&self, flops: f64) -> f64 {
        match self {
            Self::Cpu { attention, .. } => attention.ratio,
            Self::Cuda(rates) => flops / rates.attention_flops,
        }
    }

    fn speeds(&self) -> Speeds {
        match self {
            Self::Cpu { machine: m, .. } => Speeds {
                attention: m.attention_flops,
                own_attention: m.attention_flops,
                gemm: m.gemm_flops,
                link_in: m.link_bytes_s,
                link_beside_cpu: m.link_bytes_s,
                link_out: m.link_bytes_s,
                device: m.device_bytes_s,
                host: m.host_bytes_s,
            },
            Self::Cuda(r) => Speeds {
                attention: r.attention_flops,
                own_attention: r.own_attention_flops,
                gemm: r.gemm_flops,
                link_in: r.link_in_bytes_s,
                link_beside_cpu: r.together.map_or(r.link_in_bytes_s, |t| t.link_bytes_s),
                link_out: r.link_out_bytes_s,
                device: r.device_copy_bytes_s,
                host: r.together.map_or(f64::INFINITY, |t| t.host_bytes_s),
            },
        }
    }
}

/// Per second.
struct Speeds {
    attention: f64,
    own_attention: f64,
    gemm: f64,
    link_in: f64,
    /// While the CPU attends too.
    link_beside_cpu: f64,
    link_out: f64,
    device: f64,
    host: f64,
}

/// Seconds that nothing can beat, and what they are made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Floor {
    /// Attention FLOP at the kernel's own rate.
    pub(super) attention_s: f64,
    /// Product FLOP at the products' own rate.
    pub(super) gemm_s: f64,
    /// Bytes over the link, the slower way.
    pub(super) link_s: f64,
    /// Weights and KV read on the device.
    pub(super) device_s: f64,
    /// Of it, the weights.
    pub(super) weights_s: f64,
    /// KV read by the CPU.
    pub(super) host_s: f64,
    /// Arithmetic, link, device memory or CPU, whichever takes longest, step by step.
    pub(super) total_s: f64,
}

impl Floor {
    /// Of some steps, one after another.
    pub(super) fn of(plan: &Plan, steps: &[Step], ceilings: &Ceilings) -> Self {
        let speeds = ceilings.speeds();
        steps.iter().fold(Self::default(), |mut sum, step| {
            let one = Self::of_step(plan, step, &speeds);
            sum.attention_s += one.attention_s;
            sum.gemm_s += one.gemm_s;
            sum.link_s += one.link_s;
            sum.device_s += one.device_s;
            sum.weights_s += one.weights_s;
            sum.host_s += one.host_s;
            sum.total_s += one.total_s;
            sum
        })
    }

    fn of_step(plan: &Plan, step: &Step, speeds: &Speeds) -> Self {
        let cost = plan.step_cost(step);
        // The same rows with nothing before them: their own keys, and the weights.
        let alone = plan.step_cost(&Step { past: 0, ..*step });
        let link_in = if cost.host_bytes > 0.0 { speeds.link_beside_cpu } else { speeds.link_in };
        let past_flop = (cost.attention_flop - alone.attention_flop).max(0.0);
        let mut floor = Self {
            attention_s: past_flop / speeds.attention + alone.attention_flop / speeds.own_attention,
            gemm_s: cost.gemm_flop / speeds.gemm,
            link_s: (cost.in_bytes / link_in).max(cost.out_bytes / speeds.link_out),
            device_s: cost.device_bytes / speeds.device,
            weights_s: alone.device_bytes / speeds.device,
            host_s: cost.host_bytes / speeds.host,
            total_s: 0.0,
        };
        let arithmetic = floor.attention_s + floor.gemm_s;
        floor.total_s = arithmetic.max(floor.link_s).max(floor.device_s).max(floor.host_s);
        floor
    }
}
