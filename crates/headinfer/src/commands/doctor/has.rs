//! What a machine has: looked up, not measured.

use std::fs;
use std::path::{Path, PathBuf};

use headinfer_core::cpu::kernels::Isa;
use headinfer_core::units::{Bytes, KIB};
use headinfer_cuda::DeviceInfo;
use serde::Serialize;

use crate::{device, machine};

/// What is here.
#[derive(Serialize)]
pub(super) struct Has {
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
    /// Of memory a process may lock; `None` without a limit.
    lock_limit_bytes: Option<u64>,
    /// `None` when a CUDA device can be used, else why not.
    cuda_missing: Option<String>,
    cuda: Option<Gpu>,
}

/// The CUDA device and what it needs.
#[derive(Serialize)]
struct Gpu {
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    memory_bytes: u64,
    /// Free once this process has a context.
    memory_free_bytes: u64,
    /// Version of the kernel's module, where it says.
    driver: Option<String>,
    /// CUDA version that the driver supports.
    driver_cuda: String,
    nvrtc: String,
}

impl Has {
    pub(super) fn look(cache: Option<&Path>) -> Self {
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
            lock_limit_bytes: machine::locked_max(),
            cuda_missing: device::cuda_missing(),
            cuda: device::card().map(Gpu::new),
        }
    }

    /// A line each.
    pub(super) fn text(&self) -> String {
        let size = |bytes: u64| Bytes(bytes).to_string();
        let limit = |bytes: Option<u64>| bytes.map_or("no limit".into(), size);
        let leaves =
            |bytes: Option<u64>| bytes.map_or("no memory limit".into(), |b| format!("leaves {}", size(b)));
        let mut lines = vec![
            ("system", self.os.clone()),
            ("processor", format!("{}, kernels for {}", self.cpu, self.isa)),
            ("cores", format!("{}, of which {} may be used", self.cores, self.cores_allowed)),
            (
                "memory",
                format!("{}, {} available", size(self.memory_bytes), size(self.memory_available_bytes)),
            ),
            ("cgroup", leaves(self.cgroup_left_bytes)),
            ("locking", limit(self.lock_limit_bytes)),
        ];
        match (&self.cuda, &self.cuda_missing) {
            (Some(gpu), _) => lines.extend(gpu.lines()),
            (None, why) => {
                let why = why.as_deref().unwrap_or("nothing is known of it");
                lines.push(("cuda", format!("not usable: {why}")));
            }
        }
        if let Some(cache) = &self.cache {
            let free = self.cache_free_bytes.map_or(String::new(), |free| format!(", {} free", size(free)));
            lines.push(("cache", format!("{}{free}", cache.display())));
        }
        lines.iter().map(|(name, value)| format!("{name:<11}{value}\n")).collect()
    }
}

impl Gpu {
    fn new(info: &DeviceInfo) -> Self {
        Self {
            name: info.name.clone(),
            compute_capability: info.sm.to_string(),
            multiprocessors: info.multiprocessors,
            memory_bytes: info.total_bytes,
            memory_free_bytes: info.free_bytes,
            driver: driver(&fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default()),
            driver_cuda: info.driver.to_string(),
            nvrtc: info.nvrtc.to_string(),
        }
    }

    fn lines(&self) -> [(&'static str, String); 2] {
        let (memory, free) = (Bytes(self.memory_bytes), Bytes(self.memory_free_bytes));
        let Self { name, compute_capability, driver_cuda, nvrtc, .. } = self;
        let driver = self.driver.as_deref().map_or(String::new(), |version| format!("{version}, "));
        [
            ("cuda", format!("{name}, compute capability {compute_capability}, {memory}, {free} free")),
            ("driver", format!("{driver}CUDA {driver_cuda}; NVRTC {nvrtc}")),
        ]
    }
}

/// The driver's version in what its module says of itself: the first word that is numbers with dots between.
fn driver(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        word.contains('.')
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_version_is_found_in_what_its_module_says() {
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC 12.2.0";
        assert_eq!(driver(open).as_deref(), Some("580.159.04"));
        assert_eq!(driver("no such file"), None);
        assert_eq!(driver(""), None);
    }
}
