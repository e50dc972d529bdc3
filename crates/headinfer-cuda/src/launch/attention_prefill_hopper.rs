//! Prefill attention on Hopper: how the kernel is built, and the tensor maps by which it finds queries, keys and values.

use std::ffi::c_void;

use cudarc::driver::sys::{self, CUstream};

use super::attention_prefill::{AttendParams, Attention};
use super::{Kernels, Spread, launch};
use crate::arena::Pointer;
use crate::error::{CudaError, Named};

/// Columns of a panel, which TMA swizzles.
const PANEL: usize = 64;
/// Bytes of an element.
const HALF: u64 = 2;

/// How the kernel is built for a head dimension. `keys` decides the bits, nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hopper {
    /// Keys of a block: a tile of the KV cache holds whole ones.
    pub keys: usize,
    /// Blocks of K, and of V, in shared memory.
    pub stages: usize,
    /// Groups of four warps that take 64 query rows each.
    pub consumers: usize,
    /// Whether the groups ask for products one after another.
    pub in_turns: bool,
}

impl Hopper {
    /// What is fastest of what was tried; see the kernel. `None` where heads have another dimension than it is made for.
    pub fn new(head_dim: usize) -> Option<Self> {
        match head_dim {
            64 => Some(Self { keys: 64, stages: 3, consumers: 4, in_turns: false }),
            128 => Some(Self { keys: 128, stages: 2, consumers: 2, in_turns: true }),
            256 => Some(Self { keys: 64, stages: 2, consumers: 2, in_turns: true }),
            _ => None,
        }
    }

    /// Query rows of a block of threads.
    pub(crate) fn rows(&self) -> usize {
        self.consumers * 64
    }

    /// Threads of a block: the consumers' and the producer's.
    fn threads(&self) -> u32 {
        (self.consumers as u32 + 1) * 128
    }

    /// Dynamic shared memory of a block: queries, slots of K and V, barriers.
    pub(crate) fn shared_bytes(&self, head_dim: usize) -> u32 {
        let rows = self.rows() + 2 * self.stages * self.keys;
        (rows * head_dim * HALF as usize + (1 + 4 * self.stages) * 8) as u32
    }
}

/// A `TensorMap` of `kernels/attention.cuh`.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct TensorMap([u64; 16]);

/// The first parameters of the kernel.
#[repr(C)]
pub(super) struct TensorMaps {
    query: TensorMap,
    past_key: TensorMap,
    past_value: TensorMap,
    own_key: TensorMap,
    own_value: TensorMap,
}

impl TensorMap {
    /// bf16 `[heads, rows, head_dim]` by the address of each head's first row, read in boxes of `box_rows` rows; what lies
    /// past the last row reads as zeros.
    ///
    /// # Errors
    /// [`CudaError`] when the driver refuses: an address is not a multiple of 16.
    ///
    /// # Panics
    /// When heads do not lie evenly: plans lay them out so.
    fn new(heads: &[Pointer], rows: usize, head_dim: usize, box_rows: usize) -> Result<Self, CudaError> {
        let stride = heads.get(1).map_or(rows as u64 * head_dim as u64 * HALF, |second| second - heads[0]);
        let even = heads.windows(2).all(|pair| pair[1] - pair[0] == stride);
        assert!(even, "heads of one launch lie {stride} bytes apart");
        let mut map = Self([0; 16]);
        let (sizes, strides) =
            ([head_dim as u64, rows as u64, heads.len() as u64], [head_dim as u64 * HALF, stride]);
        let (window, steps) = ([PANEL as u32, box_rows as u32, 1], [1; 3]);
        // SAFETY: the driver reads three or two numbers from each array and writes the map, which lies as it asks; the
        // address is not followed.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                3,
                heads[0] as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                window.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .named("cuTensorMapEncodeTiled")?;
        Ok(map)
    }
}

impl TensorMaps {
    fn new(a: &Attention<'_>, hopper: &Hopper, head_dim: usize) -> Result<Self, CudaError> {
        let column = |i: usize| a.heads.iter().map(|head| head[i]).collect::<Vec<_>>();
        let map = |heads: &[Pointer], rows: usize, box_rows| TensorMap::new(heads, rows, head_dim, box_rows);
        // A piece of no rows has no address and is not read: any map will do.
        let piece = |i: usize, rows: usize| {
            let i = if rows > 0 { i } else { 0 };
            map(&column(i), rows.max(1), hopper.keys)
        };
        Ok(Self {
            query: map(&column(0), a.tokens * a.group, hopper.rows())?,
            past_key: piece(1, a.past.len())?,
            past_value: piece(2, a.past.len())?,
            own_key: piece(3, a.own.len())?,
            own_value: piece(4, a.own.len())?,
        })
    }
}

impl Kernels {
    /// Many rows, by the kernel that is built as `hopper` says.
    pub(super) fn attention_prefill_hopper(
        &self,
        stream: CUstream,
        a: &Attention<'_>,
        hopper: &Hopper,
    ) -> Result<(), CudaError> {
        let maps = TensorMaps::new(a, hopper, self.head_dim)?;
        let mut params = AttendParams { from: maps, rest: a.rest(self.head_dim) };
        let tiles = (a.tokens * a.group).div_ceil(hopper.rows());
        let spread = Spread {
            grid: (tiles as u32, a.heads.len() as u32),
            block: hopper.threads(),
            shared: hopper.shared_bytes(self.head_dim),
        };
        // SAFETY: the kernel's layout; the addresses are the op's spans.
        unsafe { launch(self.attention_prefill, &spread, stream, "attention_prefill_hopper", &mut params) }
    }
}

#[cfg(test)]
mod tests {
    use headinfer_core::plan::SPLIT;

    use super::*;

    #[test]
    fn a_block_has_the_shared_memory_it_asks_for() {
        const HOPPER: u32 = 227 << 10;
        for head_dim in [64, 128, 256] {
            let hopper = Hopper::new(head_dim).unwrap();
            assert!(hopper.shared_bytes(head_dim) <= HOPPER, "{head_dim}");
            assert_eq!(SPLIT % hopper.keys, 0, "tiles, which are multiples of {SPLIT}, hold whole blocks");
        }
        assert!(Hopper::new(96).is_none());
    }

    #[test]
    fn parameters_lie_as_the_kernel_has_them() {
        type Params = AttendParams<TensorMaps>;
        assert_eq!((align_of::<Params>(), std::mem::offset_of!(Params, rest)), (64, 5 * 128));
    }
}
