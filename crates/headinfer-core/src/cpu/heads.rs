//! Takes a fused projection apart: each head's columns, normalised where the model does, rotated, and put where
//! attention reads them.

use half::bf16;
use rayon::prelude::*;

use super::kernels::WeightMatrix;

/// Widest head the CPU's attention takes; wider ones are refused with the model.
pub(super) const HEAD_DIM_MAX: usize = 256;

/// A row-major projection `[rows, width]` and the angles of its rows.
pub(super) struct Projected<'a> {
    pub(super) values: &'a [f32],
    pub(super) width: usize,
    pub(super) head_dim: usize,
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

/// RMSNorm of one head (Qwen3).
#[derive(Clone, Copy)]
pub(super) struct HeadNorm<'a> {
    pub(super) weight: WeightMatrix<'a>,
    pub(super) eps: f32,
}

impl Projected<'_> {
    /// `group` query heads from column `first` on, to `[rows, group, head_dim]`.
    pub(super) fn queries(&self, first: usize, group: usize, norm: Option<HeadNorm<'_>>, to: &mut [f32]) {
        to.par_chunks_mut(group * self.head_dim).enumerate().for_each(|(row, to)| {
            for (q, to) in to.chunks_mut(self.head_dim).enumerate() {
                to.copy_from_slice(self.head(row, first + q * self.head_dim));
                self.prepare(row, norm, to);
            }
        });
    }

    /// The key head from column `first` on, to bf16 `[rows, head_dim]`.
    pub(super) fn keys(&self, first: usize, norm: Option<HeadNorm<'_>>, to: &mut [u16]) {
        to.par_chunks_mut(self.head_dim).enumerate().for_each(|(row, to)| {
            let mut key = [0.0; HEAD_DIM_MAX];
            let key = &mut key[..self.head_dim];
            key.copy_from_slice(self.head(row, first));
            self.prepare(row, norm, key);
            store(key, to);
        });
    }

    /// The value head from column `first` on, to bf16 `[rows, head_dim]`.
    pub(super) fn values(&self, first: usize, to: &mut [u16]) {
        to.par_chunks_mut(self.head_dim).enumerate().for_each(|(row, to)| store(self.head(row, first), to));
    }

    fn head(&self, row: usize, first: usize) -> &[f32] {
        &self.values[row * self.width + first..][..self.head_dim]
    }

    fn prepare(&self, row: usize, norm: Option<HeadNorm<'_>>, head: &mut [f32]) {
        if let Some(norm) = norm {
            let mean = head.iter().map(|x| x * x).sum::<f32>() / head.len() as f32;
            let scale = 1.0 / (mean + norm.eps).sqrt();
            head.iter_mut().enumerate().for_each(|(i, x)| *x *= scale * norm.weight.value(i));
        }
        let half = self.head_dim / 2;
        let (cos, sin) = (&self.cos[row * half..][..half], &self.sin[row * half..][..half]);
        let (low, high) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b) = (low[i], high[i]);
            low[i] = a * cos[i] - b * sin[i];
            high[i] = b * cos[i] + a * sin[i];
        }
    }
}

/// Rounds to nearest even; NaN stays NaN.
fn store(from: &[f32], to: &mut [u16]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_f32(*from).to_bits());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_keeps_lengths_and_turns_by_the_angle() {
        let values = [9.0, 3.0, 0.0, 4.0, 1.0];
        let angles = [std::f32::consts::FRAC_PI_2, 0.0];
        let (cos, sin) = (angles.map(f32::cos), angles.map(f32::sin));
        let projected = Projected { values: &values, width: 5, head_dim: 4, cos: &cos, sin: &sin };
        let mut to = [0.0; 4];
        projected.queries(1, 1, None, &mut to);
        let expected = [-4.0, 0.0, 3.0, 1.0];
        assert!(to.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{to:?}");
    }
}
