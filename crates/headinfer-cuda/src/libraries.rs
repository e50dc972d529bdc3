//! The libraries behind the FFI: driver, NVRTC, cuBLASLt. They are looked for when a device is asked for, and so is
//! every function of theirs that is called: the bindings panic at what is missing.

use std::error::Error;
use std::ffi::{c_int, c_void};

use cudarc::driver::sys::{CUevent, CUresult};
use cudarc::{cublaslt, driver, get_lib_name_candidates, nvrtc};
use libloading::Library;

use crate::error::{CudaError, Named, Version};

/// Functions of the driver, but for [`elapsed`]'s.
const DRIVER: [&str; 36] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceGetPCIBusId",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemsetD8_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamWaitEvent",
    "cuStreamSynchronize",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuLaunchKernelEx",
];

/// Functions of NVRTC.
const NVRTC: [&str; 8] = [
    "nvrtcVersion",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcDestroyProgram",
];

/// Functions of cuBLASLt.
const CUBLAS: [&str; 14] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetCudartVersion",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Looks for everything a device needs.
///
/// # Errors
/// [`CudaError`] naming the first library or function that is missing.
pub(crate) fn check() -> Result<(), CudaError> {
    // SAFETY: loads the libraries, whose initialisers do nothing to us.
    unsafe {
        if !driver::sys::is_culib_present() {
            return Err(CudaError::NoDriver { why: why("cuda", "libcuda.so.1") });
        }
        has(driver::sys::culib(), "the NVIDIA driver", &DRIVER)?;
        check_nvrtc()?;
        let (library, package) = ("cuBLASLt", "nvidia-cublas");
        if !cublaslt::sys::is_culib_present() {
            let why = why("cublasLt", "libcublasLt.so.13");
            return Err(CudaError::NoLibrary { library, package, why });
        }
        has(cublaslt::sys::culib(), library, &CUBLAS)
    }
}

/// Looks for NVRTC alone, which needs no driver.
pub(crate) fn check_nvrtc() -> Result<(), CudaError> {
    let (library, package) = ("NVRTC", "nvidia-cuda-nvrtc");
    // SAFETY: loads the library, whose initialisers do nothing to us.
    unsafe {
        if !nvrtc::sys::is_culib_present() {
            let why = why("nvrtc", "libnvrtc.so.13");
            return Err(CudaError::NoLibrary { library, package, why });
        }
        has(nvrtc::sys::culib(), library, &NVRTC)
    }
}

/// Whether the driver, which is there, knows tensor maps: since CUDA 12.0.
pub(crate) fn has_tensor_maps() -> bool {
    // SAFETY: the driver is loaded; the address is looked for and not called.
    unsafe { has(driver::sys::culib(), "the NVIDIA driver", &["cuTensorMapEncodeTiled"]) }.is_ok()
}

/// The version of CUDA that the driver supports.
pub(crate) fn driver_version() -> Result<Version, CudaError> {
    let mut version: c_int = 0;
    // SAFETY: writes one integer.
    unsafe { driver::sys::cuDriverGetVersion(&mut version) }.result().named("cuDriverGetVersion")?;
    Ok(Version::of(version.unsigned_abs() as usize))
}

/// The version of CUDA that cuBLASLt was made for.
pub(crate) fn cublas_version() -> Version {
    // SAFETY: takes nothing and answers a number.
    Version::of(unsafe { cublaslt::sys::cublasLtGetCudartVersion() })
}

/// Milliseconds from one event to another. The bindings know only the second version of this function, which
/// drivers before CUDA 12.8 lack.
///
/// # Safety
/// Both events are alive and timed.
pub(crate) unsafe fn elapsed(start: CUevent, end: CUevent) -> Result<f32, CudaError> {
    type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
    let mut ms = 0.0;
    // SAFETY: the type is the function's in cuda.h, in both versions; the events are the caller's promise.
    let result = unsafe {
        let find = |name: &str| driver::sys::culib().get::<Elapsed>(name);
        match find("cuEventElapsedTime_v2").or_else(|_| find("cuEventElapsedTime")) {
            Ok(function) => function(&mut ms, start, end),
            Err(_) => CUresult::CUDA_ERROR_NOT_FOUND,
        }
    };
    result.result().named("cuEventElapsedTime")?;
    Ok(ms)
}

fn has(found: &Library, library: &'static str, functions: &[&'static str]) -> Result<(), CudaError> {
    // SAFETY: the addresses are looked for and never called.
    let missing = functions.iter().find(|name| unsafe { found.get::<*mut c_void>(**name) }.is_err());
    match missing {
        Some(function) => Err(CudaError::NoFunction { library, function }),
        None => Ok(()),
    }
}

/// Why no file of library `name` can be loaded: what the system says of one that is there, else that `usual` is
/// missing.
fn why(name: &str, usual: &str) -> String {
    let reasons = get_lib_name_candidates(name).into_iter().filter_map(|file| {
        // SAFETY: loading failed a moment ago; should it not now, the initialisers do nothing to us.
        let error = unsafe { Library::new(&file) }.err()?;
        let error = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        let missing = error.starts_with(&file) && error.ends_with("No such file or directory");
        (!missing).then_some(error)
    });
    reasons.min().unwrap_or_else(|| format!("{usual} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stand-in for the libraries has exactly what the tests of the command line need to run.
    #[test]
    fn every_function_of_the_stand_in_is_looked_for() {
        let stub = include_str!("../tests/stub/cuda.c");
        let name = |line: &'static str| line.split_once('(')?.0.rsplit(' ').next();
        let starts = |line: &&str| ["int ", "unsigned long "].iter().any(|start| line.starts_with(start));
        let defined = stub.lines().filter(starts).filter_map(name).filter(|name| is_call(name));
        let defined: Vec<&str> = defined.collect();
        assert!(defined.len() > 40, "{defined:?}");
        let looked_for = [&DRIVER[..], &NVRTC, &CUBLAS, &["cuEventElapsedTime"]].concat();
        for name in &defined {
            assert!(looked_for.contains(name), "{name}");
        }
        for name in &looked_for {
            assert!(defined.contains(name), "{name}");
        }
    }

    fn is_call(name: &str) -> bool {
        ["cu", "nvrtc"].iter().any(|start| name.starts_with(start))
    }

    #[test]
    fn a_missing_library_is_told_by_its_usual_name() {
        assert_eq!(why("no-such-library", "libx.so.1"), "libx.so.1 is missing");
    }
}
