//! Matrix products of more than a few rows by cuBLASLt: y = x · wᵀ, activations `[rows, in]` and weights `[out, in]` row by row, bf16, with
//! f32 accumulation.
//!
//! The algorithm of a shape is asked for once and kept, so that a shape always gives the same bits.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};

use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cublasStatus_t,
    cudaDataType_t,
};
use cudarc::driver::sys::CUstream;

use crate::arena::Pointer;
use crate::error::{CudaError, Named};

/// Shapes kept; a session meets a few dozen.
const SHAPES_MAX: usize = 1024;

/// Room for a result of the heuristic.
const NO_RESULT: cublasLtMatmulHeuristicResult_t = cublasLtMatmulHeuristicResult_t {
    algo: cublasLtMatmulAlgo_t { data: [0; 8] },
    workspaceSize: 0,
    state: cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

/// Version of cuBLASLt, as it counts: 130000 for 13.0.0.
pub(crate) fn version() -> usize {
    // SAFETY: returns a constant of the library, which `Context::open` found.
    unsafe { sys::cublasLtGetVersion() }
}

/// What a product does, apart from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    /// Outputs of a row: rows of the weights.
    pub(crate) out: usize,
    /// Columns of the weights.
    pub(crate) inner: usize,
    /// Elements from one row of x to the next.
    pub(crate) from_stride: usize,
    /// Elements from one row of y to the next.
    pub(crate) to_stride: usize,
    pub(crate) to: Output,
}

/// What becomes of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Output {
    /// Stored as bf16.
    Bf16,
    /// Stored as f32.
    F32,
    /// Added to f32.
    Accumulate,
}

/// Addresses of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    pub(crate) weight: Pointer,
    pub(crate) from: Pointer,
    pub(crate) to: Pointer,
    pub(crate) workspace: Pointer,
}

/// cuBLASLt and the plans it made.
pub(crate) struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace_bytes: usize,
    shapes: HashMap<Shape, Planned>,
}

// SAFETY: the handle may be used from any thread, one at a time, which `&mut self` gives.
unsafe impl Send for Gemm {}

/// A shape's candidates, for measurement: which one runs use never depends on a time, as its bits would then too.
pub(crate) struct Candidates {
    planned: Planned,
    /// The one that runs use, then the others in the order of the heuristic.
    algorithms: Vec<cublasLtMatmulAlgo_t>,
}

impl Candidates {
    pub(crate) fn len(&self) -> usize {
        self.algorithms.len()
    }
}

