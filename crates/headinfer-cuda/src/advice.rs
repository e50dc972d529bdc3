//! What to do about a code of the driver or of a library, where the code tells.
//!
//! Sources: the remarks at each code in cuda.h and cublas_api.h, and NVIDIA's page on Xid errors.

use cudarc::cublaslt::sys::cublasStatus_t as Cublas;
use cudarc::driver::sys::CUresult as Driver;

/// The driver works, without a GPU.
pub(crate) const NO_DEVICE: &str = "see nvidia-smi, and CUDA_VISIBLE_DEVICES, which may hide GPUs";
/// The system has no memory left.
pub(crate) const HOST_MEMORY: &str = "free host memory, or raise the cgroup's limit";
/// The device has no memory left.
const DEVICE_MEMORY: &str =
    "give a smaller --gpu-memory, or end the process that holds the rest (see nvidia-smi)";
const KERNELS: &str = "update the driver, or put an NVRTC of the driver's CUDA version on LD_LIBRARY_PATH";
const FAULT: &str = "run it again; if it comes back, see the Xid lines in dmesg, or give --device cpu";
const HARDWARE: &str = "the hardware is at fault: see nvidia-smi -q and the Xid lines in dmesg";

/// What to do about a code of the driver.
pub(crate) fn driver(code: Driver) -> Option<&'static str> {
    use Driver::*;
    Some(match code {
        CUDA_ERROR_NO_DEVICE | CUDA_ERROR_INVALID_DEVICE => NO_DEVICE,
        CUDA_ERROR_OUT_OF_MEMORY => DEVICE_MEMORY,
        CUDA_ERROR_STUB_LIBRARY => {
            "take the toolkit's folder of stubs off LD_LIBRARY_PATH: it hides the driver"
        }
        CUDA_ERROR_DEVICE_UNAVAILABLE => "another process has the GPU for itself: see nvidia-smi",
        CUDA_ERROR_DEVICE_NOT_LICENSED => "the virtual GPU has no licence: see nvidia-smi -q",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "reboot: the driver was updated while the system ran",
        CUDA_ERROR_SYSTEM_NOT_READY => "start the fabric manager (systemctl start nvidia-fabricmanager)",
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "take the folder of cuda-compat off LD_LIBRARY_PATH: this GPU needs the driver's own library"
        }
        CUDA_ERROR_OPERATING_SYSTEM | CUDA_ERROR_NOT_PERMITTED => {
            "see dmesg; a container must be given the GPU (docker run --gpus all)"
        }
        CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUDA_ERROR_INVALID_IMAGE
        | CUDA_ERROR_INVALID_PTX
        | CUDA_ERROR_UNSUPPORTED_PTX_VERSION => KERNELS,
        CUDA_ERROR_LAUNCH_TIMEOUT => {
            "give a smaller --chunk: the driver ends long kernels on a GPU that drives a display"
        }
        CUDA_ERROR_ECC_UNCORRECTABLE
        | CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUDA_ERROR_CONTAINED
        | CUDA_ERROR_EXTERNAL_DEVICE => HARDWARE,
        CUDA_ERROR_UNKNOWN => "see the NVRM and Xid lines in dmesg; a reboot often helps",
        code if is_fault(code) => FAULT,
        _ => return None,
    })
}

/// Whether a kernel went wrong. Such a code shows at whichever call comes next, and every later call has it too.
fn is_fault(code: Driver) -> bool {
    use Driver::*;
    matches!(
        code,
        CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_ASSERT
    )
}

/// What to do about a code of cuBLASLt.
pub(crate) fn cublas(code: Cublas) -> Option<&'static str> {
    match code {
        Cublas::CUBLAS_STATUS_ALLOC_FAILED => Some(DEVICE_MEMORY),
        Cublas::CUBLAS_STATUS_NOT_INITIALIZED | Cublas::CUBLAS_STATUS_ARCH_MISMATCH => Some(
            "put a cuBLASLt that knows this GPU and driver on LD_LIBRARY_PATH (pip install nvidia-cublas)",
        ),
        Cublas::CUBLAS_STATUS_EXECUTION_FAILED | Cublas::CUBLAS_STATUS_INTERNAL_ERROR => Some(FAULT),
        _ => None,
    }
}

/// What to do about a line of NVRTC's log.
pub(crate) fn compile(log: &str) -> Option<&'static str> {
    match log {
        _ if log.contains("--gpu-architecture") => {
            Some("put a newer NVRTC on LD_LIBRARY_PATH: this one does not know the GPU")
        }
        _ if log.contains("builtins") => {
            Some("put the folder that holds libnvrtc-builtins, too, on LD_LIBRARY_PATH")
        }
        _ => None,
    }
}
