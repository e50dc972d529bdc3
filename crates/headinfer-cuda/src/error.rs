//! What can go wrong with a GPU, one line each. Must not know plans.

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::result::DriverError;
use cudarc::nvrtc::result::NvrtcError;
use thiserror::Error;

/// A GPU cannot be used, or failed.
#[derive(Clone, Debug, Error)]
pub enum CudaError {
    /// The driver's library is missing.
    #[error("no NVIDIA driver here (libcuda.so.1 is missing): use --device cpu")]
    NoDriver,
    /// The driver works but has no such device.
    #[error("the NVIDIA driver shows {count} GPU(s), none is number {ordinal}: use --device cpu")]
    NoDevice {
        /// Devices seen.
        count: i32,
        /// The one asked for.
        ordinal: usize,
    },
    /// The device lacks the instructions that the kernels are written in.
    #[error("{name} has compute capability {major}.{minor}; 8.0 or later is needed: use --device cpu")]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        major: u32,
        /// See `major`.
        minor: u32,
    },
    /// A library beside the driver is missing.
    #[error(
        "{library} is missing: install CUDA 12 or 13, or `pip install {package}` and put its folder on \
             LD_LIBRARY_PATH"
    )]
    NoLibrary {
        /// What the loader looked for.
        library: &'static str,
        /// The wheel that holds it.
        package: &'static str,
    },
    /// The compiler is newer than the driver can run.
    #[error(
        "the NVIDIA driver supports CUDA {driver} but NVRTC is {nvrtc}: update the driver, or put an \
             older NVRTC on LD_LIBRARY_PATH"
    )]
    DriverTooOld {
        /// The driver's version.
        driver: Version,
        /// NVRTC's.
        nvrtc: Version,
    },
    /// A kernel does not compile: NVRTC is too old for the device, or the kernel is wrong.
    #[error("NVRTC cannot compile {unit} for {arch}: {log}")]
    Compile {
        /// The kernel's file.
        unit: String,
        /// Architecture asked for.
        arch: String,
        /// The first line of the compiler's log.
        log: String,
    },
    /// A call failed.
    #[error("{call} failed: {text}")]
    Call {
        /// What was called.
        call: &'static str,
        /// What the library says.
        text: String,
        /// The device has no memory left.
        out_of_memory: bool,
    },
}

/// Major and minor of a CUDA component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Names the call that a library's result came from.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, CudaError>;
}

impl<T> Named<T> for Result<T, DriverError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| {
            let text = error.error_string().ok().and_then(|text| text.to_str().ok());
            let code = error.0;
            CudaError::Call {
                call,
                text: text.map_or_else(|| format!("{code:?}"), |text| format!("{text} ({code:?})")),
                out_of_memory: code == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            }
        })
    }
}

impl<T> Named<T> for Result<T, CublasError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Call { call, text: format!("{:?}", error.0), out_of_memory: false })
    }
}

impl<T> Named<T> for Result<T, NvrtcError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Call { call, text: format!("{:?}", error.0), out_of_memory: false })
    }
}
