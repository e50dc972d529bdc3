//! The device: whether there is one, what it is, and its context.

use std::ffi::c_int;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{result, sys};

use crate::error::{CudaError, Named, Version};
use crate::launch::attention_prefill::PrefillKernel;
use crate::meter::Meter;
use crate::{compile, libraries};

/// What kernels, streams and cuBLASLt take once they are loaded, as seen on an H100 with CUDA 13.0.
const LIBRARIES_BYTES: u64 = 8 << 20;
/// Longest PCI address, its end included.
const PCI_BYTES: usize = 32;

/// What a GPU is and has.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// As the driver names it.
    pub name: String,
    /// Compute capability: 9.0 for Hopper.
    pub sm: Version,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory a block may have, bytes.
    pub shared_bytes: u32,
    /// Device memory, bytes.
    pub total_bytes: u64,
    /// Of it free when asked, bytes. The context that asking needs is counted as free where it was measured.
    pub free_bytes: u64,
    /// Device memory that a process needs beside what it allocates, bytes: its context, measured, and
    /// what libraries take. `None` where NVML does not tell, or a context was there before.
    pub context_bytes: Option<u64>,
    /// CUDA version the driver supports.
    pub driver: Version,
    /// Version of NVRTC.
    pub nvrtc: Version,
}

impl DeviceInfo {
    /// The architecture that kernels are compiled for.
    pub fn arch(&self) -> String {
        let Version { major, minor } = self.sm;
        format!("sm_{major}{minor}{}", if major == 9 { "a" } else { "" })
    }

    /// Whether a kernel may start while the one before it still runs.
    pub(crate) fn starts_early(&self) -> bool {
        self.sm.major >= 9
    }

    /// The kernel that computes prefill attention of heads of `head_dim` elements here, if nobody asks for another.
    pub fn prefill_kernel(&self, head_dim: usize) -> PrefillKernel {
        let hopper = (self.sm.major, self.sm.minor) == (9, 0) && libraries::has_tensor_maps();
        PrefillKernel::new(head_dim, hopper, self.shared_bytes)
    }
}

/// Looks for device `ordinal` and everything it needs: driver, NVRTC, cuBLASLt.
///
/// # Errors
/// [`CudaError`] naming the first thing that is missing, and what to do.
pub fn probe(ordinal: usize) -> Result<DeviceInfo, CudaError> {
    Ok(Context::open(ordinal)?.info.clone())
}

/// The device's primary context, retained.
pub(crate) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(crate) info: DeviceInfo,
    pub(crate) meter: Meter,
}

// SAFETY: a context may be made current on any thread, and is by `enter`.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's calls on one context are thread-safe.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        libraries::check()?;
        result::init().named("cuInit")?;
        let count = result::device::get_count().named("cuDeviceGetCount")?;
        let Some(index) = c_int::try_from(ordinal).ok().filter(|i| *i < count) else {
            return Err(CudaError::NoDevice { count, ordinal });
        };
        let device = result::device::get(index).named("cuDeviceGet")?;
        let name = result::device::get_name(device).named("cuDeviceGetName")?;
        let attribute = |attribute| {
            // SAFETY: the device came from `get`.
            let value = unsafe { result::device::get_attribute(device, attribute) };
            value.named("cuDeviceGetAttribute").map(|value| value as u32)
        };
        let sm = Version {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        };
        if sm.major < 8 {
            return Err(CudaError::TooOld { name, major: sm.major, minor: sm.minor });
        }
        let (driver, nvrtc) = (libraries::driver_version()?, compile::version()?);
        // Within a major version a driver runs what later libraries make.
        for (library, version) in [("NVRTC", nvrtc), ("cuBLASLt", libraries::cublas_version())] {
            if driver.major < version.major {
                return Err(CudaError::DriverTooOld { driver, library, version });
            }
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let meter = Meter::new(ordinal, &pci_address(device)?);
        // SAFETY: the device came from `get`; `drop` releases what this retains.
        let context = unsafe { result::primary_ctx::retain(device) }.named("cuDevicePrimaryCtxRetain")?;
        let mut info = DeviceInfo {
            name,
            sm,
            multiprocessors,
            shared_bytes,
            total_bytes: 0,
            free_bytes: 0,
            context_bytes: None,
            driver,
            nvrtc,
        };
        let mut this = Self { device, context, info: info.clone(), meter };
        this.enter()?;
        (info.free_bytes, info.total_bytes) = memory()?;
        if let Some(context) = this.meter.context_bytes() {
            info.free_bytes = (info.free_bytes + context).min(info.total_bytes);
            info.context_bytes = Some(context + LIBRARIES_BYTES);
        }
        this.info = info;
        Ok(this)
    }

    /// What makes it another thread's, as [`enter`](Self::enter) does here; good while `self` lives.
    pub(crate) fn handle(&self) -> Handle {
        Handle(self.context)
    }

    /// Makes the context the calling thread's.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
        self.handle().enter()
    }
}

/// A context for threads beside the one that opened it, which end before it is released.
#[derive(Clone, Copy)]
pub(crate) struct Handle(sys::CUcontext);

// SAFETY: as for `Context`.
unsafe impl Send for Handle {}
// SAFETY: as for `Context`.
unsafe impl Sync for Handle {}

impl Handle {
    pub(crate) fn enter(self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as its owner lives, and who holds a handle ends before.
        unsafe { result::ctx::set_current(self.0) }.named("cuCtxSetCurrent")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        // SAFETY: `open` retained it once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// The device's place on the bus, by which other libraries find it.
fn pci_address(device: sys::CUdevice) -> Result<String, CudaError> {
    let mut text = [0u8; PCI_BYTES];
    // SAFETY: writes at most as many bytes as it is told, a zero at the end.
    unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), PCI_BYTES as c_int, device) }
        .result()
        .named("cuDeviceGetPCIBusId")?;
    let text = std::ffi::CStr::from_bytes_until_nul(&text).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

/// Free and total bytes of the current device.
pub(crate) fn memory() -> Result<(u64, u64), CudaError> {
    let (free, total) = result::mem_get_info().named("cuMemGetInfo")?;
    Ok((free as u64, total as u64))
}
