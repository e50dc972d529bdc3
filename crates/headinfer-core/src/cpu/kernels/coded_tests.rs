//! What the tests of both codecs share.

use super::packed::UNIT;
use super::*;

/// Pseudo-random numbers, by splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(super) fn below(&mut self, n: u64) -> usize {
        (self.next() % n) as usize
    }

    /// About normal: the sum of twelve uniform ones.
    pub(super) fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// Bits of the state after decode attention of the rows `q` over `pieces`: max, sum, accumulator.
pub(super) fn attended(isa: Isa, geo: &Geometry, q: &[f32], pieces: &[Keys<'_>]) -> Vec<u32> {
    let (d, rows) = (geo.head_dim, q.len() / geo.head_dim);
    let (mut max, mut sum, mut acc) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows], vec![0.0; rows * d]);
    let state = StateMut { max: &mut max, sum: &mut sum, acc: &mut acc };
    let mut scratch = vec![f32::NAN; 3 * rows * (d + 2)];
    attend_decode_pieces(isa, geo, UNIT, &mut [PiecedTask { q, pieces, state }], &mut scratch);
    [max, sum, acc].concat().into_iter().map(f32::to_bits).collect()
}
