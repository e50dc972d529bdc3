//! What this machine's memory, arithmetic and kernels reach: the figures a plan's floors and a benchmark's ratios
//! are held against. Run inside the pool of threads to be measured. Knows no plan.

use std::time::Instant;

use memmap2::MmapMut;
use rayon::prelude::*;

use super::kernels::{
    Geometry, HeadTask, Isa, KvRows, Product, Sees, StateMut, WeightMatrix, attend_decode, attend_prefill,
    ceiling, linear, state_init,
};
use crate::dtype::DType;
use crate::model::synthetic::{Half, SyntheticKv};
use crate::plan::{DECODE_ROWS, SPLIT, SPLITS_IN_FLIGHT};

/// Heads, as far as a kernel's speed depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Elements of a head.
    pub head_dim: usize,
    /// Query heads per KV head.
    pub group: usize,
}

/// Query tokens and keys of a measured prefill, and how many KV heads take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillLoad {
    /// KV heads.
    pub heads: usize,
    /// Query tokens: a chunk's.
    pub tokens: usize,
    /// Keys before them.
    pub keys: usize,
}

/// A rate beside its ceiling, measured in turns: what else runs on the machine meets both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct InTurns {
    /// Median rate of what was measured.
    pub rate: f64,
    /// Median of the ceiling.
    pub ceiling: f64,
    /// Median over the rounds of rate / ceiling.
    pub ratio: f64,
    /// Least and largest of these.
    pub spread: (f64, f64),
}

impl InTurns {
    /// Of what was measured between ceilings: ceiling, rate, ceiling, rate, ..., ceiling. Each rate is held against
    /// the mean of its two neighbours. Nothing measured gives zeros.
    ///
    /// # Panics
    /// When there is not one ceiling more than rates.
    pub fn of(ceilings: &[f64], rates: &[f64]) -> Self {
        assert_eq!(ceilings.len(), rates.len() + 1, "a ceiling on either side of each rate");
        let neighbours = ceilings.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        let ratios: Vec<f64> = rates.iter().zip(neighbours).map(|(rate, ceiling)| rate / ceiling).collect();
        let end = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick).unwrap_or(0.0);
        Self {
            rate: median(rates),
            ceiling: median(ceilings),
            ratio: median(&ratios),
            spread: (end(f64::min), end(f64::max)),
        }
    }

    /// Measures `rounds` times.
    fn measure(rounds: usize, ceiling: &mut dyn FnMut() -> f64, run: &mut dyn FnMut() -> f64) -> Self {
        let mut ceilings = vec![ceiling()];
        let mut rates = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            rates.push(run());
            ceilings.push(ceiling());
        }
        Self::of(&ceilings, &rates)
    }
}

/// The middle value, of two the larger; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
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

    /// Bytes mapped.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Bytes per second that all threads of the current pool read, in one walk over the field.
    pub fn read_bytes_s(&self, isa: Isa) -> f64 {
        ceiling::read_bytes_s(isa, bytemuck::cast_slice(&self.map))
    }

    /// Bytes per second that one thread copies, counted once.
    pub fn copy_bytes_s(&mut self) -> f64 {
        ceiling::copy_bytes_s(bytemuck::cast_slice_mut(&mut self.map))
    }

    /// Bytes of K and V per second that decode attention reads, one query token of `heads` KV heads which share the
    /// field, beside those that a plain walk over the field reads.
    pub fn decode_in_turns(&self, isa: Isa, shape: HeadShape, heads: usize, rounds: usize) -> InTurns {
        let mut decode = Decode::new(bytemuck::cast_slice(&self.map), shape, heads, 1);
        InTurns::measure(rounds, &mut || self.read_bytes_s(isa), &mut || decode.bytes_s(isa))
    }

    /// FLOP per second of prefill attention beside those of multiply-adds alone.
    ///
    /// # Panics
    /// When the field is smaller than the keys and values of `load`.
    pub fn prefill_in_turns(&self, isa: Isa, shape: HeadShape, load: PrefillLoad, rounds: usize) -> InTurns {
        let HeadShape { head_dim: d, group } = shape;
        let PrefillLoad { heads, tokens, keys } = load;
        let halves: &[u16] = bytemuck::cast_slice(&self.map);
        let (rows, size) = (tokens * group, keys * d);
        let q = queries(heads * rows * d);
        let mut state = State::new(heads * rows, d);
        let geo = geometry(shape, keys as u64);
        let mut run = || {
            let states = state.heads(rows, d).zip(q.chunks(rows * d)).enumerate();
            let mut tasks: Vec<_> = states
                .map(|(head, (state, q))| {
                    let kv = &halves[2 * head * size..][..2 * size];
                    HeadTask { q, kv: KvRows { k: &kv[..size], v: &kv[size..], start: 0 }, state }
                })
                .collect();
            let begun = Instant::now();
            attend_prefill(isa, &geo, &mut tasks);
            (4 * heads * rows * d * keys) as f64 / begun.elapsed().as_secs_f64()
        };
        InTurns::measure(rounds, &mut || ceiling::fma_flops(isa), &mut run)
    }

    /// FLOP per second of a projection of `rows` rows by a bf16 weight `[outputs, depth]`.
    ///
    /// # Panics
    /// When the field is smaller than the weight.
    pub fn gemm_flops(&self, isa: Isa, rows: usize, outputs: usize, depth: usize) -> f64 {
        let bytes = &self.map[..outputs * depth * 2];
        let weight = WeightMatrix { dtype: DType::Bf16, rows: outputs, cols: depth, bytes };
        let product = Product { weight, bias: None, at: 0 };
        let x = queries(rows * depth);
        let mut out = vec![0.0; rows * outputs];
        let run = |out: &mut [f32]| {
            let begun = Instant::now();
            linear(isa, &x, rows, &[product], out, outputs, false);
            (2 * rows * outputs * depth) as f64 / begun.elapsed().as_secs_f64()
        };
        (0..5).map(|_| run(&mut out)).fold(0.0, f64::max)
    }
}

