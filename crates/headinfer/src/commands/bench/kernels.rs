//! `bench kernels`: a layer's products beside the best candidate of cuBLASLt, and the kernels that the device's memory
//! bounds beside a copy.

use anyhow::Result;
use headinfer_core::model::spec::ModelSpec;
use headinfer_core::units::Bytes;
use headinfer_cuda::measure::{Bed, Elementwise, Passed, Product, Searched, layer_products};
use serde::Serialize;

use crate::args::{DeviceChoice, Environment, KernelsArgs};
use crate::measure::cuda;
use crate::model_source::ModelSource;
use crate::{device, output};

/// Names of a layer's products, in their order.
const PRODUCTS: [&str; 4] = ["QKV", "output", "gate and up", "down"];

/// Measures and prints.
///
/// # Errors
/// When there is no such model or no CUDA device, or it refuses memory or fails.
pub(crate) fn run(args: &KernelsArgs, environment: &Environment) -> Result<()> {
    let spec = ModelSource::parse(&args.model)?.spec(&environment.hub)?;
    device::choose(DeviceChoice::Cuda)?;
    let plan = cuda::kernels_plan(&spec, args.rows)?;
    let (rows, mlp_rows) = (plan.knobs().chunk, plan.knobs().mlp_rows);
    let products = layer_products(&spec, rows, mlp_rows);
    let of_products = products.iter().map(|(product, _)| product.device_bytes());
    let of_kernels = Elementwise::ALL.map(|kernel| kernel.device_bytes(&spec, rows));
    let most = of_products.chain(of_kernels).max().unwrap_or(0);
    let mut bed = Bed::open(&device::cuda_options(environment.cache.as_deref()), spec.head_dim, most, 0)?;
    let mut report = Report {
        device: bed.info().name.clone(),
        model: spec.name.clone(),
        rows,
        products: Vec::with_capacity(products.len()),
        kernels: Vec::with_capacity(Elementwise::ALL.len()),
    };
    for (name, (product, _)) in PRODUCTS.into_iter().zip(&products) {
        report.products.push(ProductRow::new(name, product, &bed.search(product)?));
    }
    for kernel in Elementwise::ALL {
        report.kernels.push(KernelRow::new(kernel, &spec, &bed.elementwise(kernel, &spec, rows)?));
    }
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    device: String,
    model: String,
    /// Of the kernels, and of the products of attention.
    rows: usize,
    products: Vec<ProductRow>,
    kernels: Vec<KernelRow>,
}

/// A product `[rows, inner]` by `[out, inner]`.
#[derive(Serialize)]
struct ProductRow {
    name: &'static str,
    rows: usize,
    out: usize,
    inner: usize,
    /// Timed.
    candidates: usize,
    /// Of the one that runs use.
    ms: f64,
    tflops: f64,
    best_ms: f64,
    best_tflops: f64,
    /// Place of the best in the order of the heuristic, 0 for the one that runs use.
    best_candidate: usize,
    /// Rate of the one that runs use against the best's.
    of_best: f64,
}

impl ProductRow {
    fn new(name: &'static str, product: &Product, found: &Searched) -> Self {
        let Searched { candidates, chosen_s, best_s, best } = *found;
        Self {
            name,
            rows: product.rows,
            out: product.out,
            inner: product.inner,
            candidates,
            ms: 1e3 * chosen_s,
            tflops: product.flop() / chosen_s / 1e12,
            best_ms: 1e3 * best_s,
            best_tflops: product.flop() / best_s / 1e12,
            best_candidate: best,
            of_best: best_s / chosen_s,
        }
    }
}

/// A kernel bound by memory.
#[derive(Serialize)]
struct KernelRow {
    name: &'static str,
    /// Whether a step of this model launches it.
    used: bool,
    /// Read and written.
    bytes: u64,
    ms: f64,
    gb_s: f64,
    /// Of a copy of as many bytes, read and written.
    copy_gb_s: f64,
    of_copy: f64,
}

impl KernelRow {
    fn new(kernel: Elementwise, spec: &ModelSpec, passed: &Passed) -> Self {
        let Passed { bytes, seconds, copy_s } = *passed;
        Self {
            name: kernel.name(),
            used: kernel != Elementwise::Bias || spec.o_bias || spec.mlp_bias,
            bytes,
            ms: 1e3 * seconds,
            gb_s: bytes as f64 / seconds / 1e9,
            copy_gb_s: bytes as f64 / copy_s / 1e9,
            of_copy: copy_s / seconds,
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("{}: {} at {} rows\n", self.device, self.model, self.rows);
        text += &format!(
            "  {:<12} {:>22} {:>9} {:>9}  of the best of cuBLASLt's candidates\n",
            "product", "rows x out x inner", "ms", "TFLOP/s"
        );
        for ProductRow { name, rows, out, inner, candidates, ms, tflops, best_tflops, of_best, .. } in
            &self.products
        {
            let (shape, share) = (format!("{rows} x {out} x {inner}"), 100.0 * of_best);
            text += &format!("  {name:<12} {shape:>22} {ms:>9.3} {tflops:>9.0}  ");
            text += &format!("{share:.1} % of {best_tflops:.0}, {candidates} candidates\n");
        }
        text += &format!("  {:<12} {:>22} {:>9} {:>9}  of a copy\n", "kernel", "bytes", "ms", "GB/s");
        for KernelRow { name, used, bytes, ms, gb_s, copy_gb_s, of_copy } in &self.kernels {
            let unused = if *used { "" } else { "; this model has no use for it" };
            let (bytes, share) = (Bytes(*bytes).to_string(), 100.0 * of_copy);
            text += &format!("  {name:<12} {bytes:>22} {ms:>9.3} {gb_s:>9.0}  ");
            text += &format!("{share:.1} % of {copy_gb_s:.0}{unused}\n");
        }
        text
    }
}
