//! A vector of f32 on each instruction set, and how to run a kernel compiled for one.
#![allow(unsafe_code)] // intrinsics; every slice access is checked before the pointer is taken

use super::Isa;

/// Vector operations that kernels are written in. All methods of an x86 type must only run where the CPU has its
/// features: [`dispatch`] is the one door.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// f32 elements of a vector, a divisor of 64.
    const LANES: usize;
    /// Scalars of a matrix tile: eight meet three vectors, six meet two.
    const SCALARS: usize;
    type V: Copy;

    fn splat(x: f32) -> Self::V;
    fn load(from: &[f32]) -> Self::V;
    fn store(v: Self::V, to: &mut [f32]);
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    fn max(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once.
    fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum over the lanes, in an order fixed per instruction set.
    fn reduce_add(v: Self::V) -> f32;
    /// Lane i: the sum over the lanes of the i-th of LANES vectors, all in one order.
    fn sums(v: &[Self::V]) -> Self::V;
    fn reduce_max(v: Self::V) -> f32;
    /// 2 · LANES bf16 values as (even elements, odd elements): one operation a vector and no shuffle.
    fn load_bf16(from: &[u16]) -> (Self::V, Self::V);
    /// LANES bf16 values in order.
    fn widen_bf16(from: &[u16]) -> Self::V;
    /// 2 · LANES f16 values as (first half, second half).
    fn load_f16(from: &[u16]) -> (Self::V, Self::V);
    /// round(x) as a vector and 2^round(x), for x in [-126, 127].
    fn round_exp2(x: Self::V) -> (Self::V, Self::V);
    /// p · 2^n, where `shifted` is n + 1.5 · 2^23: the bits of n end the significand, and are added to the exponent.
    fn times_power(p: Self::V, shifted: Self::V) -> Self::V;
    /// bf16 values of 2 · LANES columns from their low bytes (sign and mantissa), codes in the low or `HIGH` nibbles, and
    /// bases: exponents are the base less the code, or 0 for code 15.
    fn join_codes<const HIGH: bool>(low: &[u8], codes: &[u8], bases: &[u8], to: &mut [u16]);
    /// Asks for the cache line at `from`, no nearer than the second level: the first has fewer lines on their way than
    /// memory needs to be busy.
    fn prefetch(from: *const u16);

    /// e^x for x <= 0, relative error below 2e-7; 0 below -87 (and for -inf); 1 at 0 exactly.
    #[inline(always)]
    fn exp(x: Self::V) -> Self::V {
        let x = Self::max(x, Self::splat(-100.0));
        let clamped = Self::max(x, Self::splat(-87.0));
        let (n, power) = Self::round_exp2(Self::mul(clamped, Self::splat(std::f32::consts::LOG2_E)));
        // ln 2 in two parts, the first exact in few bits, so that the reduction is.
        let r = Self::fma(n, Self::splat(-0.693_359_4), clamped);
        let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = Self::fma(p, r, Self::splat(c));
        }
        Self::zero_below(x, -87.0, Self::mul(p, power))
    }

    /// 2^x for x <= 0, relative error below 2e-7; 0 below -100 (and for -inf); 1 at 0 exactly; NaN for NaN.
    #[inline(always)]
    #[allow(clippy::approx_constant)] // a coefficient of the fit, near ln 2 and not it
    fn exp2(x: Self::V) -> Self::V {
        // Numbers of this size are whole: adding it rounds.
        const WHOLE: f32 = 12_582_912.0;
        let shifted = Self::add(x, Self::splat(WHOLE));
        let r = Self::sub(x, Self::sub(shifted, Self::splat(WHOLE)));
        // Least relative error over [-1/2, 1/2] among polynomials of this degree that are 1 at 0.
        let mut p = Self::splat(1.326_472_7e-3);
        for c in [9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0] {
            p = Self::fma(p, r, Self::splat(c));
        }
        Self::zero_below(x, -100.0, Self::times_power(p, shifted))
    }

    /// Runs `kernel` in a function of its own, compiled for this instruction set.
    fn call<K: Kernel>(kernel: K) -> K::Output;

    /// 0 where x < limit, else `v`.
    fn zero_below(x: Self::V, limit: f32, v: Self::V) -> Self::V;
}

