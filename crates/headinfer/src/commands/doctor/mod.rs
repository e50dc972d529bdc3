//! `headinfer doctor`: what this machine has, what it reaches, and the figures kept for the planner.

mod has;

use std::path::PathBuf;

use anyhow::Result;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::measure::HeadShape;
use headinfer_core::plan::Machine;
use headinfer_core::units::Bytes;
use headinfer_cuda::measure::Rates;
use serde::Serialize;

use crate::args::{DoctorArgs, Environment};
use crate::machine::Kept;
use crate::measure::cpu::{self, Attention};
use crate::measure::cuda;
use crate::{date, device, output};
use has::Has;

/// Looks, measures, keeps and prints.
///
/// # Errors
/// When memory or threads are refused, or the figures cannot be kept.
pub(crate) fn run(args: &DoctorArgs, environment: &Environment) -> Result<()> {
    let has = Has::look(environment.cache.as_deref());
    let measured = match args.look {
        true => None,
        false => Some(Measured::measure(args.threads)?),
    };
    let rates = match (&measured, device::card()) {
        (Some(_), Some(_)) => cuda::usual_rates(environment.cache.as_deref()).map(Some)?,
        _ => None,
    };
    let report = Report::new(has, measured, rates.as_ref(), environment)?;
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    has: Has,
    measured: Option<Measured>,
    /// What the planner will use for the CPU.
    machine: Option<Machine>,
    measured_cuda: Option<cuda::Shown>,
    /// What the planner will use for CUDA.
    machine_cuda: Option<Machine>,
    /// Where it is kept.
    kept: Option<PathBuf>,
}

impl Report {
    /// Keeps what was measured, and what was kept before of what was not.
    fn new(
        has: Has,
        measured: Option<Measured>,
        rates: Option<&Rates>,
        environment: &Environment,
    ) -> Result<Self> {
        let machine = measured.as_ref().map(Measured::machine);
        let read = machine.as_ref().map_or(0.0, |m| m.host_bytes_s);
        let machine_cuda = rates.map(|rates| cuda::machine(rates, read));
        let kept = match (&machine, &environment.cache) {
            (Some(_), Some(cache)) => {
                let before = Kept::load(Some(cache));
                let kept = Kept {
                    cpu: machine.clone(),
                    cuda: machine_cuda.clone().or(before.cuda),
                    cuda_memory: device::card().map(|info| info.total_bytes).or(before.cuda_memory),
                };
                Some(kept.save(cache)?)
            }
            _ => None,
        };
        Ok(Self { has, measured, machine, measured_cuda: rates.map(cuda::Shown::from), machine_cuda, kept })
    }
}

/// What kernels and memory reach.
#[derive(Clone, Serialize)]
struct Measured {
    threads: usize,
    /// Memory that was read.
    field_bytes: u64,
    /// f32 multiply-adds as two operations each, all threads: the highest median beside attention, as of `read_gb_s`.
    fma_gflops: f64,
    read_gb_s: f64,
    read_one_thread_gb_s: f64,
    /// One thread, counted once.
    copy_gb_s: f64,
    /// 512 rows by a bf16 weight `[4096, 4096]`.
    gemm_gflops: f64,
    attention: Vec<Attention>,
}

/// Head dimension and query heads per KV head: the last is Llama-3-8B's.
const SHAPES: [HeadShape; 4] = [
    HeadShape { head_dim: 64, group: 1 },
    HeadShape { head_dim: 64, group: 4 },
    HeadShape { head_dim: 128, group: 1 },
    HeadShape { head_dim: 128, group: 4 },
];
impl Measured {
    fn measure(threads: Option<u16>) -> Result<Self> {
        let pool = cpu::pool(threads)?;
        let alone = cpu::pool(Some(1))?;
        let isa = Isa::detect();
        let mut field = pool.install(|| cpu::field(u64::MAX))?;
        let attention = SHAPES.map(|shape| pool.install(|| Attention::measure(isa, &field, shape)));
        let gemm = pool.install(|| field.gemm_flops(isa, 512, 4096, 4096));
        let highest = |of: fn(&Attention) -> f64| attention.iter().map(of).fold(0.0, f64::max);
        Ok(Self {
            threads: pool.current_num_threads(),
            field_bytes: field.bytes(),
            fma_gflops: highest(|a| a.prefill_peak_gflops),
            read_gb_s: highest(|a| a.decode_read_gb_s),
            read_one_thread_gb_s: alone.install(|| field.read_bytes_s(isa)) / 1e9,
            copy_gb_s: field.copy_bytes_s() / 1e9,
            gemm_gflops: gemm / 1e9,
            attention: attention.to_vec(),
        })
    }

