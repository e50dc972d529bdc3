//! `bench attention`: the attention kernels alone, on a GPU or beside the CPU's ceilings.

use anyhow::Result;
use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::measure::{HeadShape, PrefillLoad};
use headinfer_core::plan::DeviceKind;
use headinfer_cuda::measure::{Attended, Bed};
use headinfer_cuda::{PrefillKernel, probe};
use serde::Serialize;

use crate::args::{AttentionArgs, Environment, IsaChoice, KernelChoice};
use crate::error::Failure;
use crate::measure::cpu;
use crate::{device, output};

/// Query heads and KV heads of the causal shapes and of decode.
const HEADS: (usize, usize) = (32, 8);
/// Tokens of the causal shapes.
const CAUSAL: [usize; 3] = [8 << 10, 16 << 10, 32 << 10];
/// Chunks, and the pasts that each is attended over by the query heads of one KV head.
const CHUNKS: [usize; 2] = [8 << 10, 16 << 10];
const PASTS: [usize; 4] = [128 << 10, 256 << 10, 512 << 10, 1 << 20];
/// Keys of the decode shape.
const DECODED: usize = 128 << 10;

/// Measures and prints.
///
/// # Errors
/// When the device cannot be used, or memory or threads are refused.
pub(crate) fn run(args: &AttentionArgs, environment: &Environment) -> Result<()> {
    let report = match device::choose(args.device)? {
        DeviceKind::Cuda => on_cuda(args, environment)?,
        DeviceKind::Cpu => on_cpu(args)?,
    };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    device: String,
    head_dim: usize,
    /// On a GPU, what computes prefill attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_kernel: Option<&'static str>,
    /// On the CPU, what kernels and peaks were compiled for.
    #[serde(skip_serializing_if = "Option::is_none")]
    isa: Option<&'static str>,
    /// What `of_peak` is of, measured in this run.
    peaks: Peaks,
    rows: Vec<Row>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Peaks {
    Cpu {
        /// f32 multiply-adds of all threads.
        fma_tflops: f64,
        /// Memory read by all threads.
        read_gb_s: f64,
    },
    Cuda {
        /// Within the device, read and written.
        device_copy_gb_s: f64,
    },
}

/// One kernel at one shape.
#[derive(Default, Serialize)]
struct Row {
    /// `prefill causal`, `prefill over a past` or `decode`.
    what: &'static str,
    q_heads: usize,
    kv_heads: usize,
    /// Query tokens.
    tokens: usize,
    /// Keys before them.
    past: usize,
    ms: f64,
    /// Of prefill.
    #[serde(skip_serializing_if = "Option::is_none")]
    tflops: Option<f64>,
    /// Of decode: K and V read.
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_s: Option<f64>,
    /// Of the device's copy rate, or of the CPU's multiply-add peak or read bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    of_peak: Option<f64>,
}

fn on_cuda(args: &AttentionArgs, environment: &Environment) -> Result<Report> {
    let (d, group) = (args.head_dim, HEADS.0 / HEADS.1);
    let tile = args.tile;
    let causal = CAUSAL.map(|tokens| Attended { tokens, kv_heads: HEADS.1, group, past: 0, tile, own: true });
    let chunk = |tokens| PASTS.map(|past| Attended { tokens, kv_heads: 1, group, past, tile, own: false });
    let decode = Attended { tokens: 1, kv_heads: HEADS.1, group, past: DECODED, tile: DECODED, own: false };
    let shapes: Vec<Attended> =
        causal.into_iter().chain(CHUNKS.into_iter().flat_map(chunk)).chain([decode]).collect();
    let most = shapes.iter().map(|shape| shape.device_bytes(d)).max().unwrap_or(0);
    let mut options = device::cuda_options(environment.cache.as_deref());
    if args.kernel == KernelChoice::Portable {
        let shared = probe(options.ordinal)?.shared_bytes;
        options.prefill = Some(PrefillKernel::new(d, false, shared));
    }
    let mut bed = Bed::open(&options, d, most, 0)?;
    let copied = bed.device_copy()?;
    let mut rows = Vec::with_capacity(shapes.len());
    for shape in &shapes {
        let seconds = bed.attention(shape)?;
        let row = Row {
            q_heads: shape.kv_heads * shape.group,
            kv_heads: shape.kv_heads,
            tokens: shape.tokens,
            past: shape.past,
            ms: 1e3 * seconds,
            ..Row::default()
        };
        let read = shape.kv_bytes(d) / seconds;
        let tflops = Some(shape.flop(d) / seconds / 1e12);
        rows.push(match (shape.tokens, shape.own) {
            (1, _) => Row { what: "decode", gb_s: Some(read / 1e9), of_peak: Some(read / copied), ..row },
            (_, true) => Row { what: "prefill causal", tflops, ..row },
            (_, false) => Row { what: "prefill over a past", tflops, ..row },
        });
    }
    let peaks = Peaks::Cuda { device_copy_gb_s: copied / 1e9 };
    let prefill_kernel = Some(bed.prefill_kernel().name());
    Ok(Report { device: bed.info().name.clone(), head_dim: d, prefill_kernel, isa: None, peaks, rows })
}

fn on_cpu(args: &AttentionArgs) -> Result<Report> {
    let isa = instruction_set(args.isa)?;
    let pool = cpu::pool(args.threads)?;
    let field = pool.install(|| cpu::field(u64::MAX))?;
    let head_dim = args.head_dim;
    let shapes = [1, HEADS.0 / HEADS.1].map(|group| HeadShape { head_dim, group });
    let measured = shapes.map(|shape| pool.install(|| cpu::Attention::measure(isa, &field, shape)));
    let rows = measured.iter().flat_map(|a| {
        let PrefillLoad { heads, tokens, keys } = cpu::PREFILL;
        let flop = (4 * heads * tokens * a.group * head_dim * keys) as f64;
        let prefill = Row {
            what: "prefill over a past",
            q_heads: a.group * heads,
            kv_heads: heads,
            tokens,
            past: keys,
            ms: flop / a.prefill_gflops / 1e6,
            tflops: Some(a.prefill_gflops / 1e3),
            of_peak: Some(a.prefill_of_peak),
            gb_s: None,
        };
        let past = field.bytes() as usize / (cpu::KV_HEADS * head_dim * 4);
        let decode = Row {
            what: "decode",
            q_heads: a.group * cpu::KV_HEADS,
            kv_heads: cpu::KV_HEADS,
            tokens: 1,
            past,
            ms: (cpu::KV_HEADS * head_dim * 4 * past) as f64 / a.decode_gb_s / 1e6,
            tflops: None,
            gb_s: Some(a.decode_gb_s),
            of_peak: Some(a.decode_of_read),
        };
        [prefill, decode]
    });
    let rows: Vec<Row> = rows.collect();
    let highest = |of: fn(&cpu::Attention) -> f64| measured.iter().map(of).fold(0.0, f64::max);
    let peaks = Peaks::Cpu {
        fma_tflops: highest(|a| a.prefill_peak_gflops) / 1e3,
        read_gb_s: highest(|a| a.decode_read_gb_s),
    };
    let device = format!("CPU, {} threads", pool.current_num_threads());
    Ok(Report { device, head_dim, prefill_kernel: None, isa: Some(isa.name()), peaks, rows })
}

fn instruction_set(choice: IsaChoice) -> Result<Isa, Failure> {
    let wanted = match choice {
        IsaChoice::Auto => return Ok(Isa::detect()),
        IsaChoice::Portable => Isa::Portable,
        IsaChoice::Avx2 => Isa::Avx2,
        IsaChoice::Avx512 => Isa::Avx512,
    };
    let there = Isa::available();
    if there.contains(&wanted) {
        return Ok(wanted);
    }
    let names: Vec<_> = there.into_iter().map(Isa::name).collect();
    Err(Failure::usage(format!("this CPU lacks {}: it has {}", wanted.name(), names.join(", ")))
        .hint("drop --isa"))
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("{}: attention kernels, heads of {}\n", self.device, self.head_dim);
        if let Some(kernel) = self.prefill_kernel {
            text += &format!("  prefill by {kernel}\n");
        }
        if let Some(isa) = self.isa {
            text += &format!("  compiled for {isa}\n");
        }
        text += &match self.peaks {
            Peaks::Cpu { fma_tflops, read_gb_s } => format!(
                "  peaks, measured in the turns between: multiply-add {:.1} GFLOP/s, memory read {read_gb_s:.1} GB/s\n",
                1e3 * fma_tflops
            ),
            Peaks::Cuda { device_copy_gb_s } => {
                format!("  peak of decode: device copy {device_copy_gb_s:.1} GB/s\n")
            }
        };
        text += &format!("  {:<20} {:>8} {:>7} {:>8} {:>10}\n", "", "heads", "tokens", "past", "ms");
        for row in &self.rows {
            let heads = format!("{} / {}", row.q_heads, row.kv_heads);
            let rate = match (row.tflops, row.gb_s) {
                (Some(tflops), _) if tflops >= 10.0 => format!("{tflops:>8.0} TFLOP/s"),
                (Some(tflops), _) => format!("{:>8.1} GFLOP/s", 1e3 * tflops),
                (None, gb_s) => format!("{:>8.1} GB/s", gb_s.unwrap_or(0.0)),
            };
            let of_peak =
                row.of_peak.map_or(String::new(), |share| format!(", {:.0} % of the peak", 100.0 * share));
            let Row { what, tokens, past, ms, .. } = row;
            text += &format!("  {what:<20} {heads:>8} {tokens:>7} {past:>8} {ms:>10.3} {rate}{of_peak}\n");
        }
        text
    }
}
