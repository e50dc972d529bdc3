//! Launching kernels: one file per file of `kernels/`, with the same name and the same parameters.
//!
//! A launcher gets addresses that were spans of the plan, and counts; it knows no model and no plan.

pub(crate) mod attention_decode;
pub(crate) mod attention_prefill;
pub(crate) mod attention_prefill_hopper;
pub(crate) mod bias;
pub(crate) mod delay;
pub(crate) mod embed;
pub(crate) mod host;
pub(crate) mod norm;
pub(crate) mod pack;
pub(crate) mod product;
pub(crate) mod project;
pub(crate) mod random_weights;
pub(crate) mod swiglu;

use std::ffi::{CString, c_void};
use std::path::Path;

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUmodule, CUstream,
};
use cudarc::driver::{result, sys};
use rayon::prelude::*;

use crate::compile;
use crate::device::DeviceInfo;
use crate::error::{CudaError, Named};
use attention_prefill::PrefillKernel;

/// Heads a launch takes at most (`HEADS_MAX` in the prelude).
pub(crate) const HEADS_MAX: usize = 64;

/// Every kernel, loaded.
pub(crate) struct Kernels {
    take_ids: CUfunction,
    embed: CUfunction,
    rope_table: CUfunction,
    rms_norm: CUfunction,
    products: Vec<CUfunction>,
    project: CUfunction,
    swiglu: CUfunction,
    add_bias: CUfunction,
    random_weights: CUfunction,
    synthetic_kv: CUfunction,
    delay: CUfunction,
    raise_flag: CUfunction,
    await_flag: CUfunction,
    give_queries: CUfunction,
    take_state: CUfunction,
    pack: CUfunction,
    unpack: CUfunction,
    attention_prefill: CUfunction,
    attention_decode: CUfunction,
    attention_merge: CUfunction,
    prefill: PrefillKernel,
    multiprocessors: u32,
    head_dim: usize,
    modules: Vec<CUmodule>,
}

// SAFETY: module and function handles may be used from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Compiles, or finds in the cache, and loads into the current context.
    pub(crate) fn load(
        info: &DeviceInfo,
        head_dim: usize,
        prefill: PrefillKernel,
        cache: Option<&Path>,
    ) -> Result<Self, CudaError> {
        let units = compile::units(head_dim, &prefill);
        let arch = info.arch();
        let cubins: Result<Vec<_>, _> =
            units.par_iter().map(|unit| unit.cubin(&arch, info.driver, cache)).collect();
        let mut modules = Modules::default();
        for cubin in cubins? {
            modules.load(&cubin)?;
        }
        let kernels = Self {
            take_ids: modules.function("take_ids", 0)?,
            embed: modules.function("embed", 0)?,
            rope_table: modules.function("rope_table", 0)?,
            rms_norm: modules.function("rms_norm", 0)?,
            products: product::ROWS
                .map(|rows| modules.function(&format!("product_{rows}"), 0))
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?,
            project: modules.function("project", 0)?,
            swiglu: modules.function("swiglu", 0)?,
            add_bias: modules.function("add_bias", 0)?,
            random_weights: modules.function("random_weights", 0)?,
            synthetic_kv: modules.function("synthetic_kv", 0)?,
            delay: modules.function("delay", 0)?,
            raise_flag: modules.function("raise_flag", 0)?,
            await_flag: modules.function("await_flag", 0)?,
            give_queries: modules.function("give_queries", 0)?,
            take_state: modules.function("take_state", 0)?,
            pack: modules.function("pack", 0)?,
            unpack: modules.function("unpack", 0)?,
            attention_prefill: prefer_shared(
                modules.function(prefill.name(), prefill.shared_bytes(head_dim))?,
            )?,
            attention_decode: modules
                .function("attention_decode", attention_decode::shared_bytes(head_dim))?,
            attention_merge: modules.function("attention_merge", 0)?,
            prefill,
            multiprocessors: info.multiprocessors,
            head_dim,
            modules: std::mem::take(&mut modules.0),
        };
        Ok(kernels)
    }

    /// Which kernel computes prefill attention.
    pub(crate) fn prefill(&self) -> PrefillKernel {
        self.prefill
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        drop(Modules(std::mem::take(&mut self.modules)));
    }
}