    /// As the planner takes it.
    fn machine(&self) -> Machine {
        let attention = self.attention.last().map_or(self.fma_gflops, |a| a.prefill_gflops);
        Machine {
            source: format!(
                "measured by headinfer doctor on {} with {} threads",
                date::today_text(),
                self.threads
            ),
            gemm_flops: self.gemm_gflops * 1e9,
            attention_flops: attention * 1e9,
            device_bytes_s: self.read_gb_s * 1e9,
            link_bytes_s: self.copy_gb_s * 1e9,
            host_bytes_s: self.read_gb_s * 1e9,
            device_overhead: 0,
            together: None,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = self.has.text();
        text += &self.measured.as_ref().map_or(String::new(), Measured::text);
        text += &self.measured_cuda.as_ref().map_or(String::new(), cuda_text);
        match (&self.kept, &self.measured) {
            (Some(path), _) => text += &format!("kept in    {}\n", path.display()),
            (None, Some(_)) => text += "not kept: there is no home; set HEADINFER_CACHE to a folder\n",
            (None, None) => {}
        }
        text
    }
}

impl Measured {
    fn text(&self) -> String {
        let mut text = format!("measured with {} threads over {}\n", self.threads, Bytes(self.field_bytes));
        text += &format!("  multiply-add, f32       {:>8.1} GFLOP/s\n", self.fma_gflops);
        text += &format!("  matrix product          {:>8.1} GFLOP/s\n", self.gemm_gflops);
        text += &format!("  memory read             {:>8.1} GB/s\n", self.read_gb_s);
        text += &format!("  memory read, one thread {:>8.1} GB/s\n", self.read_one_thread_gb_s);
        text += &format!("  memory copy, one thread {:>8.1} GB/s\n", self.copy_gb_s);
        text += "  attention    prefill          of FMA           decode      of read, median (range)\n";
        for a in &self.attention {
            let shape = format!("{} x {}", a.head_dim, a.group);
            let ratio = |median: f64, (low, high): (f64, f64)| {
                format!("{:>3.0} % ({:.0}-{:.0})", 100.0 * median, 100.0 * low, 100.0 * high)
            };
            let of_peak = ratio(a.prefill_of_peak, a.prefill_of_peak_spread);
            let of_read = ratio(a.decode_of_read, a.decode_of_read_spread);
            let (prefill, decode) = (a.prefill_gflops, a.decode_gb_s);
            text += &format!(
                "    {shape:<8} {prefill:>8.1} GFLOP/s  {of_peak:<15}  {decode:>6.1} GB/s  {of_read}\n"
            );
        }
        text
    }
}

fn cuda_text(rates: &cuda::Shown) -> String {
    let mut text = format!("measured on {}, at the shapes of Llama-3-8B\n", rates.device);
    text += &format!("  attention over a past   {:>8.1} TFLOP/s\n", rates.attention_tflops);
    text += &format!("  attention, causal       {:>8.1} TFLOP/s\n", rates.own_attention_tflops);
    text += &format!("  matrix products         {:>8.1} TFLOP/s\n", rates.gemm_tflops);
    text += &format!("  device copy             {:>8.1} GB/s read and written\n", rates.device_copy_gb_s);
    let (each, size) = (rates.link_both_gb_s, Bytes(rates.link_copy_bytes));
    text += &format!("  host to device          {:>8.1} GB/s in copies of {size}\n", rates.link_in_gb_s);
    text += &format!("  device to host          {:>8.1} GB/s\n", rates.link_out_gb_s);
    text += &format!("  both at once            {each:>8.1} GB/s each way\n");
    if let (Some(link), Some(cpu)) = (rates.link_beside_cpu_gb_s, rates.cpu_beside_link_gb_s) {
        text += &format!(
            "  beside CPU attention    {link:>8.1} GB/s to the device, {cpu:.1} GB/s of KV read by the CPU\n"
        );
    }
    text += &format!("  driver and kernels take {:>8}\n", Bytes(rates.overhead_bytes).to_string());
    text
}
