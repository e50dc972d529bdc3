//! The computed model where every intermediate value is rounded to bf16, the residual stream and the rotation
//! among them: the coarsest arithmetic that a device or a library may use. A plain forward pass, at the end of the
//! longest context and over its whole length.

use half::bf16;
use headinfer_core::engine::sample::greedy_margin;
use headinfer_core::model::retrieval::{Retrieval, Sizes, retrieval_spec, retrieval_weights};
use headinfer_core::model::spec::{LayerTensor, ModelSpec, TensorId};
use headinfer_core::model::weights::Weights;
use headinfer_core::niah::{Question, Request, code_haystack, even_depths};
use rayon::prelude::*;

/// Tokens of a text, without the question.
const TEXT: usize = 229;

/// `[rows, width]`, each value a bf16.
type Rows = Vec<Vec<f32>>;

fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

struct Rounded<'a> {
    spec: &'a ModelSpec,
    weights: &'a Weights,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rounded<'_> {
    fn linear(&self, x: &Rows, id: TensorId) -> Rows {
        let w = self.weights.tensor(id);
        let values: Vec<f32> = (0..w.rows * w.cols).into_par_iter().map(|i| w.value(i)).collect();
        let dot = |x: &[f32], w: &[f32]| rounded(x.iter().zip(w).map(|(x, w)| x * w).sum());
        x.par_iter().map(|x| values.chunks(w.cols).map(|w| dot(x, w)).collect()).collect()
    }

    fn norm(&self, x: &Rows, id: TensorId) -> Rows {
        let w = self.weights.tensor(id);
        let row = |x: &Vec<f32>| {
            let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
            let scale = 1.0 / (mean + self.spec.norm_eps).sqrt();
            x.iter().enumerate().map(|(i, x)| rounded(rounded(x * scale) * w.value(i))).collect()
        };
        x.iter().map(row).collect()
    }

    fn rotate(&self, x: &mut Rows) {
        let half = self.spec.head_dim / 2;
        for (row, x) in x.iter_mut().enumerate() {
            for head in x.chunks_mut(2 * half) {
                for i in 0..half {
                    let (cos, sin) = (self.cos[row * half + i], self.sin[row * half + i]);
                    let (a, b) = (head[i], head[i + half]);
                    head[i] = rounded(rounded(a * cos) + rounded(-b * sin));
                    head[i + half] = rounded(rounded(b * cos) + rounded(a * sin));
                }
            }
        }
    }

    fn attend(&self, q: &Rows, k: &Rows, v: &Rows) -> (Rows, f32) {
        let d = self.spec.head_dim;
        let scores = |row: usize, head: usize| -> Vec<f32> {
            let (q, kv) = (&q[row][head * d..][..d], head / self.spec.group() * d);
            let dot = |k: &Vec<f32>| q.iter().zip(&k[kv..]).map(|(a, b)| a * b).sum::<f32>();
            k[..=row].iter().map(|k| rounded(dot(k) / (d as f32).sqrt())).collect()
        };
        let out = |row: usize, head: usize| -> Vec<f32> {
            let (scores, kv) = (scores(row, head), head / self.spec.group() * d);
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|s| (s - max).exp()).sum();
            let weights: Vec<f32> = scores.iter().map(|s| rounded((s - max).exp() / sum)).collect();
            (0..d).map(|i| rounded(weights.iter().zip(v).map(|(w, v)| w * v[kv + i]).sum())).collect()
        };
        let heads = 0..self.spec.q_heads;
        let lead = heads.clone().map(|head| greedy_margin(&scores(q.len() - 1, head)).1);
        let row = |row| heads.clone().flat_map(|head| out(row, head)).collect();
        ((0..q.len()).into_par_iter().map(row).collect(), lead.fold(f32::INFINITY, f32::min))
    }

    /// Logits of the last of `ids`, and by how much its best score leads in the worst head of the layers that
    /// match.
    fn forward(&self, ids: &[u32]) -> (Vec<f32>, f32) {
        use LayerTensor as T;
        let embed = self.weights.tensor(TensorId::Embed);
        let token = |id: &u32| (0..embed.cols).map(|i| embed.value(*id as usize * embed.cols + i)).collect();
        let mut x: Rows = ids.iter().map(token).collect();
        let add = |x: &mut Rows, y: Rows| {
            x.iter_mut().flatten().zip(y.into_iter().flatten()).for_each(|(x, y)| *x = rounded(*x + y));
        };
        let mut lead = f32::INFINITY;
        for layer in 0..self.spec.layers {
            let id = |tensor| TensorId::Layer(layer, tensor);
            let normed = self.norm(&x, id(T::AttnNorm));
            let [mut q, mut k, v] = [T::Q, T::K, T::V].map(|t| self.linear(&normed, id(t)));
            self.rotate(&mut q);
            self.rotate(&mut k);
            let (attended, found) = self.attend(&q, &k, &v);
            if layer > 0 {
                lead = lead.min(found);
            }
            add(&mut x, self.linear(&attended, id(T::O)));
            let normed = self.norm(&x, id(T::MlpNorm));
            let mut gate = self.linear(&normed, id(T::Gate));
            let up = self.linear(&normed, id(T::Up));
            let gated = gate.iter_mut().flatten().zip(up.iter().flatten());
            gated.for_each(|(g, u)| *g = rounded(rounded(*g / (1.0 + (-*g).exp())) * u));
            add(&mut x, self.linear(&gate, id(T::Down)));
        }
        let last = vec![x.pop().expect("a row")];
        (self.linear(&self.norm(&last, TensorId::FinalNorm), TensorId::LmHead).remove(0), lead)
    }
}

