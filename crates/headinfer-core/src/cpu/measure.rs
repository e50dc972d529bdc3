//! What this machine's memory, arithmetic and kernels reach: the figures a plan's floors and a benchmark's ratios
//! are held against. Run inside the pool of threads to be measured. Knows no plan.

use std::time::Instant;

use memmap2::MmapMut;
use rayon::prelude::*;

use super::kernels::{
    Geometry, HeadTask, Isa, KvRows, StateMut, WeightMatrix, attend_decode, attend_prefill, ceiling, linear,
    state_init,
};
use crate::dtype::DType;
use crate::model::synthetic::{Half, SyntheticKv};
use crate::plan::{SPLIT, SPLITS_IN_FLIGHT};

/// Heads, as far as a kernel's speed depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Elements of a head.
    pub head_dim: usize,
    /// Query heads per KV head.
    pub group: usize,
}

/// Values of the random piece that fills a field.
const PIECE: usize = 1 << 19;

/// Memory to measure on: random bf16 values on huge pages, touched by all threads, far larger than caches.
pub struct Field {
    map: MmapMut,
}

impl Field {
    /// Maps and fills `bytes` of memory, at least 1 MiB.
    ///
    /// # Errors
    /// The operating system's, when it refuses the mapping.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let mut map = MmapMut::map_anon(bytes.next_multiple_of(1 << 20))?;
        // As the KV store is mapped; a refusal only costs speed.
        let _ = map.advise(memmap2::Advice::HugePage);
        // The speed of nothing depends on these values, but for being neither zeros nor denormal: one piece serves.
        let mut piece = vec![0u16; PIECE];
        SyntheticKv::new(0, 0, Half::Key).fill(0, &mut piece);
        let halves: &mut [u16] = bytemuck::cast_slice_mut(&mut map);
        halves.par_chunks_mut(PIECE).for_each(|to| to.copy_from_slice(&piece[..to.len()]));
        Ok(Self { map })
    }

    /// Bytes of the field.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Bytes per second that all threads of the current pool read.
    pub fn read_bytes_s(&self, isa: Isa) -> f64 {
        ceiling::read_bytes_s(isa, bytemuck::cast_slice(&self.map))
    }

    /// Bytes per second that one thread copies, counted once.
    pub fn copy_bytes_s(&mut self) -> f64 {
        ceiling::copy_bytes_s(bytemuck::cast_slice_mut(&mut self.map))
    }

    /// Bytes of K and V per second that decode attention reads: one query token, `heads` KV heads which share
    /// the field.
    pub fn decode_bytes_s(&self, isa: Isa, shape: HeadShape, heads: usize) -> f64 {
        let HeadShape { head_dim: d, group } = shape;
        let halves: &[u16] = bytemuck::cast_slice(&self.map);
        let keys = halves.len() / (2 * heads * d);
        let q = queries(heads * group * d);
        let mut state = State::new(heads * group, d);
        let mut scratch = vec![0.0; heads * group * (d + 2) * SPLITS_IN_FLIGHT];
        let geo = geometry(shape, keys as u64);
        let mut run = || {
            let tasks = halves.chunks(2 * keys * d).zip(q.chunks(group * d)).zip(state.heads(group, d));
            let mut tasks: Vec<_> = tasks
                .map(|((kv, q), state)| {
                    let (k, v) = kv.split_at(keys * d);
                    HeadTask { q, kv: KvRows { k, v: &v[..keys * d], start: 0 }, state }
                })
                .collect();
            let begun = Instant::now();
            attend_decode(isa, &geo, SPLIT, &mut tasks, &mut scratch);
            (heads * keys * d * 4) as f64 / begun.elapsed().as_secs_f64()
        };
        best_of(5, &mut run)
    }

    /// FLOP per second of prefill attention: `rows` query tokens of one KV head over `keys` past tokens.
    ///
    /// # Panics
    /// When the field is smaller than those keys and values.
    pub fn prefill_flops(&self, isa: Isa, shape: HeadShape, rows: usize, keys: usize) -> f64 {
        let HeadShape { head_dim: d, group } = shape;
        let halves: &[u16] = bytemuck::cast_slice(&self.map);
        let (k, v) = (&halves[..keys * d], &halves[keys * d..2 * keys * d]);
        let q = queries(rows * group * d);
        let mut state = State::new(rows * group, d);
        let geo = geometry(shape, keys as u64);
        let mut run = || {
            let mut tasks: Vec<_> = state
                .heads(rows * group, d)
                .map(|state| HeadTask { q: &q, kv: KvRows { k, v, start: 0 }, state })
                .collect();
            let begun = Instant::now();
            attend_prefill(isa, &geo, &mut tasks);
            (4 * rows * group * d * keys) as f64 / begun.elapsed().as_secs_f64()
        };
        best_of(5, &mut run)
    }

    /// FLOP per second of a projection of `rows` rows by a bf16 weight `[outputs, depth]`.
    ///
    /// # Panics
    /// When the field is smaller than the weight.
    pub fn gemm_flops(&self, isa: Isa, rows: usize, outputs: usize, depth: usize) -> f64 {
        let bytes = &self.map[..outputs * depth * 2];
        let weight = WeightMatrix { dtype: DType::Bf16, rows: outputs, cols: depth, bytes };
        let x = queries(rows * depth);
        let mut out = vec![0.0; rows * outputs];
        let mut run = || {
            let begun = Instant::now();
            linear(isa, &x, rows, weight, None, &mut out, outputs, false);
            (2 * rows * outputs * depth) as f64 / begun.elapsed().as_secs_f64()
        };
        best_of(5, &mut run)
    }
}

fn best_of(times: usize, run: &mut dyn FnMut() -> f64) -> f64 {
    (0..times).map(|_| run()).fold(0.0, f64::max)
}

fn geometry(shape: HeadShape, q_start: u64) -> Geometry {
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    Geometry { head_dim: shape.head_dim, group: shape.group, scale, window: None, q_start }
}

fn queries(len: usize) -> Vec<f32> {
    let law = SyntheticKv::new(1, 0, Half::Key);
    (0..len as u64).map(|i| f32::from_bits(u32::from(law.value(i)) << 16)).collect()
}

/// Owned attention state.
struct State {
    max: Vec<f32>,
    sum: Vec<f32>,
    acc: Vec<f32>,
}

impl State {
    fn new(rows: usize, d: usize) -> Self {
        Self { max: vec![0.0; rows], sum: vec![0.0; rows], acc: vec![0.0; rows * d] }
    }

    /// The state, emptied, in pieces of `rows` rows.
    fn heads(&mut self, rows: usize, d: usize) -> impl Iterator<Item = StateMut<'_>> {
        state_init(&mut StateMut { max: &mut self.max, sum: &mut self.sum, acc: &mut self.acc });
        let parts = self.max.chunks_mut(rows).zip(self.sum.chunks_mut(rows));
        parts.zip(self.acc.chunks_mut(rows * d)).map(|((max, sum), acc)| StateMut { max, sum, acc })
    }
}
