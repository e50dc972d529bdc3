//! The device: whether there is one, what it is, and its context.

use std::ffi::c_int;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{result, sys};

use crate::error::{CudaError, Named, Version};
use crate::{compile, libraries};

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
    /// Of it free when asked, bytes; the context that asking needs is counted as used.
    pub free_bytes: u64,
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
        // SAFETY: the device came from `get`; `drop` releases what this retains.
        let context = unsafe { result::primary_ctx::retain(device) }.named("cuDevicePrimaryCtxRetain")?;
        let mut info = DeviceInfo {
            name,
            sm,
            multiprocessors,
            shared_bytes,
            total_bytes: 0,
            free_bytes: 0,
            driver,
            nvrtc,
        };
        let mut this = Self { device, context, info: info.clone() };
        this.enter()?;
        (info.free_bytes, info.total_bytes) = memory()?;
        this.info = info;
        Ok(this)
    }

    /// Makes the context the calling thread's.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.named("cuCtxSetCurrent")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        // SAFETY: `open` retained it once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Free and total bytes of the current device.
pub(crate) fn memory() -> Result<(u64, u64), CudaError> {
    let (free, total) = result::mem_get_info().named("cuMemGetInfo")?;
    Ok((free as u64, total as u64))
}
