//! Arithmetic of the CPU backend: slices in, slices out. Knows nothing of plans, layers or models.
//!
//! Each kernel is written once over `simd::Simd` and compiled for every instruction set; [`Isa`] picks one at
//! run time. The order of arithmetic of a row never depends on how rows were grouped, on how many there are, or
//! on threads: that is what makes placement bit-exact.

mod attention;
pub mod ceiling;
mod decode;
mod decode_split;
mod decode_sums;
mod elementwise;
mod linear;
mod linear_panels;
pub mod packed;
mod prefill;
mod prefill_strip;
pub mod quantised;
mod share;
mod simd;

pub use attention::{Geometry, HeadTask, KvRows, Sees, StateMut, state_finish, state_init};
pub use decode::{Keys, PiecedTask, attend_decode, attend_decode_pieces};
pub use elementwise::{embed, rms_norm, swiglu};
pub use linear::{Product, WeightMatrix, linear};
pub use packed::PackedRows;
pub use prefill::attend_prefill;
pub use quantised::QuantisedRows;

/// Instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust; whatever the compiler makes of it.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
}

impl Isa {
    /// The best this CPU has.
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Self::Portable)
    }

    /// All this CPU has, best last.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 {
                all.push(Self::Avx2);
            }
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                all.push(Self::Avx512);
            }
        }
        all
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::Avx512 => "AVX-512",
        }
    }
}

#[cfg(test)]
mod attention_tests;
#[cfg(test)]
mod coded_tests;
#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod quantised_tests;
