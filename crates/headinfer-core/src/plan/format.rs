//! How the host's store keeps K and V.
//!
//! A coded store keeps whole units of 256 rows of a head, a half for its keys and one for its values; rows past the last
//! whole unit wait on the device as they are. What a half looks like inside is its codec's business.

use super::layout::SPLIT;
use crate::cpu::kernels::packed;
use crate::cpu::kernels::quantised::Quantised;

/// Rows of a head that are coded together.
pub const UNIT: usize = packed::UNIT;
// The CPU attends to a unit as a split, and a store's pieces are multiples of splits.
const _: () = assert!(UNIT == SPLIT);

/// What K and V are on the host. Resident heads and the session store have bf16 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As computed.
    #[default]
    Bf16,
    /// The same bits in about three quarters of the bytes (`cpu/kernels/packed.rs`).
    Bf16Packed,
    /// Lossy: 8 bits a value (`cpu/kernels/quantised.rs`).
    Int8,
    /// Lossy: 4 bits a value.
    Int4,
}

impl KvFormat {
    /// All, the default first.
    pub const ALL: [KvFormat; 4] = [KvFormat::Bf16, KvFormat::Bf16Packed, KvFormat::Int8, KvFormat::Int4];
    /// Those that give the bits of the default.
    pub const EXACT: [KvFormat; 2] = [KvFormat::Bf16, KvFormat::Bf16Packed];

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Bf16Packed => "bf16-packed",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of the keys, or of the values, of a unit of a head of `head_dim` elements.
    pub fn half_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Bf16 => UNIT * head_dim * 2,
            Self::Bf16Packed => packed::half_bytes(head_dim),
            Self::Int8 => Quantised::Int8.half_bytes(head_dim),
            Self::Int4 => Quantised::Int4.half_bytes(head_dim),
        }
    }

    /// How values are quantised, if they are: what is read back is then not what was stored.
    pub fn quantised(self) -> Option<Quantised> {
        match self {
            Self::Bf16 | Self::Bf16Packed => None,
            Self::Int8 => Some(Quantised::Int8),
            Self::Int4 => Some(Quantised::Int4),
        }
    }

    /// Bytes of what a half that does not fit keeps elsewhere; 0 where all fit.
    pub fn plane_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Bf16 | Self::Int8 | Self::Int4 => 0,
            Self::Bf16Packed => packed::plane_bytes(head_dim),
        }
    }

    /// Whether some halves may need planes.
    pub fn has_planes(self) -> bool {
        self == Self::Bf16Packed
    }

    /// What decoding a byte takes the CPU, in FLOP at the rate of its attention: eight a value, as on 15 cores of a Sapphire
    /// Rapids packed units gave 69 to 72 GB/s beside the link, where plain rows gave 91 to 93. The lossy forms are taken to
    /// be no faster.
    pub fn decode_flop_a_byte(self, head_dim: usize) -> f64 {
        if self == Self::Bf16 { 0.0 } else { 8.0 * self.ratio(head_dim) / 2.0 }
    }

    /// How many times smaller than bf16 a half is.
    pub fn ratio(self, head_dim: usize) -> f64 {
        Self::Bf16.half_bytes(head_dim) as f64 / self.half_bytes(head_dim) as f64
    }
}
