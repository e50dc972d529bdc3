//! Random weights by a counter-based law that any device can reproduce bit for bit.
//!
//! All arithmetic on integers is modulo 2^64. With `mix` the finaliser of splitmix64,
//!
//! ```text
//! mix(z)  = z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z ^= z >> 27; z *= 0x94d049bb133111eb; z ^ z >> 31
//! key     = mix(seed ^ mix(tensor_number + G)),  G = 0x9e3779b97f4a7c15
//! u       = mix(key + (index + 1) * G) >> 40           24 bits
//! v       = f32(2 * u - (2^24 - 1))                    exact: an odd integer below 2^24 in size
//! value   = bf16(f32(offset + f32(v * scale)))         each f32() rounds to nearest even: do not fuse
//! scale   = f32(std * sqrt(3) / 2^24)                  formed in f64, a uniform law of that deviation
//! ```
//!
//! `index` is `row * cols + col`. Matrices have `std = 1/sqrt(cols)`, so that activations keep their size in
//! any shape; norms are 1 with `std = 0.05`; biases 0 with `std = 0.02`.

use half::bf16;
use rayon::prelude::*;

use crate::dtype::DType;
use crate::model::names::is_vector;
use crate::model::spec::{LayerTensor, ModelSpec, TensorId};
use crate::model::weights::{Data, Weights};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a device needs to make one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomLaw {
    /// Start of the tensor's stream.
    pub key: u64,
    /// Multiplies the odd integer.
    pub scale: f32,
    /// Added after rounding the product.
    pub offset: f32,
}

impl RandomLaw {
    /// The law of tensor `id`, which `spec` must list.
    pub fn new(spec: &ModelSpec, id: TensorId, seed: u64) -> Self {
        let (std, offset) = match id {
            TensorId::Layer(_, t) if is_bias(t) => (0.02, 0.0),
            id if is_vector(id) => (0.05, 1.0),
            id => (1.0 / (fan_in(spec, id) as f64).sqrt(), 0.0),
        };
        let scale = (std * 3f64.sqrt() / f64::from(1 << 24)) as f32;
        RandomLaw { key: mix(seed ^ mix(tensor_number(id).wrapping_add(GOLDEN))), scale, offset }
    }

    /// Element `index` as the bits of a bf16.
    pub fn value(self, index: u64) -> u16 {
        let u = mix(self.key.wrapping_add((index.wrapping_add(1)).wrapping_mul(GOLDEN))) >> 40;
        let odd = (2 * u as i64 - ((1 << 24) - 1)) as f32;
        bf16::from_f32(self.offset + odd * self.scale).to_bits()
    }
}

fn fan_in(spec: &ModelSpec, id: TensorId) -> usize {
    match id {
        TensorId::Layer(_, LayerTensor::O) => spec.q_dim(),
        TensorId::Layer(_, LayerTensor::Down) => spec.intermediate,
        _ => spec.hidden,
    }
}

fn is_bias(tensor: LayerTensor) -> bool {
    use LayerTensor as T;
    matches!(tensor, T::QBias | T::KBias | T::VBias | T::OBias | T::GateBias | T::UpBias | T::DownBias)
}

/// The number of a tensor in the random law: embedding 0, final norm 1, output head 2, then 18 to a layer, in
/// the order of [`LayerTensor`]. It depends on no option of the model.
pub fn tensor_number(id: TensorId) -> u64 {
    match id {
        TensorId::Embed => 0,
        TensorId::FinalNorm => 1,
        TensorId::LmHead => 2,
        TensorId::Layer(layer, tensor) => 3 + 18 * layer as u64 + tensor as u64,
    }
}

/// Elements made by one task.
const CHUNK: usize = 1 << 16;

/// Fills `out` with the first elements of tensor `id`, bf16 bits, row by row, with all threads.
pub fn random_tensor(spec: &ModelSpec, id: TensorId, seed: u64, out: &mut [u16]) {
    let law = RandomLaw::new(spec, id, seed);
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        let first = (chunk * CHUNK) as u64;
        for (i, value) in values.iter_mut().enumerate() {
            *value = law.value(first + i as u64);
        }
    });
}

/// All weights of a random model, in memory: two bytes per parameter.
pub fn random_weights(spec: &ModelSpec, seed: u64) -> Weights {
    let tensors = spec.tensors().into_iter().map(|(id, [rows, cols])| {
        let mut values = vec![0; rows * cols];
        random_tensor(spec, id, seed, &mut values);
        (id, DType::Bf16, Data::Halves(values))
    });
    Weights::from_data(tensors, spec).expect("the tensors made are those of the spec")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known::known_shape;

    #[test]
    fn the_law_gives_these_bits() {
        // Computed from the text of the module's documentation by a separate Python program.
        let law = RandomLaw { key: mix(7 ^ mix(GOLDEN)), scale: 1.0 / 16_777_216.0, offset: 0.0 };
        let bits: Vec<u16> = (0..6).map(|i| law.value(i)).collect();
        assert_eq!(bits, [0xbd19, 0x3ea9, 0x3e1c, 0xbf52, 0x3eed, 0xbf26]);
    }

    #[test]
    fn a_prefix_is_the_start_of_the_whole() {
        let spec = known_shape("tiny").unwrap();
        let mut whole = vec![0; 3 * CHUNK];
        let mut part = vec![0; CHUNK + 7];
        random_tensor(&spec, TensorId::Embed, 3, &mut whole);
        random_tensor(&spec, TensorId::Embed, 3, &mut part);
        assert_eq!(part, whole[..part.len()]);
    }

    #[test]
    fn matrices_have_the_stated_mean_and_deviation() {
        let spec = known_shape("small").unwrap();
        let id = TensorId::Layer(0, LayerTensor::Down);
        let mut bits = vec![0; 1 << 18];
        random_tensor(&spec, id, 1, &mut bits);
        let values: Vec<f64> = bits.iter().map(|&b| bf16::from_bits(b).to_f64()).collect();
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| v * v).sum::<f64>() / n - mean * mean).sqrt();
        let want = 1.0 / (spec.intermediate as f64).sqrt();
        // Standard errors: want/512 for the mean, less for the deviation; five of them.
        assert!(mean.abs() < 5.0 * want / 512.0, "{mean}");
        assert!((std / want - 1.0).abs() < 0.01, "{std} {want}");
    }

    #[test]
    fn tensors_and_seeds_differ() {
        let spec = known_shape("tiny").unwrap();
        let keys: std::collections::HashSet<u64> = (0..10)
            .flat_map(|seed| spec.tensors().into_iter().map(move |(id, _)| (seed, id)))
            .map(|(seed, id)| RandomLaw::new(&spec, id, seed).key)
            .collect();
        assert_eq!(keys.len(), 10 * spec.tensors().len());
    }

    #[test]
    fn random_weights_are_finite() {
        random_weights(&known_shape("tiny").unwrap(), 0).check_finite().unwrap();
    }
}