/// Decode attention of some query tokens over K and V that are there.
pub struct Decode<'a> {
    /// Of all heads, K then V each.
    halves: &'a [u16],
    shape: HeadShape,
    heads: usize,
    tokens: usize,
    keys: usize,
    q: Vec<f32>,
    state: State,
    scratch: Vec<f32>,
}

impl<'a> Decode<'a> {
    /// `tokens` query tokens, at most [`DECODE_ROWS`], of `heads` KV heads which share the memory.
    pub fn new(halves: &'a [u16], shape: HeadShape, heads: usize, tokens: usize) -> Self {
        let HeadShape { head_dim: d, group } = shape;
        let rows = heads * tokens * group;
        Self {
            halves,
            shape,
            heads,
            tokens,
            keys: halves.len() / (2 * heads * d),
            q: queries(rows * d),
            state: State::new(rows, d),
            // As much as a plan has, which allows for a step of that many rows.
            scratch: vec![0.0; heads * group * (d + 2) * SPLITS_IN_FLIGHT * DECODE_ROWS],
        }
    }

    /// Bytes of K and V per second that the threads of the current pool attend to, once.
    pub fn bytes_s(&mut self, isa: Isa) -> f64 {
        let HeadShape { head_dim: d, group } = self.shape;
        let (keys, rows) = (self.keys, self.tokens * group);
        let pieces = self.halves.chunks(2 * keys * d).zip(self.q.chunks(rows * d));
        let mut tasks: Vec<_> = pieces
            .zip(self.state.heads(rows, d))
            .map(|((kv, q), state)| {
                let (k, v) = kv.split_at(keys * d);
                HeadTask { q, kv: KvRows { k, v: &v[..keys * d], start: 0 }, state }
            })
            .collect();
        let geo = geometry(self.shape, keys as u64);
        let begun = Instant::now();
        attend_decode(isa, &geo, SPLIT, &mut tasks, &mut self.scratch);
        (self.heads * keys * d * 4) as f64 / begun.elapsed().as_secs_f64()
    }
}

fn geometry(shape: HeadShape, q_start: u64) -> Geometry {
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    Geometry {
        head_dim: shape.head_dim,
        group: shape.group,
        scale,
        window: None,
        q_start,
        sees: Sees::default(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rate_is_held_against_the_ceilings_beside_it() {
        // Half of its ceiling throughout, while the machine slows down to a fifth.
        let slowing = InTurns::of(&[12.0, 8.0, 4.0, 2.0], &[5.0, 3.0, 1.5]);
        assert_eq!(slowing, InTurns { rate: 3.0, ceiling: 8.0, ratio: 0.5, spread: (0.5, 0.5) });
        assert_eq!(InTurns::of(&[4.0], &[]), InTurns { ceiling: 4.0, ..InTurns::default() });
    }
}
