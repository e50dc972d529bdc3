//! A forward pass and an attention in f64, written for being read. With `Plain` they round to bf16 wherever a plain
//! bf16 computation stores or multiplies; a kernel's error is held against that one's.

use std::collections::HashMap;

use half::bf16;
use headinfer_core::model::spec::{LayerTensor as T, ModelSpec, TensorId};
use headinfer_core::model::weights::Weights;

/// What is rounded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Exact,
    Plain,
}

impl Rounding {
    fn of(self, x: f64) -> f64 {
        match self {
            Rounding::Exact => x,
            Rounding::Plain => bf16::from_f64(x).to_f64(),
        }
    }

    fn all(self, mut x: Vec<f64>) -> Vec<f64> {
        x.iter_mut().for_each(|x| *x = self.of(*x));
        x
    }
}

/// Attention of one query at `position` over `keys` and `values` `[rows, d]`, the first of which is at 0.
pub(crate) fn attend(
    rounding: Rounding,
    query: &[f64],
    (keys, values): (&[f64], &[f64]),
    position: usize,
    window: Option<usize>,
) -> Vec<f64> {
    let d = query.len();
    let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
    let dot = |k: usize| -> f64 { query.iter().zip(&keys[k * d..]).map(|(a, b)| a * b).sum() };
    let scores: Vec<f64> = (first..=position).map(|k| dot(k) / (d as f64).sqrt()).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut out = vec![0.0; d];
    for (k, weight) in (first..=position).zip(weights) {
        let weight = rounding.of(weight);
        out.iter_mut().zip(&values[k * d..]).for_each(|(out, v)| *out += weight * v / sum);
    }
    rounding.all(out)
}

/// A model's weights in f64.
pub(crate) struct Reference<'a> {
    spec: &'a ModelSpec,
    tensors: HashMap<TensorId, Vec<f64>>,
    rounding: Rounding,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(spec: &'a ModelSpec, weights: &Weights, rounding: Rounding) -> Self {
        let tensor = |(id, _)| {
            let view = weights.tensor(id);
            (id, (0..view.rows * view.cols).map(|i| f64::from(view.value(i))).collect())
        };
        Self { spec, tensors: spec.tensors().into_iter().map(tensor).collect(), rounding }
    }

    /// Logits of the last `rows` of `ids`, `[rows * vocab]`.
    pub(crate) fn logits(&self, ids: &[u32], rows: usize) -> Vec<f64> {
        let h = self.spec.hidden;
        let embedding = &self.tensors[&TensorId::Embed];
        let mut hidden: Vec<f64> =
            ids.iter().flat_map(|id| embedding[*id as usize * h..][..h].to_vec()).collect();
        for layer in 0..self.spec.layers {
            self.layer(layer, &mut hidden);
        }
        let last = &hidden[(ids.len() - rows) * h..];
        let normed = self.norm(last, TensorId::FinalNorm, h);
        let head = if self.spec.tied { TensorId::Embed } else { TensorId::LmHead };
        self.product(&normed, head, None)
    }

    fn layer(&self, layer: usize, hidden: &mut [f64]) {
        let id = |tensor| TensorId::Layer(layer, tensor);
        let (spec, r) = (self.spec, self.rounding);
        let normed = self.norm(hidden, id(T::AttnNorm), spec.hidden);
        let bias = |has: bool, tensor| has.then_some(id(tensor));
        let project = |weight, b| {
            let plain = r.all(self.product(&normed, id(weight), None));
            self.add_bias(plain, bias(spec.qkv_bias, b))
        };
        let q = self.rotate(project(T::Q, T::QBias), spec.q_heads, id(T::QNorm));
        let k = self.rotate(project(T::K, T::KBias), spec.kv_heads, id(T::KNorm));
        let v = r.all(project(T::V, T::VBias));
        let attended = self.attention(layer, &q, &k, &v);
        add(hidden, &self.product(&attended, id(T::O), bias(spec.o_bias, T::OBias)));
        let normed = self.norm(hidden, id(T::MlpNorm), spec.hidden);
        let wide = |weight, b| {
            let plain = r.all(self.product(&normed, id(weight), None));
            self.add_bias(plain, bias(spec.mlp_bias, b))
        };
        let (gate, up) = (wide(T::Gate, T::GateBias), wide(T::Up, T::UpBias));
        let act = r.all(gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect());
        add(hidden, &self.product(&act, id(T::Down), bias(spec.mlp_bias, T::DownBias)));
    }

    fn attention(&self, layer: usize, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
        let (spec, d) = (self.spec, self.spec.head_dim);
        let column = |x: &[f64], width: usize, head: usize| -> Vec<f64> {
            x.chunks(width).flat_map(|row| row[head * d..][..d].to_vec()).collect()
        };
        let rows = q.len() / spec.q_dim();
        let mut out = vec![0.0; q.len()];
        for head in 0..spec.q_heads {
            let kv = head / spec.group();
            let (keys, values) = (column(k, spec.kv_dim(), kv), column(v, spec.kv_dim(), kv));
            for row in 0..rows {
                let at = row * spec.q_dim() + head * d;
                let one = attend(self.rounding, &q[at..at + d], (&keys, &values), row, spec.windows[layer]);
                out[at..at + d].copy_from_slice(&one);
            }
        }
        out
    }

    fn norm(&self, x: &[f64], weight: TensorId, width: usize) -> Vec<f64> {
        let weight = &self.tensors[&weight];
        self.rounding.all(x.chunks(width).flat_map(|row| self.norm_row(row, weight)).collect())
    }

    fn rotate(&self, mut x: Vec<f64>, heads: usize, norm: TensorId) -> Vec<f64> {
        let (spec, d) = (self.spec, self.spec.head_dim);
        let (frequencies, scale) = (spec.rope.inv_freq(d), spec.rope.attention_factor());
        for (row, x) in x.chunks_mut(heads * d).enumerate() {
            for head in x.chunks_mut(d) {
                if spec.qk_norm {
                    head.copy_from_slice(&self.norm_row(head, &self.tensors[&norm]));
                }
                for (i, f) in frequencies.iter().enumerate() {
                    let (s, c) = (row as f64 * f).sin_cos();
                    let (a, b) = (head[i], head[i + d / 2]);
                    head[i] = (a * c - b * s) * scale;
                    head[i + d / 2] = (b * c + a * s) * scale;
                }
            }
        }
        self.rounding.all(x)
    }

    fn norm_row(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(self.spec.norm_eps)).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
    }

    fn product(&self, x: &[f64], weight: TensorId, bias: Option<TensorId>) -> Vec<f64> {
        let w = &self.tensors[&weight];
        let rows = self.spec.tensors().iter().find(|(id, _)| *id == weight).map(|(_, [rows, _])| *rows);
        let inner = w.len() / rows.expect("the model has the tensor");
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        let out = x.chunks(inner).flat_map(|x| w.chunks(inner).map(move |w| dot(x, w))).collect();
        self.add_bias(out, bias)
    }

    fn add_bias(&self, mut x: Vec<f64>, bias: Option<TensorId>) -> Vec<f64> {
        if let Some(bias) = bias {
            let bias = &self.tensors[&bias];
            x.chunks_mut(bias.len()).for_each(|row| add(row, bias));
        }
        x
    }
}

fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}
