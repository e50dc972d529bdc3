//! A name for a model that no other model has: shape, options, and every bit of its weights.
//!
//! Must not know what is stored under it.

use std::fmt::Debug;

use crate::model::names::checkpoint_name;
use crate::model::spec::ModelSpec;
use crate::model::weights::Weights;

/// 256 bits that differ between models whose spec or weights differ. The name of a model is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModelDigest([u8; 32]);

impl ModelDigest {
    /// Of weights that are there: reads every byte of them, with all threads.
    pub fn of_weights(spec: &ModelSpec, weights: &Weights) -> Self {
        let mut hasher = begin("weights", spec);
        for (id, shape) in spec.tensors() {
            let view = weights.tensor(id);
            field(&mut hasher, &(checkpoint_name(id), shape, view.dtype, view.bytes.len()));
            hasher.update_rayon(view.bytes);
        }
        Self(hasher.finalize().into())
    }

    /// Of weights that follow from a law: `random`, `retrieval`, … with a seed. They need not be there.
    pub fn of_law(spec: &ModelSpec, law: &str, seed: u64) -> Self {
        let mut hasher = begin("law", spec);
        field(&mut hasher, &(law, seed));
        Self(hasher.finalize().into())
    }

    /// The bits.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// `Debug` lists every field of a spec, those to come too.
fn begin(kind: &str, spec: &ModelSpec) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key("headinfer model digest 1");
    field(&mut hasher, &kind);
    field(&mut hasher, &ModelSpec { name: String::new(), ..spec.clone() });
    hasher
}

/// Each field under its length, so that no two sequences of fields run together.
fn field(hasher: &mut blake3::Hasher, value: &dyn Debug) {
    let text = format!("{value:?}");
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::known::known_shape;
    use crate::model::random::random_weights;

    #[test]
    fn any_bit_and_any_option_makes_another_model() {
        let spec = known_shape("tiny").unwrap();
        let of = |spec: &ModelSpec, seed| ModelDigest::of_weights(spec, &random_weights(spec, seed));
        let renamed = ModelSpec { name: "other".into(), ..spec.clone() };
        assert_eq!(of(&spec, 1), of(&renamed, 1));
        assert_ne!(of(&spec, 1), of(&spec, 2));
        let eps = ModelSpec { norm_eps: spec.norm_eps * 2.0, ..spec.clone() };
        assert_ne!(of(&spec, 1), of(&eps, 1));
        let mut tensors: Vec<_> = {
            let weights = random_weights(&spec, 1);
            let own = |(id, _)| (id, weights.tensor(id).dtype, weights.tensor(id).bytes.to_vec());
            spec.tensors().into_iter().map(own).collect()
        };
        *tensors.last_mut().unwrap().2.last_mut().unwrap() ^= 1;
        let flipped = Weights::from_memory(tensors, &spec).unwrap();
        assert_ne!(of(&spec, 1), ModelDigest::of_weights(&spec, &flipped));
    }

    #[test]
    fn laws_and_seeds_differ() {
        let spec = known_shape("tiny").unwrap();
        let all = [("random", 1), ("random", 2), ("retrieval", 1)];
        let all: std::collections::HashSet<_> =
            all.iter().map(|(law, seed)| ModelDigest::of_law(&spec, law, *seed)).collect();
        assert_eq!(all.len(), 3);
    }
}
