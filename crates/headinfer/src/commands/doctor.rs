//! `headinfer doctor`: what this machine has, what it reaches, and the figures kept for the planner.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::measure::{Field, HeadShape, PrefillLoad};
use headinfer_core::plan::Machine;
use headinfer_core::units::{Bytes, KIB};
use serde::Serialize;

use crate::args::{DoctorArgs, Environment};
use crate::machine::{self, Kept};
use crate::measure;
use crate::{device, output};

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
    let kept = match (&measured, &environment.cache) {
        (Some(measured), Some(cache)) => {
            let kept = Kept { cpu: Some(measured.machine()), ..Kept::load(Some(cache)) };
            Some(kept.save(cache)?)
        }
        _ => None,
    };
    let machine = measured.as_ref().map(Measured::machine);
    let report = Report { has, measured, machine, kept };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    has: Has,
    measured: Option<Measured>,
    /// What the planner will use for the CPU.
    machine: Option<Machine>,
    /// Where it is kept.
    kept: Option<PathBuf>,
}

/// What is here.
#[derive(Serialize)]
struct Has {
    os: String,
    cpu: String,
    /// Best instruction set that kernels are compiled for.
    isa: &'static str,
    /// Of the machine.
    cores: usize,
    /// That this process may use: affinity and cgroup quota.
    cores_allowed: usize,
    memory_bytes: u64,
    /// That can be taken now, cgroup respected.
    memory_available_bytes: u64,
    /// What the cgroup leaves; `None` without a limit.
    cgroup_left_bytes: Option<u64>,
    cache: Option<PathBuf>,
    /// Free on the disk of the cache folder.
    cache_free_bytes: Option<u64>,
    /// `None` when a CUDA device can be used, else why not.
    cuda_missing: Option<String>,
}

impl Has {
    fn look(cache: Option<&Path>) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let left = machine::cgroup_left(Path::new("/")).filter(|left| *left < 1 << 60);
        Self {
            os: system(),
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            isa: Isa::detect().name(),
            cores: processors.max(machine::cores()),
            cores_allowed: machine::cores(),
            memory_bytes: total_memory(),
            memory_available_bytes: machine::available_memory(),
            cgroup_left_bytes: left,
            cache_free_bytes: cache.and_then(free_on_disk),
            cache: cache.map(Path::to_owned),
            cuda_missing: device::cuda_missing(),
        }
    }
}

/// Name of the distribution, kind and release of the kernel.
fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(kernel) => format!("{name}, Linux {}", kernel.trim()),
        Err(_) => name.to_owned(),
    }
}

fn total_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(KIB)
}

/// Free bytes on the disk of the nearest folder above `path` that exists.
fn free_on_disk(path: &Path) -> Option<u64> {
    let stat = path.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
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

/// Attention kernels at one shape of heads, each measured in turns with its ceiling: medians.
#[derive(Clone, Serialize)]
struct Attention {
    head_dim: usize,
    group: usize,
    prefill_gflops: f64,
    /// f32 multiply-adds in the turns between.
    prefill_peak_gflops: f64,
    prefill_of_peak: f64,
    /// Least and largest ratio of a turn.
    prefill_of_peak_spread: (f64, f64),
    decode_gb_s: f64,
    /// Memory read in the turns between, the same memory.
    decode_read_gb_s: f64,
    decode_of_read: f64,
    decode_of_read_spread: (f64, f64),
}

impl Attention {
    fn measure(field: &Field, isa: Isa, shape: HeadShape) -> Self {
        let prefill = field.prefill_in_turns(isa, shape, PREFILL, ROUNDS);
        let decode = field.decode_in_turns(isa, shape, KV_HEADS, ROUNDS);
        Self {
            head_dim: shape.head_dim,
            group: shape.group,
            prefill_gflops: prefill.rate / 1e9,
            prefill_peak_gflops: prefill.ceiling / 1e9,
            prefill_of_peak: prefill.ratio,
            prefill_of_peak_spread: prefill.spread,
            decode_gb_s: decode.rate / 1e9,
            decode_read_gb_s: decode.ceiling / 1e9,
            decode_of_read: decode.ratio,
            decode_of_read_spread: decode.spread,
        }
    }
}

/// Head dimension and query heads per KV head: the last is Llama-3-8B's.
const SHAPES: [HeadShape; 4] = [
    HeadShape { head_dim: 64, group: 1 },
    HeadShape { head_dim: 64, group: 4 },
    HeadShape { head_dim: 128, group: 1 },
    HeadShape { head_dim: 128, group: 4 },
];
const KV_HEADS: usize = 8;
/// The prefill measured: a chunk of a layer over part of a tile.
const PREFILL: PrefillLoad = PrefillLoad { heads: KV_HEADS, tokens: 512, keys: 4096 };
/// Turns of kernel and ceiling.
const ROUNDS: usize = 5;

impl Measured {
    fn measure(threads: Option<u16>) -> Result<Self> {
        let pool = measure::pool(threads)?;
        let alone = measure::pool(Some(1))?;
        let isa = Isa::detect();
        let mut field = pool.install(|| measure::field(u64::MAX))?;
        let attention = SHAPES.map(|shape| pool.install(|| Attention::measure(&field, isa, shape)));
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
            source: format!("measured by headinfer doctor with {} threads", self.threads),
            gemm_flops: self.gemm_gflops * 1e9,
            attention_flops: attention * 1e9,
            device_bytes_s: self.read_gb_s * 1e9,
            link_bytes_s: self.copy_gb_s * 1e9,
            host_bytes_s: self.read_gb_s * 1e9,
            device_overhead: 0,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let has = &self.has;
        let size = |bytes: u64| Bytes(bytes).to_string();
        let mut lines = vec![
            ("system", has.os.clone()),
            ("processor", format!("{}, kernels for {}", has.cpu, has.isa)),
            ("cores", format!("{}, of which {} may be used", has.cores, has.cores_allowed)),
            ("memory", format!("{}, {} available", size(has.memory_bytes), size(has.memory_available_bytes))),
            (
                "cgroup",
                has.cgroup_left_bytes.map_or("no memory limit".into(), |b| format!("leaves {}", size(b))),
            ),
            ("cuda", has.cuda_missing.as_ref().map_or("usable".into(), |why| format!("not usable: {why}"))),
        ];
        if let Some(cache) = &has.cache {
            let free = has.cache_free_bytes.map_or(String::new(), |free| format!(", {} free", size(free)));
            lines.push(("cache", format!("{}{free}", cache.display())));
        }
        let mut text = String::new();
        for (name, value) in lines {
            text += &format!("{name:<11}{value}\n");
        }
        text += &self.measured.as_ref().map_or(String::new(), Measured::text);
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
