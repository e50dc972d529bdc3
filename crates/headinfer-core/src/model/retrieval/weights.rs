//! The tensors of a retrieval model, by rows.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Retrieval;
use super::spaces::Spaces;
use crate::dtype::DType;
use crate::model::random::RandomLaw;
use crate::model::spec::{LayerTensor, ModelSpec, TensorId};
use crate::model::weights::{Data, Weights};

/// Seed of the MLPs.
const SEED: u64 = 1;

/// All weights of a model made by [`super::retrieval_spec`], in memory: two bytes per parameter.
///
/// # Panics
/// When `spec` is not that of a retrieval model: ask [`Retrieval::of`] first.
pub fn retrieval_weights(spec: &ModelSpec) -> Weights {
    let retrieval = Retrieval::of(spec).expect("the spec of a retrieval model");
    let tensors = spec.tensors().into_iter().map(|(id, [rows, cols])| {
        let mut values = vec![0; rows * cols];
        retrieval_tensor(&retrieval, id, 0..rows, &mut values);
        (id, DType::Bf16, Data::Halves(values))
    });
    Weights::from_data(tensors, spec).expect("the tensors made are those of the spec")
}

/// Fills `out` with `rows` of tensor `id`, bf16 bits `[rows, cols]`, with all threads. A vector has one column.
///
/// # Panics
/// When the model has no such tensor or rows, or `out` is not as large as they are.
pub fn retrieval_tensor(retrieval: &Retrieval, id: TensorId, rows: Range<usize>, out: &mut [u16]) {
    let shape = retrieval.spec.tensors().into_iter().find(|(other, _)| *other == id);
    let (_, [all, cols]) = shape.expect("the spec lists the tensor");
    assert!(rows.end <= all && out.len() == rows.len() * cols, "{id:?} has {all} rows of {cols}");
    let law = RandomLaw::new(&retrieval.spec, id, SEED);
    out.par_chunks_mut(cols).enumerate().for_each(|(i, row)| {
        row.fill(0);
        Row { model: retrieval, law, index: rows.start + i, out: row }.fill(id);
    });
}

/// One row of a tensor, all zeros at first.
struct Row<'a> {
    model: &'a Retrieval,
    law: RandomLaw,
    index: usize,
    out: &'a mut [u16],
}

impl Row<'_> {
    fn fill(mut self, id: TensorId) {
        use LayerTensor as T;
        match id {
            TensorId::Embed => self.embed(),
            TensorId::LmHead => self.lm_head(),
            TensorId::FinalNorm | TensorId::Layer(_, T::AttnNorm | T::MlpNorm) => self.set(0, 1.0),
            TensorId::Layer(0, T::Q) => self.clock(1.0),
            TensorId::Layer(0, T::K) => self.clock(0.0),
            TensorId::Layer(_, T::Q) => self.matching_query(),
            TensorId::Layer(_, T::K) => self.matching_key(),
            TensorId::Layer(layer, T::V) => self.value(layer),
            TensorId::Layer(layer, T::O) => self.output(layer),
            TensorId::Layer(_, T::Gate | T::Up) => self.random(1.0),
            TensorId::Layer(_, T::Down) if self.model.spaces.free().contains(&self.index) => {
                self.random(self.model.scales.mlp);
            }
            TensorId::Layer(..) => {}
        }
    }

    fn set(&mut self, col: usize, value: f32) {
        self.out[col] = bf16::from_f32(value).to_bits();
    }

    /// Writes a code, `[slices, width]`, from column `first` on.
    fn code(&mut self, first: usize, words: &[u128], size: f32) {
        let width = self.model.spaces.width;
        for (slice, word) in words.iter().enumerate() {
            for bit in 0..width {
                let sign = if word >> bit & 1 == 1 { size } else { -size };
                self.set(first + slice * width + bit, sign);
            }
        }
    }

    fn embed(&mut self) {
        let model = self.model;
        let kind = model.kind(self.index as u32);
        self.code(model.spaces.key(), model.codes.key(kind), 1.0);
        self.code(model.spaces.query(), model.codes.query(kind), 1.0);
        self.set(model.spaces.constant(), model.scales.constant);
    }

    /// Only value tokens are answers.
    fn lm_head(&mut self) {
        let model = self.model;
        let kind = model.kind(self.index as u32);
        if matches!(kind, super::Kind::Value(_)) {
            self.code(model.spaces.found(), model.codes.query(kind), model.scales.logit);
        }
    }

    /// A constant vector in each clock pair, turned back by what `back` tokens turn it: a query so turned meets
    /// the key of the token before.
    fn clock(&mut self, back: f64) {
        let model = self.model;
        let head_dim = model.spec.head_dim;
        let (dim, half) = (self.index % head_dim, head_dim / 2);
        if let Some((_, frequency)) = model.clock.ticks().find(|(pair, _)| *pair == dim % half) {
            let (sin, cos) = (-back * frequency).sin_cos();
            let part = if dim < half { cos } else { sin };
            self.set(model.spaces.constant(), (model.scales.tick * part) as f32);
        }
    }

    /// The head of this row of a projection, and the bit of the head's slices that its dimension holds.
    fn content(&self) -> (usize, Option<usize>) {
        let model = self.model;
        let (head, dim) = (self.index / model.spec.head_dim, self.index % model.spec.head_dim);
        let bits = model.spaces.parts() * model.spaces.width;
        (head, model.slow.iter().take(bits).position(|slow| *slow == dim))
    }

    /// What the current token asks, in the slice of this query head alone.
    fn matching_query(&mut self) {
        let model = self.model;
        let Spaces { width, .. } = model.spaces;
        if let (head, Some(bit)) = self.content() {
            let slice = model.spaces.slice_of(head);
            if bit / width == slice % model.spaces.parts() {
                self.set(model.spaces.query() + slice * width + bit % width, model.scales.matching);
            }
        }
    }

    /// What the previous token offers, in all slices of this KV head.
    fn matching_key(&mut self) {
        let model = self.model;
        if let (head, Some(bit)) = self.content() {
            let first = head * model.spaces.parts() * model.spaces.width;
            self.set(model.spaces.previous() + first + bit, model.scales.matching);
        }
    }

    /// All slices of this KV head.
    fn value(&mut self, layer: usize) {
        let model = self.model;
        let (head, bit) = (self.index / model.spec.head_dim, self.index % model.spec.head_dim);
        let bits = model.spaces.parts() * model.spaces.width;
        let space = if layer == 0 { model.spaces.key() } else { model.spaces.query() };
        if bit < bits {
            self.set(space + head * bits + bit, model.scales.value[layer.min(1)]);
        }
    }

    /// The slice of each query head, from where the value has it.
    fn output(&mut self, layer: usize) {
        let model = self.model;
        let spaces = &model.spaces;
        let space = if layer == 0 { spaces.previous() } else { spaces.found() };
        let Some(at) = self.index.checked_sub(space).filter(|at| *at < spaces.code()) else { return };
        let bit = at % (spaces.parts() * spaces.width);
        for head in (0..model.spec.q_heads).filter(|head| spaces.slice_of(*head) == at / spaces.width) {
            self.set(head * model.spec.head_dim + bit, model.scales.share[layer.min(1)]);
        }
    }

    fn random(&mut self, factor: f32) {
        let first = (self.index * self.out.len()) as u64;
        for (i, out) in self.out.iter_mut().enumerate() {
            let value = bf16::from_bits(self.law.value(first + i as u64)).to_f32();
            *out = bf16::from_f32(factor * value).to_bits();
        }
    }
}
