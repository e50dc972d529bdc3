//! What this machine has: memory that may be used, and the figures that `doctor` keeps for the planner.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use headinfer_core::plan::{DeviceKind, Machine};
use headinfer_core::units::{GIB, KIB};
use serde::{Deserialize, Serialize};

use crate::output;

/// Figures measured by `doctor`, each absent until it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The CPU as a device.
    pub(crate) cpu: Option<Machine>,
    /// The CUDA device.
    pub(crate) cuda: Option<Machine>,
    /// Memory of the CUDA device, bytes.
    pub(crate) cuda_memory: Option<u64>,
}

const FILE: &str = "machine.json";
/// The file holds a dozen numbers; anything longer is something else.
const FILE_BYTES_MAX: u64 = 64 * KIB;
/// Device memory that a CUDA plan assumes when `doctor` has seen no card.
const CUDA_MEMORY: u64 = 24 * GIB;

impl Kept {
    /// Reads the figures kept in `cache`. None, and a remark when there is a file that cannot be read, when
    /// there are none.
    pub(crate) fn load(cache: Option<&Path>) -> Self {
        let Some(path) = cache.map(|dir| dir.join(FILE)).filter(|path| path.exists()) else {
            return Self::default();
        };
        read(&path).unwrap_or_else(|problem| {
            let path = path.display();
            output::remark(&format!("{path} is left aside: {problem}; run headinfer doctor to make it anew"));
            Self::default()
        })
    }

    /// Keeps the figures in `cache` and says where.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn save(&self, cache: &Path) -> Result<PathBuf> {
        fs::create_dir_all(cache)?;
        let path = cache.join(FILE);
        output::write_file(&path, format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes())?;
        Ok(path)
    }

    /// Rates of a kind of device: measured, or stated defaults.
    pub(crate) fn machine(&self, device: DeviceKind) -> Machine {
        let (kept, default): (_, fn() -> Machine) = match device {
            DeviceKind::Cpu => (&self.cpu, || Machine::default_cpu(cores())),
            DeviceKind::Cuda => (&self.cuda, Machine::default_cuda),
        };
        kept.clone().unwrap_or_else(default)
    }

    /// Budgets when no flag says otherwise: on the CPU half of the available memory each for the arena and
    /// the host store; on CUDA the card and all available memory.
    pub(crate) fn budgets(&self, device: DeviceKind, available: u64) -> Budgets {
        match device {
            DeviceKind::Cpu => Budgets { device: available / 2, host: available / 2 },
            DeviceKind::Cuda => Budgets { device: self.cuda_memory.unwrap_or(CUDA_MEMORY), host: available },
        }
    }
}

fn read(path: &Path) -> Result<Kept, String> {
    let length = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("it has {length} bytes"));
    }
    let kept: Kept =
        serde_json::from_slice(&fs::read(path).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    let usable = |m: &Machine| {
        let together = m.together.map(|t| [t.link_bytes_s, t.host_bytes_s, t.host_flops]);
        [m.gemm_flops, m.attention_flops, m.device_bytes_s, m.link_bytes_s, m.host_bytes_s]
            .into_iter()
            .chain(together.into_iter().flatten())
            .all(|rate| rate.is_finite() && rate > 0.0)
    };
    if ![&kept.cpu, &kept.cuda].into_iter().flatten().all(usable) {
        return Err("it has a rate that is not positive".into());
    }
    Ok(kept)
}

/// Bytes a plan may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budgets {
    /// Of device memory.
    pub(crate) device: u64,
    /// Of host memory.
    pub(crate) host: u64,
}

/// Cores this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory that can be taken now: what the system has available or the cgroup leaves, whichever is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Available {
    /// 0 when neither can be read.
    pub(crate) bytes: u64,
    /// Whether it is the cgroup that leaves no more.
    pub(crate) cgroup: bool,
}

/// Memory that can be taken now.
pub(crate) fn available() -> Available {
    available_under(Path::new("/"))
}

/// Bytes of [`available`].
pub(crate) fn available_memory() -> u64 {
    available().bytes
}

/// As [`available`], with `/proc` and `/sys` under `root`.
fn available_under(root: &Path) -> Available {
    match (meminfo_available(root), cgroup_left(root)) {
        (Some(bytes), Some(left)) if left < bytes => Available { bytes: left, cgroup: true },
        (Some(bytes), _) => Available { bytes, cgroup: false },
        (None, left) => Available { bytes: left.unwrap_or(0), cgroup: left.is_some() },
    }
}

/// Most bytes that this process may lock in memory (`ulimit -l`); `None` without a limit.
pub(crate) fn locked_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Memlock).current
}

fn meminfo_available(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(KIB)
}

/// What the tightest cgroup around this process leaves: its limit less what is used and cannot be reclaimed.
pub(crate) fn cgroup_left(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let left = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let v2 = controllers.is_empty();
        let (mount, limit, used, idle) = match v2 {
            true => ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
            false if controllers.split(',').any(|c| c == "memory") => (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ),
            false => return None,
        };
        let mount = root.join(mount);
        let group = Path::new(path.trim_start_matches('/'));
        // Inside a container the path may be the host's: the mount itself is then the container's group.
        group.ancestors().filter_map(|g| left_in(&mount.join(g), limit, used, idle)).min()
    });
    left.min()
}

fn left_in(group: &Path, limit: &str, used: &str, idle: &str) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let idle = stat.lines().find_map(|line| line.strip_prefix(idle)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let busy = number(used).unwrap_or(0).saturating_sub(idle);
    Some(number(limit)?.saturating_sub(busy))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
