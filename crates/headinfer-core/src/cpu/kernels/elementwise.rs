//! Row-wise and element-wise operations around the products.

use rayon::prelude::*;

use super::Isa;
use super::linear::WeightMatrix;
use super::simd::{Kernel, Simd, dispatch};

/// Rows of the table `[vocab, hidden]` for `ids`, to f32 `[ids, hidden]`.
///
/// # Panics
/// When an id is outside the table: the engine checks before.
pub fn embed(ids: &[u32], table: WeightMatrix<'_>, out: &mut [f32]) {
    out.par_chunks_mut(table.cols).zip(ids).for_each(|(out, id)| {
        let first = *id as usize * table.cols;
        out.iter_mut().enumerate().for_each(|(i, out)| *out = table.value(first + i));
    });
}

/// x · weight / sqrt(mean(x²) + eps) per row of `weight.rows` elements.
pub fn rms_norm(isa: Isa, x: &[f32], weight: WeightMatrix<'_>, eps: f32, out: &mut [f32]) {
    let width = weight.rows;
    out.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(out, x)| {
        let scale = 1.0 / (dispatch(isa, Square { x }) / width as f32 + eps).sqrt();
        out.iter_mut().zip(x).enumerate().for_each(|(i, (out, x))| *out = x * scale * weight.value(i));
    });
}

struct Square<'a> {
    x: &'a [f32],
}

impl Kernel for Square<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let chunks = self.x.chunks_exact(S::LANES);
        let rest: f32 = chunks.remainder().iter().map(|x| x * x).sum();
        let mut sum = S::splat(0.0);
        for chunk in chunks {
            let x = S::load(chunk);
            sum = S::fma(x, x, sum);
        }
        S::reduce_add(sum) + rest
    }
}

/// gate = gate · sigmoid(gate) · up, element by element.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    const PIECE: usize = 4096;
    gate.par_chunks_mut(PIECE).zip(up.par_chunks(PIECE)).for_each(|(gate, up)| {
        dispatch(isa, Swiglu { gate, up });
    });
}

struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        // e^-|x| never overflows: sigmoid(x) is 1/(1+e) for x >= 0 and e/(1+e) below.
        let mut e = [0.0f32; 16];
        for (gate, up) in self.gate.chunks_mut(S::LANES).zip(self.up.chunks(S::LANES)) {
            for (e, g) in e.iter_mut().zip(gate.iter()) {
                *e = -g.abs();
            }
            S::store(S::exp(S::load(&e)), &mut e);
            for ((g, u), e) in gate.iter_mut().zip(up).zip(&e) {
                let sigmoid = if *g >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) };
                *g = *g * sigmoid * u;
            }
        }
    }
}
