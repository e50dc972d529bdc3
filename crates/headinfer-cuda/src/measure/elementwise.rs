//! The kernels that do little with each element, each beside a copy of as many bytes: both are bound by the device's
//! memory.

use headinfer_core::model::spec::ModelSpec;

use super::shapes::{HALF, SINGLE};
use super::{ALIGN, Bed, Ranges};
use crate::arena::Pointer;
use crate::error::CudaError;
use crate::launch::project::Projection;

/// Rows of an embedding that neighbours in a text take: any prime spreads them.
const STRIDE: usize = 7919;

/// One of the kernels, by its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elementwise {
    /// Rows of the embedding to the residual stream.
    Embed,
    /// RMSNorm.
    Norm,
    /// A fused projection taken apart: bias, QK norm, rotation, each head to its place.
    Project,
    /// The MLP's activation.
    Swiglu,
    /// A bias added to the residual stream.
    Bias,
}

/// Seconds of a kernel, and of a copy that reads and writes as many bytes in all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Passed {
    /// Bytes read and written.
    pub bytes: u64,
    /// Of the kernel.
    pub seconds: f64,
    /// Of the copy.
    pub copy_s: f64,
}

impl Elementwise {
    /// All of them, in the order of a step.
    pub const ALL: [Self; 5] = [Self::Embed, Self::Norm, Self::Project, Self::Swiglu, Self::Bias];

    /// Its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Norm => "norm",
            Self::Project => "project",
            Self::Swiglu => "swiglu",
            Self::Bias => "bias",
        }
    }

    /// Bytes read and written for `rows` rows, each counted once.
    pub fn bytes(self, spec: &ModelSpec, rows: usize) -> u64 {
        let sizes = self.sizes(spec, rows);
        match self {
            // Its biases are not launched with where the model has none, and the gate is written where it was read.
            Self::Swiglu => sizes[0] / 2 * 3 + if spec.mlp_bias { sizes[1] + sizes[2] } else { 0 },
            Self::Project => {
                let biases: u64 = if spec.qkv_bias { sizes[3..6].iter().sum() } else { 0 };
                let norms: u64 = if spec.qk_norm { sizes[6..8].iter().sum() } else { 0 };
                sizes[..3].iter().chain(&sizes[8..]).sum::<u64>() + biases + norms
            }
            Self::Bias => 2 * sizes[0] + sizes[1],
            Self::Embed | Self::Norm => sizes.iter().sum(),
        }
    }

    /// Device memory it takes to measure.
    pub fn device_bytes(self, spec: &ModelSpec, rows: usize) -> u64 {
        let [kept, copied] = self.copies(spec, rows);
        let all = self.sizes(spec, rows).into_iter().chain([kept, copied]);
        all.map(|bytes| bytes.next_multiple_of(ALIGN)).sum()
    }

    /// Of its operands: in the order in which [`Bed::launch`] takes them, those first that it writes in place.
    fn sizes(self, spec: &ModelSpec, rows: usize) -> Vec<u64> {
        let [n, hidden, width] = [rows, spec.hidden, spec.intermediate].map(|count| count as u64);
        let [q, kv, d] = [spec.q_dim(), spec.kv_dim(), spec.head_dim].map(|count| count as u64);
        match self {
            Self::Embed => vec![n * SINGLE, n * hidden * HALF, n * hidden * SINGLE],
            Self::Norm => vec![n * hidden * SINGLE, hidden * HALF, n * hidden * HALF],
            Self::Project => {
                let angles = n * d / 2 * SINGLE;
                let biases = [q, kv, kv, d, d].map(|columns| columns * HALF);
                let heads = [q, kv, kv].map(|columns| n * columns * HALF);
                [&[heads.iter().sum(), angles, angles], &biases[..], &heads].concat()
            }
            Self::Swiglu => vec![n * 2 * width * HALF, width * HALF, width * HALF],
            Self::Bias => vec![n * hidden * SINGLE, hidden * HALF],
        }
    }

    /// Bytes that are kept to restore what it writes in place, and to copy from; and those of the copy.
    fn copies(self, spec: &ModelSpec, rows: usize) -> [u64; 2] {
        let copied = self.bytes(spec, rows) / 2;
        [if self.in_place() { copied.max(self.sizes(spec, rows)[0]) } else { copied }, copied]
    }

    fn in_place(self) -> bool {
        matches!(self, Self::Swiglu | Self::Bias)
    }
}

