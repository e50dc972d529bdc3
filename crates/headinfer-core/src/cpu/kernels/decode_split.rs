//! Decode attention of some rows over some splits of a head's keys, each split into a state of its own; the arithmetic
//! is in `decode_sums`.
//!
//! bf16 rows are read in place as even and odd elements, one operation a vector; queries and accumulators are kept in
//! that order. Per split first all of K, then all of V; what comes next is asked for line by line meanwhile, a whole
//! half of a split ahead. A coded split is decoded to memory of the thread, which stays in its second cache; the next
//! one is asked for meanwhile, a quarter of it during each half's decoding, the scores and the sums.

use std::cell::Cell;

use super::attention::{Geometry, HEAD_DIM_MAX, aligned_parts};
use super::decode::Keys;
use super::decode_sums::{Ahead, Split};
use super::quantised::{Half, Quantised};
use super::simd::{Kernel, Simd};

/// Keys of a split, at most.
pub(super) const SPLIT_MAX: usize = 256;
/// Query rows that share each loaded vector.
pub(super) const ROWS: usize = 4;
/// bf16 values of a cache line.
pub(super) const LINE: usize = 32;

/// The keys of a split: rows `[from, to)` of a piece.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) piece: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// All rows of a head over consecutive splits of one piece.
pub(super) struct Run<'a> {
    pub(super) geo: &'a Geometry,
    pub(super) q: &'a [f32],
    pub(super) keys: Keys<'a>,
    pub(super) cuts: &'a [Cut],
    /// Per split `[max; rows]`, `[sum; rows]`, `[rows, head_dim]` of even then odd elements.
    pub(super) partials: &'a mut [f32],
    pub(super) rows: usize,
    /// [`Run::bytes`] of what the thread does next, if known.
    pub(super) next: &'a [u8],
}

impl<'a> Run<'a> {
    /// What is read first, from the first of its splits on.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes_from(&self.cuts[0])
    }

    fn bytes_from(&self, cut: &Cut) -> &'a [u8] {
        let d = self.geo.head_dim;
        match self.keys {
            Keys::Plain(rows) => bytemuck::cast_slice(&rows.k[cut.from * d..]),
            Keys::Packed(packed) => packed.from(cut.from / SPLIT_MAX, d),
            Keys::Quantised(rows) => rows.from(cut.from / SPLIT_MAX, d),
        }
    }

    /// A quarter of a coded unit is about as many times smaller than half a plain one, as a power of two.
    fn shift(&self) -> u32 {
        match self.keys {
            Keys::Plain(_) => 0,
            Keys::Packed(_) => 1,
            Keys::Quantised(rows) if rows.format == Quantised::Int8 => 2,
            Keys::Quantised(_) => 3,
        }
    }

    /// Whether any row sees keys of `cut`.
    fn sees(&self, cut: &Cut) -> bool {
        let start = self.keys.start();
        let (from, to) = (start + cut.from as u64, start + cut.to as u64);
        (0..self.rows).any(|row| {
            let (first, end) = self.geo.visible(row);
            first.max(from) < end.min(to)
        })
    }
}