/// Descriptors of a product and the algorithm chosen for it.
struct Planned {
    accumulate: bool,
    product: cublasLtMatmulDesc_t,
    weight: cublasLtMatrixLayout_t,
    from: cublasLtMatrixLayout_t,
    to: cublasLtMatrixLayout_t,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Gemm {
    /// For products with a workspace of this size.
    pub(crate) fn new(workspace_bytes: u64) -> Result<Self, CudaError> {
        let handle = result::create_handle().named("cublasLtCreate")?;
        Ok(Self { handle, workspace_bytes: workspace_bytes as usize, shapes: HashMap::new() })
    }

    /// One product on `stream`.
    pub(crate) fn run(
        &mut self,
        stream: CUstream,
        shape: Shape,
        weight: Pointer,
        from: Pointer,
        to: Pointer,
        workspace: Pointer,
    ) -> Result<(), CudaError> {
        if !self.shapes.contains_key(&shape) {
            if self.shapes.len() >= SHAPES_MAX {
                self.shapes.clear();
            }
            let planned = Planned::new(self.handle, shape, self.workspace_bytes)?;
            self.shapes.insert(shape, planned);
        }
        let planned = &self.shapes[&shape];
        let places = Places { weight, from, to, workspace };
        self.multiply(stream, planned, &planned.algorithm, places)
    }

    /// The candidates that the heuristic names for a shape, at most `most` of them beside the one that runs use.
    pub(crate) fn candidates(&self, shape: Shape, most: usize) -> Result<Candidates, CudaError> {
        let planned = Planned::new(self.handle, shape, self.workspace_bytes)?;
        let mut algorithms = vec![planned.algorithm];
        for candidate in planned.heuristic(self.handle, shape, self.workspace_bytes, most)? {
            if !algorithms.contains(&candidate) {
                algorithms.push(candidate);
            }
        }
        Ok(Candidates { planned, algorithms })
    }

    /// One product on `stream` by the candidate with this index.
    pub(crate) fn run_candidate(
        &self,
        stream: CUstream,
        candidates: &Candidates,
        index: usize,
        places: Places,
    ) -> Result<(), CudaError> {
        self.multiply(stream, &candidates.planned, &candidates.algorithms[index], places)
    }

    fn multiply(
        &self,
        stream: CUstream,
        p: &Planned,
        algorithm: &cublasLtMatmulAlgo_t,
        Places { weight, from, to, workspace }: Places,
    ) -> Result<(), CudaError> {
        let (alpha, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        // SAFETY: descriptors are alive; addresses are the op's spans, of the sizes that the shape says.
        unsafe {
            result::matmul(
                self.handle,
                p.product,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                weight as *const c_void,
                p.weight,
                from as *const c_void,
                p.from,
                to as *const c_void,
                p.to,
                to as *mut c_void,
                p.to,
                algorithm,
                workspace as *mut c_void,
                self.workspace_bytes,
                stream.cast(),
            )
        }
        .named("cublasLtMatmul")
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.shapes.clear();
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Planned {
    /// cuBLASLt counts columns first: a row-major matrix is its transpose. So yᵀ `[out, rows]` = w · xᵀ, with w
    /// given as its transpose `[in, out]`.
    fn new(handle: sys::cublasLtHandle_t, s: Shape, workspace_bytes: usize) -> Result<Self, CudaError> {
        let bf16 = cudaDataType_t::CUDA_R_16BF;
        let to_type = match s.to {
            Output::Bf16 => bf16,
            Output::F32 | Output::Accumulate => cudaDataType_t::CUDA_R_32F,
        };
        let (rows, out, inner) = (s.rows as u64, s.out as u64, s.inner as u64);
        let single = cudaDataType_t::CUDA_R_32F;
        let product = result::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, single);
        let layout = |kind, rows, columns, stride: usize| {
            result::create_matrix_layout(kind, rows, columns, stride as i64)
                .named("cublasLtMatrixLayoutCreate")
        };
        let mut planned = Self {
            accumulate: s.to == Output::Accumulate,
            product: product.named("cublasLtMatmulDescCreate")?,
            weight: layout(bf16, inner, out, s.inner)?,
            from: layout(bf16, inner, rows, s.from_stride)?,
            to: layout(to_type, out, rows, s.to_stride)?,
            algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let transposed: i32 = 1; // CUBLAS_OP_T
        // SAFETY: the descriptor is alive; the attribute is one 32-bit integer.
        unsafe {
            result::set_matmul_desc_attribute(
                planned.product,
                cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                std::ptr::from_ref(&transposed).cast(),
                size_of::<i32>(),
            )
        }
        .named("cublasLtMatmulDescSetAttribute")?;
        planned.algorithm = planned.heuristic(handle, s, workspace_bytes, 1)?[0];
        Ok(planned)
    }

    /// What the library thinks fastest first; at least one and at most `most`.
    fn heuristic(
        &self,
        handle: sys::cublasLtHandle_t,
        s: Shape,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<cublasLtMatmulAlgo_t>, CudaError> {
        let preference = Preferences(result::create_matmul_pref().named("cublasLtMatmulPreferenceCreate")?);
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes)?;
        // What every row start shares, not what this call's addresses happen to have.
        let to_bytes = if s.to == Output::Bf16 { 2 } else { 4 };
        let (from, to) = (alignment(s.from_stride * 2), alignment(s.to_stride * to_bytes));
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment(s.inner * 2))?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &from)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &to)?;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &to)?;
        let mut results = vec![NO_RESULT; most];
        let mut count: c_int = 0;
        // SAFETY: all descriptors are alive; at most as many results are written as there is room for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                self.product,
                self.weight,
                self.from,
                self.to,
                self.to,
                preference.0,
                most as c_int,
                results.as_mut_ptr(),
                &mut count,
            )
        };
        let fails = |status: cublasStatus_t| {
            CudaError::call("cublasLtMatmulAlgoGetHeuristic", format!("{status:?} for {s:?}"))
        };
        status.result().map_err(|error| fails(error.0))?;
        results.truncate(count.max(0) as usize);
        let usable = results.iter().filter(|r| r.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
        match (algorithms.is_empty(), results.first()) {
            (false, _) => Ok(algorithms),
            (true, Some(first)) => Err(fails(first.state)),
            (true, None) => Err(fails(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)),
        }
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            let _ = result::destroy_matrix_layout(self.weight);
            let _ = result::destroy_matrix_layout(self.from);
            let _ = result::destroy_matrix_layout(self.to);
        }
    }
}

/// Preferences of a search, destroyed when dropped.
struct Preferences(cublasLtMatmulPreference_t);

impl Preferences {
    fn set<T>(&self, attribute: Preference, value: &T) -> Result<(), CudaError> {
        // SAFETY: the descriptor is alive; callers give each attribute its documented type.
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
        .named("cublasLtMatmulPreferenceSetAttribute")
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: created by `create_matmul_pref`, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The largest power of two, up to 16, that divides a row's bytes.
fn alignment(row_bytes: usize) -> u32 {
    1 << row_bytes.trailing_zeros().min(4)
}