/// Loaded modules, unloaded when dropped.
#[derive(Default)]
struct Modules(Vec<CUmodule>);

impl Modules {
    fn load(&mut self, cubin: &[u8]) -> Result<(), CudaError> {
        // SAFETY: NVRTC's output, whole by the cache's fingerprint; the driver copies it.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast::<c_void>()) };
        self.0.push(module.named("cuModuleLoadData")?);
        Ok(())
    }

    /// The kernel `name`, which may use `shared` bytes of dynamic shared memory.
    fn function(&self, name: &str, shared: u32) -> Result<CUfunction, CudaError> {
        let c_name = CString::new(name).unwrap_or_default();
        // SAFETY: the modules are loaded.
        let find = |m: &CUmodule| unsafe { result::module::get_function(*m, c_name.clone()) }.ok();
        let function = self.0.iter().find_map(find);
        let function =
            function.ok_or_else(|| CudaError::call("cuModuleGetFunction", format!("no kernel {name}")))?;
        if shared > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is alive.
            unsafe { result::function::set_function_attribute(function, attribute, shared as i32) }
                .named("cuFuncSetAttribute")?;
        }
        Ok(function)
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        for module in &self.0 {
            // SAFETY: loaded once, unloaded once, after the streams that ran its kernels were destroyed.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

/// A kernel of which as many blocks as shared memory allows are to run on a multiprocessor, at the first cache's cost.
fn prefer_shared(function: CUfunction) -> Result<CUfunction, CudaError> {
    let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
    // SAFETY: the function is alive; the value is a percentage.
    unsafe { result::function::set_function_attribute(function, attribute, 100) }
        .named("cuFuncSetAttribute")?;
    Ok(function)
}

/// When a kernel starts.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    stream: CUstream,
    early: bool,
}

impl Start {
    /// After what is on `stream`. With `early`, on devices from 9.0 on, it may start while the kernel in front of it
    /// still runs (programmatic dependent launch): for kernels that call `await_previous`, with weights that stay where
    /// they are, and where nothing but a kernel is in front.
    pub(crate) fn new(stream: CUstream, early: bool) -> Self {
        Self { stream, early }
    }
}

impl From<CUstream> for Start {
    fn from(stream: CUstream) -> Self {
        Self::new(stream, false)
    }
}

/// How a kernel is spread.
struct Spread {
    grid: (u32, u32),
    block: u32,
    shared: u32,
}

/// Launches `function`, whose one parameter is a `P`.
///
/// # Safety
/// `P` has the kernel's layout, and its addresses are valid for what the kernel does with them in the order of
/// the stream.
unsafe fn launch<P>(
    function: CUfunction,
    spread: &Spread,
    start: impl Into<Start>,
    name: &'static str,
    params: &mut P,
) -> Result<(), CudaError> {
    let Start { stream, early } = start.into();
    let mut list = [std::ptr::from_mut(params).cast::<c_void>()];
    let mut overlap = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: Default::default(),
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = CUlaunchConfig {
        gridDimX: spread.grid.0,
        gridDimY: spread.grid.1,
        gridDimZ: 1,
        blockDimX: spread.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: spread.shared,
        hStream: stream,
        attrs: &raw mut overlap,
        numAttrs: u32::from(early),
    };
    // SAFETY: the caller's promise; the driver copies the parameters before it returns.
    unsafe { sys::cuLaunchKernelEx(&config, function, list.as_mut_ptr(), std::ptr::null_mut()) }
        .result()
        .named(name)
}

/// A grid that covers `count` with blocks of `block`; counts come from the plan and stay far below the limit.
fn blocks(count: u64, block: u32) -> u32 {
    u32::try_from(count.div_ceil(u64::from(block))).unwrap_or(u32::MAX)
}