thread_local! {
    /// K and V of a split, decoded; kept, as the system takes its time to hand out so much zeroed memory.
    static DECODED: Cell<Vec<u16>> = const { Cell::new(Vec::new()) };
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (d, rows) = (self.geo.head_dim, self.rows);
        let width = d.next_multiple_of(2 * S::LANES);
        let mut memory = vec![0.0; rows * width + LINE];
        let [q] = aligned_parts(&mut memory, [rows * width]);
        arrange::<S>(self.geo, self.q, q, width);
        // Rows of K and V that do not fill whole vectors are padded first: the products read whole vectors only.
        let half = if width == d { 0 } else { SPLIT_MAX * width };
        let mut padded = vec![0; 2 * half];
        let (padded_k, padded_v) = padded.split_at_mut(half);
        let mut decoded = DECODED.take();
        if self.keys.half_bytes(d).is_some() {
            decoded.resize(2 * SPLIT_MAX * HEAD_DIM_MAX, 0);
        }
        let partials = std::mem::take(&mut self.partials);
        for (i, partial) in partials.chunks_mut(rows * (d + 2)).enumerate() {
            let cut = &self.cuts[i];
            let next = self.cuts.get(i + 1).map_or(self.next, |cut| self.bytes_from(cut));
            let (k, v) = match self.keys {
                Keys::Plain(kv) => (&kv.k[cut.from * d..cut.to * d], &kv.v[cut.from * d..cut.to * d]),
                coded => {
                    let (k, v) = decoded.split_at_mut(SPLIT_MAX * HEAD_DIM_MAX);
                    let (k, v) = (&mut k[..SPLIT_MAX * d], &mut v[..SPLIT_MAX * d]);
                    if self.sees(cut) {
                        decode::<S>(&coded, cut, d, (&mut *k, &mut *v), next);
                    }
                    (&*k, &*v)
                }
            };
            let ends = next.is_empty();
            let (k, v) = match width == d {
                true => (k, v),
                false => (pad(k, d, padded_k, width), pad(v, d, padded_v, width)),
            };
            let ahead = match (self.keys.half_bytes(d), ends) {
                // Nothing to ask for but what is there.
                (None, true) => Ahead { scores: v.as_ptr(), sums: k.as_ptr(), shift: 0 },
                (Some(_), true) => Ahead { scores: k.as_ptr(), sums: k.as_ptr(), shift: 1 },
                (None, false) => Ahead { scores: v.as_ptr(), sums: next.as_ptr().cast(), shift: 0 },
                (Some(half), false) => {
                    let quarter = |i| next.as_ptr().wrapping_add(i * half / 2).cast();
                    Ahead { scores: quarter(2), sums: quarter(3), shift: self.shift() }
                }
            };
            let split = Split { k, v, width, ahead, start: self.keys.start() + cut.from as u64 };
            split.attend_all::<S>(self.geo, q, partial, rows);
        }
        DECODED.set(decoded);
    }
}

/// K and V of a coded unit; meanwhile the first half of the `next` one is asked for.
#[inline(always)]
fn decode<S: Simd>(keys: &Keys<'_>, cut: &Cut, d: usize, (k, v): (&mut [u16], &mut [u16]), next: &[u8]) {
    let next = &next[..next.len().min(keys.half_bytes(d).unwrap_or_default())];
    let (first, second) = next.split_at(next.len() / 2);
    let unit = cut.from / SPLIT_MAX;
    match keys {
        Keys::Plain(_) => {}
        Keys::Packed(rows) => {
            S::call(rows.unpack(d, (unit, 0), k, first));
            S::call(rows.unpack(d, (unit, 1), v, second));
        }
        Keys::Quantised(rows) => {
            S::call(rows.dequantise(d, (unit, Half::Keys), k, first));
            S::call(rows.dequantise(d, (unit, Half::Values), v, second));
        }
    }
}

/// Queries scaled, by log2(e) too, in the order of use: for each few rows, for each vector of pairs, for each row, even
/// then odd elements, padded with the zeros that `to` holds.
fn arrange<S: Simd>(geo: &Geometry, q: &[f32], to: &mut [f32], width: usize) {
    let scale = geo.scale * std::f32::consts::LOG2_E;
    let few = q.chunks(ROWS * geo.head_dim).zip(to.chunks_mut(ROWS * width));
    for (q, to) in few {
        let rows = q.len() / geo.head_dim;
        for (r, q) in q.chunks_exact(geo.head_dim).enumerate() {
            for (i, pair) in q.chunks_exact(2).enumerate() {
                let at = (i / S::LANES * rows + r) * 2 * S::LANES + i % S::LANES;
                to[at] = pair[0] * scale;
                to[at + S::LANES] = pair[1] * scale;
            }
        }
    }
}

/// Rows of `d` elements as rows of `width`, the rest of which is zero already.
fn pad<'a>(from: &[u16], d: usize, to: &'a mut [u16], width: usize) -> &'a [u16] {
    let rows = from.len() / d;
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(d)) {
        to[..d].copy_from_slice(from);
    }
    &to[..rows * width]
}