impl Bed {
    /// Measures one, in turns with the copy, on a bed for heads of the model's size. Rows should be as many as take more
    /// memory than the device's caches hold.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    ///
    /// # Panics
    /// When the bed is too small, or its heads are of another size.
    pub fn elementwise(
        &mut self,
        kernel: Elementwise,
        spec: &ModelSpec,
        rows: usize,
    ) -> Result<Passed, CudaError> {
        assert_eq!(self.head_dim, spec.head_dim, "kernels are made for one size of heads");
        self.context.enter()?;
        self.scatter()?;
        let [kept, copied] = kernel.copies(spec, rows);
        let sizes = kernel.sizes(spec, rows);
        let mut ranges = Ranges::new(&self.memories);
        let first = ranges.span(sizes[0]);
        let others = sizes[1..].iter().map(|bytes| ranges.take(*bytes));
        let at: Vec<Pointer> = std::iter::once(self.memories.pointer(first)).chain(others).collect();
        let [kept, target] = [kept, copied].map(|bytes| ranges.take(bytes));
        if kernel == Elementwise::Embed {
            let ids: Vec<u32> = (0..rows).map(|i| (i * STRIDE % rows) as u32).collect();
            self.put(first, bytemuck::cast_slice(&ids))?;
        }
        let times = self.in_turns(2, |bed, turn| {
            // Values that were written over and over leave the range in which arithmetic is fast.
            if turn == 0 && kernel.in_place() {
                bed.copy_within(kept, at[0], sizes[0])?;
            }
            bed.timed(|bed| match turn {
                0 => bed.launch(kernel, spec, rows, &at),
                _ => bed.copy_within(kept, target, copied),
            })
        })?;
        Ok(Passed { bytes: kernel.bytes(spec, rows), seconds: times[0], copy_s: times[1] })
    }

    fn launch(
        &self,
        kernel: Elementwise,
        spec: &ModelSpec,
        rows: usize,
        at: &[Pointer],
    ) -> Result<(), CudaError> {
        let (stream, hidden) = (self.lanes[0].raw(), spec.hidden);
        let only = |there: bool, at: Pointer| if there { at } else { 0 };
        match kernel {
            Elementwise::Embed => self.kernels.embed(stream, (at[0], rows), at[1], at[2], hidden),
            Elementwise::Norm => {
                self.kernels.rms_norm(stream.into(), (at[0], rows), (at[1], hidden), at[2], spec.norm_eps)
            }
            Elementwise::Project => {
                let row = (rows * spec.head_dim) as u64 * HALF;
                let heads = (0..spec.kv_heads as u64).map(|head| {
                    [at[8] + head * row * spec.group() as u64, at[9] + head * row, at[10] + head * row]
                });
                let projection = Projection {
                    from: at[0],
                    rows,
                    cos: at[1],
                    sin: at[2],
                    biases: [at[3], at[4], at[5]].map(|at| only(spec.qkv_bias, at)),
                    norms: [at[6], at[7]].map(|at| only(spec.qk_norm, at)),
                    heads: &heads.collect::<Vec<_>>(),
                    group: spec.group(),
                    eps: spec.norm_eps,
                };
                self.kernels.project(stream.into(), &projection)
            }
            Elementwise::Swiglu => {
                let biases = (only(spec.mlp_bias, at[1]), only(spec.mlp_bias, at[2]));
                self.kernels.swiglu(stream.into(), (at[0], rows), spec.intermediate, biases)
            }
            Elementwise::Bias => self.kernels.add_bias(stream.into(), (at[0], rows), (at[1], hidden)),
        }
    }
}

#[cfg(test)]
mod tests {
    use headinfer_core::model::known::known_shape;

    use super::*;

    #[test]
    fn bytes_are_those_of_the_rows_and_of_what_the_model_has() {
        let plain = known_shape("llama-3-8b").unwrap();
        let bytes = |spec: &ModelSpec| Elementwise::ALL.map(|kernel| kernel.bytes(spec, 1000));
        let of_plain = bytes(&plain);
        let expected = [
            1000 * (4 + 4096 * 6),
            4096 * (1000 * 6 + 2),
            1000 * (6144 * 4 + 128 * 4),
            1000 * 14336 * 6,
            4096 * (1000 * 8 + 2),
        ];
        assert_eq!(of_plain, expected);
        let full = ModelSpec { qkv_bias: true, qk_norm: true, mlp_bias: true, ..plain };
        let more = [0, 0, 2 * 6144 + 2 * 2 * 128, 2 * 2 * 14336, 0];
        assert_eq!(bytes(&full), std::array::from_fn(|i| expected[i] + more[i]));
        for kernel in Elementwise::ALL {
            assert!(kernel.device_bytes(&full, 1000) > 3 * kernel.bytes(&full, 1000) / 2, "{kernel:?}");
        }
    }
}
