//! Device memory that the whole process uses, as the driver's management library (NVML) tells: the driver's own
//! figures begin where a context exists, and do not count it. Optional: what NVML cannot tell is `None`.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};

use libloading::Library;

const LIBRARY: &str = "libnvidia-ml.so.1";
/// Processes of one device that are looked through.
const PROCESSES_MAX: usize = 1024;

type Handle = *mut c_void;

/// `nvmlMemory_t`, bytes.
#[repr(C)]
#[derive(Default)]
struct MemoryInfo {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlProcessInfo_t` of the second and third version of the call; all ones are a figure that is not to be had.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProcessInfo {
    pid: c_uint,
    used: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// One device as NVML sees it.
pub(crate) struct Nvml {
    library: Library,
    device: Handle,
}

// SAFETY: NVML is thread-safe, and a device's handle is good on every thread.
unsafe impl Send for Nvml {}
// SAFETY: as above.
unsafe impl Sync for Nvml {}

impl Nvml {
    /// The device at a PCI address as the driver writes it. `None` where NVML is missing or does not know it.
    pub(crate) fn open(pci: &str) -> Option<Self> {
        let pci = CString::new(pci).ok()?;
        // SAFETY: the types are those of nvml.h; what is initialised here is shut down by `drop`.
        unsafe {
            let library = Library::new(LIBRARY).ok()?;
            let init = *library.get::<unsafe extern "C" fn() -> c_int>("nvmlInit_v2").ok()?;
            (init() == 0).then_some(())?;
            let mut this = Self { library, device: std::ptr::null_mut() };
            type Find = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int;
            let find = *this.library.get::<Find>("nvmlDeviceGetHandleByPciBusId_v2").ok()?;
            (find(pci.as_ptr(), &mut this.device) == 0).then_some(this)
        }
    }

    /// Bytes of the device that this process uses, its context included. `None` where processes are not told apart,
    /// as in containers with process numbers of their own.
    pub(crate) fn process_bytes(&self) -> Option<u64> {
        let pid = std::process::id();
        let processes = self.processes()?;
        let own = processes.iter().filter(|p| p.pid == pid && p.used != u64::MAX).map(|p| p.used);
        Some(own.sum()).filter(|bytes| *bytes > 0)
    }

    /// Bytes of the device in use, by whomever.
    pub(crate) fn device_bytes(&self) -> Option<u64> {
        let mut info = MemoryInfo::default();
        // SAFETY: the type is that of nvml.h, the handle is the device's, and the call writes one structure.
        let code = unsafe {
            type Get = unsafe extern "C" fn(Handle, *mut MemoryInfo) -> c_int;
            let get = *self.library.get::<Get>("nvmlDeviceGetMemoryInfo").ok()?;
            get(self.device, &mut info)
        };
        (code == 0).then_some(info.used)
    }

    fn processes(&self) -> Option<Vec<ProcessInfo>> {
        type Get = unsafe extern "C" fn(Handle, *mut c_uint, *mut ProcessInfo) -> c_int;
        let mut processes = vec![ProcessInfo::default(); PROCESSES_MAX];
        let mut count = PROCESSES_MAX as c_uint;
        // SAFETY: the types are those of nvml.h; the call writes at most `count` structures, and how many.
        let code = unsafe {
            let find = |version: u32| {
                self.library.get::<Get>(format!("nvmlDeviceGetComputeRunningProcesses_v{version}")).ok()
            };
            let get = find(3).or_else(|| find(2))?;
            get(self.device, &mut count, processes.as_mut_ptr())
        };
        processes.truncate(count as usize);
        (code == 0).then_some(processes)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // SAFETY: `open` initialised once; NVML counts.
        unsafe {
            if let Ok(shutdown) = self.library.get::<unsafe extern "C" fn() -> c_int>("nvmlShutdown") {
                let _ = shutdown();
            }
        }
    }
}
