//! Where the weights come from, and putting them where the plan wants them: on the device, or on the host from
//! where they are streamed.

use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use headinfer_core::dtype::DType;
use headinfer_core::model::random::{RandomLaw, random_tensor};
use headinfer_core::model::spec::TensorId;
use headinfer_core::model::weights::Weights;
use headinfer_core::plan::{Memory, Plan, Span};

use crate::OpenError;
use crate::arena::Memories;
use crate::error::{CudaError, Named};
use crate::launch::Kernels;

/// Where the weights come from.
#[derive(Clone, Debug)]
pub enum CudaWeights {
    /// A checkpoint, or tensors in memory.
    Loaded(Arc<Weights>),
    /// The law of `headinfer_core::model::random`, made in place.
    Random {
        /// Which of them.
        seed: u64,
    },
}

impl CudaWeights {
    /// The products are bf16: other checkpoints are refused rather than rounded silently.
    pub(crate) fn check(&self, plan: &Plan) -> Result<(), OpenError> {
        let refuse = |what: &str, dtype: DType| {
            Err(OpenError::Weights(format!(
                "{what} {}: the CUDA backend computes with bf16 weights; convert the checkpoint or use \
                 --device cpu",
                dtype.name()
            )))
        };
        if plan.spec.dtype != DType::Bf16 {
            return refuse("config.json declares", plan.spec.dtype);
        }
        if let Self::Loaded(weights) = self {
            for (id, _) in plan.spec.tensors() {
                let dtype = weights.tensor(id).dtype;
                if dtype != DType::Bf16 {
                    return refuse(&format!("{id:?} is"), dtype);
                }
            }
        }
        Ok(())
    }
}

/// Fills every place the plan has for weights; the device's are done when `stream` is.
pub(crate) fn fill(
    plan: &Plan,
    weights: &CudaWeights,
    memories: &Memories,
    kernels: &Kernels,
    stream: CUstream,
) -> Result<(), CudaError> {
    let filler = Filler { plan, weights, memories, kernels, stream };
    for (id, _) in plan.spec.tensors() {
        for home in plan.weight_homes(id).as_slice() {
            filler.tensor(id, home.span)?;
        }
    }
    Ok(())
}

struct Filler<'a> {
    plan: &'a Plan,
    weights: &'a CudaWeights,
    memories: &'a Memories,
    kernels: &'a Kernels,
    stream: CUstream,
}

impl Filler<'_> {
    fn tensor(&self, id: TensorId, to: Span) -> Result<(), CudaError> {
        let spec = &self.plan.spec;
        match (self.weights, to.memory) {
            (CudaWeights::Random { seed }, Memory::Device) => {
                let law = RandomLaw::new(spec, id, *seed);
                self.kernels.random_weights(self.stream, law, self.memories.pointer(to), to.bytes / 2)
            }
            (CudaWeights::Random { seed }, Memory::Host) => {
                random_tensor(spec, id, *seed, self.memories.host(to));
                Ok(())
            }
            (CudaWeights::Loaded(weights), Memory::Device) => {
                let (to, from) = (self.memories.pointer(to), weights.tensor(id).bytes);
                // SAFETY: the span is the tensor's place, of its size.
                unsafe { cudarc::driver::result::memcpy_htod_sync(to, from) }.named("cuMemcpyHtoD")
            }
            (CudaWeights::Loaded(weights), Memory::Host) => {
                self.memories.host::<u8>(to).copy_from_slice(weights.tensor(id).bytes);
                Ok(())
            }
        }
    }
}