/// A computation generic over the instruction set.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self) -> Self::Output;
}

/// Runs `kernel` compiled for `isa`.
#[inline]
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        Isa::Portable => kernel.run::<Portable>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` other than Portable is only made by `Isa::available`, which saw the features.
        Isa::Avx2 => unsafe { x86::run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::run_avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::Avx512 => kernel.run::<Portable>(),
    }
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    const LANES: usize = 8;
    const SCALARS: usize = 6;
    type V = [f32; 8];

    #[inline(always)]
    fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(from: &[f32]) -> [f32; 8] {
        std::array::from_fn(|i| from[i])
    }
    #[inline(always)]
    fn store(v: [f32; 8], to: &mut [f32]) {
        to[..8].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].max(b[i]))
    }
    /// Rounded twice: without the instruction a true fma is a library call per element.
    #[inline(always)]
    fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn reduce_add(v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    fn sums(v: &[[f32; 8]]) -> [f32; 8] {
        std::array::from_fn(|i| Self::reduce_add(v[i]))
    }
    #[inline(always)]
    fn reduce_max(v: [f32; 8]) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn load_bf16(from: &[u16]) -> ([f32; 8], [f32; 8]) {
        let at = |i: usize| f32::from_bits(u32::from(from[i]) << 16);
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }
    #[inline(always)]
    fn widen_bf16(from: &[u16]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from_bits(u32::from(from[i]) << 16))
    }
    #[inline(always)]
    fn load_f16(from: &[u16]) -> ([f32; 8], [f32; 8]) {
        let at = |i: usize| half::f16::from_bits(from[i]).to_f32();
        (std::array::from_fn(at), std::array::from_fn(|i| at(i + 8)))
    }
    #[inline(always)]
    fn round_exp2(x: [f32; 8]) -> ([f32; 8], [f32; 8]) {
        let n: [f32; 8] = std::array::from_fn(|i| x[i].round_ties_even());
        (n, std::array::from_fn(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    fn times_power(p: [f32; 8], shifted: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from_bits(p[i].to_bits().wrapping_add(shifted[i].to_bits() << 23)))
    }
    #[inline(always)]
    fn join_codes<const HIGH: bool>(low: &[u8], codes: &[u8], bases: &[u8], to: &mut [u16]) {
        for (i, to) in to[..16].iter_mut().enumerate() {
            let (low, code) = (u16::from(low[i]), if HIGH { codes[i] >> 4 } else { codes[i] & 15 });
            let exponent = if code == 15 { 0 } else { bases[i].wrapping_sub(code) };
            *to = low << 8 & 0x8000 | u16::from(exponent) << 7 | low & 0x7f;
        }
    }
    #[inline(always)]
    fn prefetch(_from: *const u16) {}
    #[inline(never)]
    fn call<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
    #[inline(always)]
    fn zero_below(x: [f32; 8], limit: f32, v: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] < limit { 0.0 } else { v[i] })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, Simd};

    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }

    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }

    // Steps of `sums`, functions because a closure is not compiled for the instruction set of its caller.

    /// Per 128 bits, one sum of each of four vectors.
    #[inline(always)]
    fn four_256(v: &[__m256]) -> __m256 {
        // SAFETY: the features are there, see `dispatch`.
        unsafe {
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let (low, high) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
            _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
        }
    }

    /// Per 128 bits, one sum of each of four vectors.
    #[inline(always)]
    fn four_512(v: &[__m512]) -> __m512 {
        // SAFETY: the features are there, see `dispatch`.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        }
    }

    /// Even and odd quarters of both added: the order of the vectors is kept.
    #[inline(always)]
    fn quarters_512(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the features are there, see `dispatch`.
        unsafe { _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)) }
    }

    #[inline(always)]
    fn bytes_128(from: &[u8]) -> __m128i {
        // SAFETY: as above; `[..N]` checks the length.
        unsafe { _mm_loadu_si128(from[..16].as_ptr().cast()) }
    }

    #[inline(always)]
    fn bytes_256(from: &[u8]) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_loadu_si256(from[..32].as_ptr().cast()) }
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    // SAFETY (all blocks of both impls): the features are there, see `dispatch`; `[..N]` checks the length.
    #[allow(clippy::undocumented_unsafe_blocks)] // stated once, above, for forty one-line intrinsics
    impl Simd for Avx2 {
        const LANES: usize = 8;
        const SCALARS: usize = 6;
        type V = __m256;

        #[inline(always)]
        fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        fn load(from: &[f32]) -> __m256 {
            unsafe { _mm256_loadu_ps(from[..8].as_ptr()) }
        }
        #[inline(always)]
        fn store(v: __m256, to: &mut [f32]) {
            unsafe { _mm256_storeu_ps(to[..8].as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn reduce_add(v: __m256) -> f32 {
            unsafe {
                let h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
                let h = _mm_add_ps(h, _mm_movehl_ps(h, h));
                _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)))
            }
        }
        #[inline(always)]
        fn sums(v: &[__m256]) -> __m256 {
            unsafe {
                let (a, b) = (four_256(v), four_256(&v[4..]));
                _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31))
            }
        }
        #[inline(always)]
        fn reduce_max(v: __m256) -> f32 {
            unsafe {
                let h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
                let h = _mm_max_ps(h, _mm_movehl_ps(h, h));
                _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)))
            }
        }
        #[inline(always)]
        fn load_bf16(from: &[u16]) -> (__m256, __m256) {
            unsafe {
                let pairs = _mm256_loadu_si256(from[..16].as_ptr().cast());
                let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
                (_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)), _mm256_castsi256_ps(odd))
            }
        }
        #[inline(always)]
        fn widen_bf16(from: &[u16]) -> __m256 {
            unsafe {
                let words = _mm_loadu_si128(from[..8].as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16))
            }
        }
        #[inline(always)]
        fn load_f16(from: &[u16]) -> (__m256, __m256) {
            unsafe {
                let at = |i: usize| _mm256_cvtph_ps(_mm_loadu_si128(from[i..i + 8].as_ptr().cast()));
                (at(0), at(8))
            }
        }
        #[inline(always)]
        fn round_exp2(x: __m256) -> (__m256, __m256) {
            unsafe {
                let n = _mm256_cvtps_epi32(x);
                let power = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
                (_mm256_cvtepi32_ps(n), _mm256_castsi256_ps(power))
            }
        }
        #[inline(always)]
        fn times_power(p: __m256, shifted: __m256) -> __m256 {
            unsafe {
                let n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n))
            }
        }
        #[inline(always)]
        fn join_codes<const HIGH: bool>(low: &[u8], codes: &[u8], bases: &[u8], to: &mut [u16]) {
            unsafe {
                let (low, bases) = (bytes_128(low), bytes_128(bases));
                let codes = bytes_128(codes);
                let codes = if HIGH { _mm_srli_epi16(codes, 4) } else { codes };
                let codes = _mm_and_si128(codes, _mm_set1_epi8(15));
                let zero = _mm_cmpeq_epi8(codes, _mm_set1_epi8(15));
                let exponents = _mm_andnot_si128(zero, _mm_sub_epi8(bases, codes));
                let (low, exponents) = (_mm256_cvtepu8_epi16(low), _mm256_cvtepu8_epi16(exponents));
                let sign = _mm256_slli_epi16(_mm256_and_si256(low, _mm256_set1_epi16(0x80)), 8);
                let mantissa = _mm256_and_si256(low, _mm256_set1_epi16(0x7f));
                let v = _mm256_or_si256(_mm256_or_si256(sign, mantissa), _mm256_slli_epi16(exponents, 7));
                _mm256_storeu_si256(to[..16].as_mut_ptr().cast(), v);
            }
        }
        #[inline(never)]
        fn call<K: Kernel>(kernel: K) -> K::Output {
            unsafe { run_avx2(kernel) }
        }
        #[inline(always)]
        fn prefetch(from: *const u16) {
            unsafe { _mm_prefetch(from.cast(), _MM_HINT_T1) }
        }
        #[inline(always)]
        fn zero_below(x: __m256, limit: f32, v: __m256) -> __m256 {
            unsafe { _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_NLT_UQ), v) }
        }
    }

    #[allow(clippy::undocumented_unsafe_blocks)] // stated once, above
    impl Simd for Avx512 {
        const LANES: usize = 16;
        const SCALARS: usize = 8;
        type V = __m512;

        #[inline(always)]
        fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(from: &[f32]) -> __m512 {
            unsafe { _mm512_loadu_ps(from[..16].as_ptr()) }
        }
        #[inline(always)]
        fn store(v: __m512, to: &mut [f32]) {
            unsafe { _mm512_storeu_ps(to[..16].as_mut_ptr(), v) }
        }
        #[inline(always)]
        fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn reduce_add(v: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        fn sums(v: &[__m512]) -> __m512 {
            let low = quarters_512(four_512(v), four_512(&v[4..]));
            quarters_512(low, quarters_512(four_512(&v[8..]), four_512(&v[12..])))
        }
        #[inline(always)]
        fn reduce_max(v: __m512) -> f32 {
            unsafe { _mm512_reduce_max_ps(v) }
        }
        #[inline(always)]
        fn load_bf16(from: &[u16]) -> (__m512, __m512) {
            unsafe {
                let pairs = _mm512_loadu_si512(from[..32].as_ptr().cast());
                let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
                (_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(odd))
            }
        }
        #[inline(always)]
        fn widen_bf16(from: &[u16]) -> __m512 {
            unsafe {
                let words = _mm256_loadu_si256(from[..16].as_ptr().cast());
                _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16))
            }
        }
        #[inline(always)]
        fn load_f16(from: &[u16]) -> (__m512, __m512) {
            unsafe {
                let at = |i: usize| _mm512_cvtph_ps(_mm256_loadu_si256(from[i..i + 16].as_ptr().cast()));
                (at(0), at(16))
            }
        }
        #[inline(always)]
        fn round_exp2(x: __m512) -> (__m512, __m512) {
            unsafe {
                let n = _mm512_cvtps_epi32(x);
                let power = _mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23);
                (_mm512_cvtepi32_ps(n), _mm512_castsi512_ps(power))
            }
        }
        #[inline(always)]
        fn times_power(p: __m512, shifted: __m512) -> __m512 {
            unsafe {
                let n = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n))
            }
        }
        #[inline(always)]
        fn join_codes<const HIGH: bool>(low: &[u8], codes: &[u8], bases: &[u8], to: &mut [u16]) {
            unsafe {
                let (low, bases) = (bytes_256(low), bytes_256(bases));
                let codes = bytes_256(codes);
                let codes = if HIGH { _mm256_srli_epi16(codes, 4) } else { codes };
                let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
                let zero = _mm256_cmpeq_epi8(codes, _mm256_set1_epi8(15));
                let exponents = _mm256_andnot_si256(zero, _mm256_sub_epi8(bases, codes));
                let (low, exponents) = (_mm512_cvtepu8_epi16(low), _mm512_cvtepu8_epi16(exponents));
                let sign = _mm512_slli_epi16(_mm512_and_si512(low, _mm512_set1_epi16(0x80)), 8);
                let mantissa = _mm512_and_si512(low, _mm512_set1_epi16(0x7f));
                let v = _mm512_or_si512(_mm512_or_si512(sign, mantissa), _mm512_slli_epi16(exponents, 7));
                _mm512_storeu_si512(to[..32].as_mut_ptr().cast(), v);
            }
        }
        #[inline(never)]
        fn call<K: Kernel>(kernel: K) -> K::Output {
            unsafe { run_avx512(kernel) }
        }
        #[inline(always)]
        fn prefetch(from: *const u16) {
            unsafe { _mm_prefetch(from.cast(), _MM_HINT_T1) }
        }
        #[inline(always)]
        fn zero_below(x: __m512, limit: f32, v: __m512) -> __m512 {
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), v) }
        }
    }
}