/// The smallest margin, and the smallest lead in any head, of questions to a text that starts at position `text_at`
/// and ends before `question_at`, which may be far away.
fn margin_and_lead(model: &Retrieval, text_at: u64, question_at: u64) -> (f32, f32) {
    let request = Request { context: TEXT + 2, depths: even_depths(9), seed: 1 };
    let haystack = code_haystack(model, &request, 1).unwrap();
    let spec = model.spec();
    let half = spec.head_dim / 2;
    let mut cos = vec![0.0; (TEXT + 1) * half];
    let mut sin = cos.clone();
    // The last word of the text goes with the question, which would else be its own previous token.
    let (near, far) = (..(TEXT - 1) * half, (TEXT - 1) * half..);
    spec.rope.table(spec.head_dim, text_at, TEXT - 1, &mut cos[near], &mut sin[near]);
    spec.rope.table(spec.head_dim, question_at - 1, 2, &mut cos[far.clone()], &mut sin[far]);
    cos.iter_mut().chain(&mut sin).for_each(|x| *x = rounded(*x));
    let weights = retrieval_weights(spec);
    let forward = Rounded { spec, weights: &weights, cos, sin };
    let ask = |question: &Question| {
        let ids = [haystack.ids.as_slice(), &question.ids].concat();
        assert_eq!(ids.len(), TEXT + 1);
        let (logits, lead) = forward.forward(&ids);
        let (got, margin) = greedy_margin(&logits);
        (if got == question.answer[0] { margin } else { -margin }, lead)
    };
    let worst = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.min(b.1));
    haystack.questions.iter().skip(1).take(7).step_by(3).map(ask).fold((f32::INFINITY, f32::INFINITY), worst)
}

#[test]
fn the_computed_model_bears_rounding_everything_to_bf16() {
    let small = |hidden, q_heads, kv_heads, head_dim| Sizes {
        vocab: 600,
        hidden,
        layers: 3,
        q_heads,
        kv_heads,
        head_dim,
        intermediate: 32,
    };
    let default = Retrieval::of(&retrieval_spec(None).unwrap()).unwrap();
    let made = [small(200, 2, 1, 32), small(300, 8, 2, 128), small(80, 4, 2, 16), small(200, 2, 2, 20)]
        .map(|sizes| Retrieval::new("rounded", &sizes).unwrap());
    for model in std::iter::once(default).chain(made) {
        let longest = model.spec().max_position as u64;
        let text = TEXT as u64;
        for (text_at, question_at) in [(longest - 1 - text, longest - 1), (0, longest - 1)] {
            let (margin, lead) = margin_and_lead(&model, text_at, question_at);
            let head_dim = model.spec().head_dim;
            assert!(margin > 10.0, "head dimension {head_dim}, text at {text_at}: margin {margin}");
            // Enough for the longest context: so many tokens at this distance weigh e^-8 together.
            assert!(
                lead > (longest as f32).ln() + 8.0,
                "head dimension {head_dim}, text at {text_at}: {lead}"
            );
        }
    }
}
