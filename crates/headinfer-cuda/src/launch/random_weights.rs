//! Random weights and a synthetic past, made where they are used.

use cudarc::driver::sys::CUstream;
use headinfer_core::model::random::RandomLaw;
use headinfer_core::model::synthetic::SyntheticKv;

use super::{Kernels, Spread, blocks, launch};
use crate::arena::Pointer;
use crate::error::CudaError;

const THREADS: u32 = 256;
const BLOCKS_MAX: u32 = 1 << 16;

#[repr(C)]
struct RandomParams {
    to: Pointer,
    count: u64,
    key: u64,
    scale: f32,
    offset: f32,
}

#[repr(C)]
struct SyntheticParams {
    to: Pointer,
    count: u64,
    first: u64,
    key: u64,
    scale: f32,
}

impl Kernels {
    /// The first `count` elements of a tensor under `law`, bf16.
    pub(crate) fn random_weights(
        &self,
        stream: CUstream,
        law: RandomLaw,
        to: Pointer,
        count: u64,
    ) -> Result<(), CudaError> {
        let mut params = RandomParams { to, count, key: law.key, scale: law.scale, offset: law.offset };
        let grid = (blocks(count, THREADS).min(BLOCKS_MAX), 1);
        // SAFETY: the kernel's layout; the range is one tensor's place in the plan.
        unsafe {
            launch(
                self.random_weights,
                &Spread { grid, block: THREADS, shared: 0 },
                stream,
                "random_weights",
                &mut params,
            )
        }
    }

    /// `count` elements from index `first` of half a head's synthetic past under `law`, bf16.
    pub(crate) fn synthetic_kv(
        &self,
        stream: CUstream,
        law: SyntheticKv,
        first: u64,
        to: Pointer,
        count: u64,
    ) -> Result<(), CudaError> {
        let mut params = SyntheticParams { to, count, first, key: law.key, scale: SyntheticKv::scale() };
        let grid = (blocks(count, THREADS).min(BLOCKS_MAX), 1);
        let spread = Spread { grid, block: THREADS, shared: 0 };
        // SAFETY: the kernel's layout; the range is rows of one head, or as many elements of staging.
        unsafe { launch(self.synthetic_kv, &spread, stream, "synthetic_kv", &mut params) }
    }
}
