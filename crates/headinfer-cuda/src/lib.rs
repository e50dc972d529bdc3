//! CUDA backend of headinfer: the same plans as the CPU backend, on an NVIDIA GPU.
//!
//! Binaries with it build and start on machines without CUDA: driver, NVRTC and cuBLASLt are looked for when a
//! device is asked for. Knows no command line and no environment variable. The only FFI of the project.
#![allow(unsafe_code)] // the driver's interface; each block says why it is sound

mod advice;
mod arena;
mod attend_host;
mod backend;
mod coded;
pub mod compile;
mod device;
mod error;
mod exec;
mod gemm;
mod handover;
mod host;
mod launch;
mod libraries;
mod log;
pub mod measure;
mod meter;
mod nvml;
mod past;
mod slab;
mod stream;
mod units;
mod upload;
mod watch;
mod weights;

use headinfer_core::units::Bytes;
use thiserror::Error;

pub use backend::{Cuda, CudaOptions};
pub use device::{DeviceInfo, probe};
pub use error::{CudaError, Version};
pub use launch::attention_prefill::{PrefillKernel, Tiling};
pub use launch::attention_prefill_hopper::Hopper;
pub use weights::CudaWeights;

/// Why a CUDA backend could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The device or a library is missing, or failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// The device refused the memory the plan needs.
    #[error(
        "the plan does not fit the GPU as it is now: {bytes} of device memory are needed and {free} are free"
    )]
    DeviceMemory {
        /// What the plan asked for.
        bytes: Bytes,
        /// What was free.
        free: Bytes,
    },
    /// The operating system refused the memory the plan needs.
    #[error("the plan needs {bytes} of host memory, which the system refuses")]
    HostMemory {
        /// What the plan asked for.
        bytes: Bytes,
        /// The refusal.
        source: std::io::Error,
    },
    /// The operating system refused threads to attend on the CPU with.
    #[error("cannot start threads that attend on the CPU ({0})")]
    Threads(std::io::Error),
    /// The driver refused to pin memory.
    #[error("the plan needs {bytes} of pinned host memory; after {done} the driver refused: {error}")]
    Pin {
        /// What the plan asked for.
        bytes: Bytes,
        /// What was pinned before the refusal.
        done: Bytes,
        /// The refusal.
        error: CudaError,
    },
    /// The plan is of a kind that this backend does not run.
    #[error("{0}")]
    Plan(String),
    /// The weights are of a type that this backend does not compute with.
    #[error("{0}")]
    Weights(String),
}
