//! `bench link`: copies between host and device by size, one way and both, and copies within the device.

use anyhow::Result;
use headinfer_core::units::{Bytes, KIB, MIB};
use headinfer_cuda::measure::{Bed, Way};
use serde::Serialize;

use crate::args::{DeviceChoice, Environment, LinkArgs};
use crate::{device, output};

/// Sizes of a copy.
const SIZES: [u64; 9] = [256 * KIB, 512 * KIB, MIB, 2 * MIB, 4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB];
/// Memory of the device to copy within; half of as much of the host's goes each way.
const BYTES: u64 = 1 << 30;
const HOST_BYTES: u64 = 512 * MIB;
/// Copies need no kernel of any particular head.
const HEAD_DIM: usize = 128;

/// Measures and prints.
///
/// # Errors
/// When there is no CUDA device, or it refuses memory or fails.
pub(crate) fn run(args: &LinkArgs, environment: &Environment) -> Result<()> {
    device::choose(DeviceChoice::Cuda)?;
    let mut bed =
        Bed::open(&device::cuda_options(environment.cache.as_deref()), HEAD_DIM, BYTES, HOST_BYTES)?;
    let mut rows = Vec::with_capacity(SIZES.len());
    for bytes in SIZES {
        let mut rate = |way| Ok::<_, anyhow::Error>(bed.link(way, bytes)? / 1e9);
        let (in_gb_s, out_gb_s) = (rate(Way::In)?, rate(Way::Out)?);
        rows.push(Row { bytes, in_gb_s, out_gb_s, both_gb_s: rate(Way::Both)? });
    }
    let report = Report { device: bed.info().name.clone(), rows, device_copy_gb_s: bed.device_copy()? / 1e9 };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    device: String,
    rows: Vec<Row>,
    /// Read and written.
    device_copy_gb_s: f64,
}

/// Copies of one size.
#[derive(Serialize)]
struct Row {
    bytes: u64,
    /// To the device.
    in_gb_s: f64,
    /// From the device.
    out_gb_s: f64,
    /// Each way while both run.
    both_gb_s: f64,
}

impl Report {
    fn text(&self) -> String {
        let mut text = format!("{}: copies of pinned memory, GB/s\n", self.device);
        text += &format!("  {:>8}  {:>9}  {:>9}  {:>14}\n", "size", "to device", "from it", "both, each way");
        for Row { bytes, in_gb_s, out_gb_s, both_gb_s } in &self.rows {
            let size = Bytes(*bytes).to_string();
            text += &format!("  {size:>8}  {in_gb_s:>9.1}  {out_gb_s:>9.1}  {both_gb_s:>14.1}\n");
        }
        text + &format!("within the device {:.0} GB/s, read and written\n", self.device_copy_gb_s)
    }
}
