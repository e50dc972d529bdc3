//! What can go wrong with a GPU: one line each, and what to do about it. Must not know plans.

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t as Cublas;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::CUresult as Driver;
use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys::nvrtcResult as Nvrtc;
use thiserror::Error;

use crate::advice;

/// A GPU cannot be used, or failed.
#[derive(Clone, Debug, Error)]
pub enum CudaError {
    /// The driver's library is missing, or cannot be loaded.
    #[error("no NVIDIA driver here ({why})")]
    NoDriver {
        /// What the system says.
        why: String,
    },
    /// The driver works but has no such device.
    #[error("the NVIDIA driver shows {count} GPU(s), none is number {ordinal}")]
    NoDevice {
        /// Devices seen.
        count: i32,
        /// The one asked for.
        ordinal: usize,
    },
    /// The device lacks the instructions that the kernels are written in.
    #[error("{name} has compute capability {major}.{minor}; 8.0 or later is needed")]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        major: u32,
        /// See `major`.
        minor: u32,
    },
    /// A library beside the driver is missing, or cannot be loaded.
    #[error("{library} cannot be loaded ({why})")]
    NoLibrary {
        /// Its name.
        library: &'static str,
        /// The wheel that holds it.
        package: &'static str,
        /// What the system says.
        why: String,
    },
    /// A library is too old, or not what its name says.
    #[error("{library} lacks the function {function}")]
    NoFunction {
        /// Its name.
        library: &'static str,
        /// What was looked for.
        function: &'static str,
    },
    /// A library is newer than the driver can run.
    #[error("the NVIDIA driver supports CUDA {driver} but {library} is of CUDA {version}")]
    DriverTooOld {
        /// The driver's version.
        driver: Version,
        /// The library.
        library: &'static str,
        /// Its version.
        version: Version,
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
        /// What the library says, with the name of the code.
        text: String,
        /// The device has no memory left.
        out_of_memory: bool,
        /// What to do, where the code tells.
        advice: Option<&'static str>,
    },
}

impl CudaError {
    /// A call that failed with no code of its own.
    pub(crate) fn call(call: &'static str, text: String) -> Self {
        Self::Call { call, text, out_of_memory: false, advice: None }
    }

    /// What to do about it: a sentence without its full stop.
    pub fn advice(&self) -> Option<String> {
        let some = |text: &str| Some(text.to_owned());
        match self {
            Self::NoDriver { .. } | Self::TooOld { .. } => None,
            Self::NoDevice { .. } => some(advice::NO_DEVICE),
            Self::NoLibrary { package, .. } => Some(format!(
                "install CUDA 12 or 13, or `pip install {package}` and put its folder on LD_LIBRARY_PATH"
            )),
            Self::NoFunction { library, .. } => {
                Some(format!("update {library}, and see that LD_LIBRARY_PATH leads to no other"))
            }
            Self::DriverTooOld { driver, .. } if driver.major < 12 => some("update the driver"),
            Self::DriverTooOld { driver, library, .. } => Some(format!(
                "update the driver, or put {library} of CUDA {} on LD_LIBRARY_PATH",
                driver.major
            )),
            Self::Compile { log, .. } => advice::compile(log).map(str::to_owned),
            Self::Call { advice, .. } => advice.map(str::to_owned),
        }
    }

    /// Whether the device has no memory left.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Call { out_of_memory: true, .. })
    }
}

/// Major and minor of a CUDA component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 13 of 13.0.
    pub major: u32,
    /// 0 of 13.0.
    pub minor: u32,
}

impl Version {
    /// From CUDA's own form: 13000 for 13.0.
    pub(crate) fn of(number: usize) -> Self {
        Self { major: (number / 1000) as u32, minor: (number % 1000 / 10) as u32 }
    }
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
                out_of_memory: code == Driver::CUDA_ERROR_OUT_OF_MEMORY,
                advice: advice::driver(code),
            }
        })
    }
}

impl<T> Named<T> for Result<T, CublasError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Call {
            call,
            text: format!("{:?}", error.0),
            out_of_memory: error.0 == Cublas::CUBLAS_STATUS_ALLOC_FAILED,
            advice: advice::cublas(error.0),
        })
    }
}

impl<T> Named<T> for Result<T, NvrtcError> {
    fn named(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Call {
            call,
            text: format!("{:?}", error.0),
            out_of_memory: false,
            // It compiles in host memory.
            advice: (error.0 == Nvrtc::NVRTC_ERROR_OUT_OF_MEMORY).then_some(advice::HOST_MEMORY),
        })
    }
}
