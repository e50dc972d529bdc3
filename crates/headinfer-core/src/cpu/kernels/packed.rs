//! Exact packing of bf16 rows: the exponents of a column of keys or values lie close together.
//!
//! A unit is [`UNIT`] rows of one head, and a half of it its keys or its values: n = 256 · d values of head dimension
//! d. Packed, little-endian, it is
//!
//! | bytes | |
//! |---|---|
//! | n | low bytes, row-major: sign << 7 \| mantissa |
//! | n / 2 | exponent codes, d / 2 bytes a row: byte j has column j in its low nibble, column j + d / 2 in its high one |
//! | d | base of each column: its largest exponent |
//! | 16 | escapes (u32), plane (u32: 0 for none, else number + 1), zeros |
//! | 6 d | escapes, ascending: index << 16 \| value (u32), index = row · d + column; then zeros |
//!
//! and zeros up to a multiple of 64. Code 0..=13 is the base less the exponent, 15 an exponent of 0, 14 any other: its
//! value is among the escapes. A half with more escapes than room has the low nibble of each exponent for its code, and
//! the high one in a plane of n / 2 bytes that lies elsewhere; bases and escapes are zeros then.
//!
//! Knows nothing of where halves and planes lie.

use super::Isa;
use super::attention::HEAD_DIM_MAX;
use super::simd::{Kernel, Simd, dispatch};

/// Rows of a unit.
pub const UNIT: usize = 256;
/// Code of a value that is among the escapes.
const ESCAPED: u8 = 14;
/// Code of an exponent of 0: zeros and subnormals.
const ZERO: u8 = 15;
const HEADER: usize = 16;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes of a packed half of heads of `head_dim` elements, an even number of at most 256.
pub const fn half_bytes(head_dim: usize) -> usize {
    (UNIT * head_dim / 2 * 3 + head_dim + HEADER + 4 * escapes_max(head_dim)).next_multiple_of(64)
}

/// Bytes of the plane of a half that does not fit without.
pub const fn plane_bytes(head_dim: usize) -> usize {
    UNIT * head_dim / 2
}

/// Escapes that a half has room for.
pub const fn escapes_max(head_dim: usize) -> usize {
    head_dim * 3 / 2
}

/// Packs `rows`, bf16 bits `[UNIT, head_dim]`, into the [`half_bytes`] of `to`. False when they have more escapes than
/// there is room for: `to` holds nothing of use then, and [`pack_half_plane`] is due.
///
/// # Panics
/// When a length is not that of `head_dim`.
pub fn pack_half(isa: Isa, head_dim: usize, rows: &[u16], to: &mut [u8]) -> bool {
    check(head_dim, rows.len(), to.len());
    dispatch(isa, Pack { d: head_dim, rows, to })
}

/// Packs any `rows` into `to` and the [`plane_bytes`] of `plane`, of which `to` notes the number.
///
/// # Panics
/// As [`pack_half`].
pub fn pack_half_plane(
    isa: Isa,
    head_dim: usize,
    rows: &[u16],
    to: &mut [u8],
    plane: &mut [u8],
    number: u32,
) {
    check(head_dim, rows.len(), to.len());
    assert_eq!(plane.len(), plane_bytes(head_dim), "bytes of a plane");
    dispatch(isa, PackPlane { d: head_dim, rows, to, plane, number });
}

/// The number of the plane that belongs to a packed half.
pub fn plane_of(half: &[u8], head_dim: usize) -> Option<u32> {
    Parts::of(half, head_dim).number(4).checked_sub(1)
}

/// The rows that were packed into `half`, with its plane if [`plane_of`] names one.
///
/// # Panics
/// As [`pack_half`]; when the plane that the half names is not given, or it is no packed half.
pub fn unpack_half(isa: Isa, head_dim: usize, half: &[u8], plane: Option<&[u8]>, rows: &mut [u16]) {
    check(head_dim, rows.len(), half.len());
    dispatch(isa, Unpack { d: head_dim, half, plane, rows, ahead: &[] });
}

/// Consecutive packed units of one head, and the planes of all heads.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// `[unit][K | V][half_bytes]`.
    pub units: &'a [u8],
    /// `[unit][plane][plane_bytes]`, equally many of each unit; may be empty when no half names one.
    pub planes: &'a [u8],
    /// Position of the first row, a multiple of [`UNIT`].
    pub start: u64,
}

impl<'a> PackedRows<'a> {
    /// Rows of heads of `head_dim` elements.
    pub fn rows(&self, head_dim: usize) -> usize {
        self.units.len() / (2 * half_bytes(head_dim)) * UNIT
    }

    /// K and V from unit `first` on.
    pub(super) fn from(&self, first: usize, d: usize) -> &'a [u8] {
        &self.units[2 * first * half_bytes(d)..]
    }

    /// What unpacks K (0) or V (1) of `unit` to `rows`, and asks for `ahead` meanwhile.
    pub(super) fn unpack<'b>(
        &self,
        d: usize,
        (unit, which): (usize, usize),
        rows: &'b mut [u16],
        ahead: &'b [u8],
    ) -> Unpack<'b>
    where
        'a: 'b,
    {
        let half = &self.from(unit, d)[which * half_bytes(d)..][..half_bytes(d)];
        check(d, rows.len(), half.len());
        let each = self.planes.len() / self.rows(d).max(UNIT) * UNIT;
        let plane = plane_of(half, d)
            .map(|number| &self.planes[unit * each + number as usize * plane_bytes(d)..][..plane_bytes(d)]);
        Unpack { d, half, plane, rows, ahead }
    }
}

fn check(d: usize, values: usize, bytes: usize) {
    assert!(d.is_multiple_of(2) && d <= HEAD_DIM_MAX, "a head of {d} elements");
    assert_eq!((values, bytes), (UNIT * d, half_bytes(d)), "values and bytes of a half");
}

/// A packed half taken apart.
struct Parts<'a> {
    low: &'a [u8],
    codes: &'a [u8],
    bases: &'a [u8],
    header: &'a [u8],
    escapes: &'a [u8],
}

impl<'a> Parts<'a> {
    #[inline(always)]
    fn of(half: &'a [u8], d: usize) -> Self {
        let (low, rest) = half.split_at(UNIT * d);
        let (codes, rest) = rest.split_at(UNIT * d / 2);
        let (bases, rest) = rest.split_at(d);
        let (header, escapes) = rest.split_at(HEADER);
        Self { low, codes, bases, header, escapes }
    }

    #[inline(always)]
    fn number(&self, at: usize) -> u32 {
        number(&self.header[at..])
    }
}

#[inline(always)]
fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A half to be filled: low bytes, codes, and the rest.
#[inline(always)]
fn parts_mut(half: &mut [u8], d: usize) -> (&mut [u8], &mut [u8], &mut [u8]) {
    let (low, rest) = half.split_at_mut(UNIT * d);
    let (codes, rest) = rest.split_at_mut(UNIT * d / 2);
    (low, codes, rest)
}

struct Pack<'a> {
    d: usize,
    rows: &'a [u16],
    to: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self) -> bool {
        let d = self.d;
        let (low, codes, rest) = parts_mut(self.to, d);
        let (bases, rest) = rest.split_at_mut(d);
        let (header, escapes) = rest.split_at_mut(HEADER);
        bases_of(self.rows, bases);
        let mut count = 0;
        let parts = low.chunks_exact_mut(d).zip(codes.chunks_exact_mut(d / 2));
        for ((row, values), (low, codes)) in self.rows.chunks_exact(d).enumerate().zip(parts) {
            if !code_row(values, bases, low, codes) {
                continue;
            }
            let nibbles = codes.iter().map(|c| c & 15).chain(codes.iter().map(|c| c >> 4));
            for (column, _) in nibbles.enumerate().filter(|(_, code)| *code == ESCAPED) {
                if count == escapes_max(d) {
                    return false;
                }
                let index = (row * d + column) as u32;
                let escape = index << 16 | u32::from(values[column]);
                escapes[4 * count..][..4].copy_from_slice(&escape.to_le_bytes());
                count += 1;
            }
        }
        header.fill(0);
        header[..4].copy_from_slice(&(count as u32).to_le_bytes());
        escapes[4 * count..].fill(0);
        true
    }
}

/// The largest exponent of each column.
#[inline(always)]
fn bases_of(rows: &[u16], bases: &mut [u8]) {
    let d = bases.len();
    let mut largest = [0u16; HEAD_DIM_MAX];
    for row in rows.chunks_exact(d) {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = (*largest).max(value & 0x7fff);
        }
    }
    bases.iter_mut().zip(&largest).for_each(|(base, largest)| *base = exponent(*largest));
}

#[inline(always)]
fn exponent(value: u16) -> u8 {
    (value >> 7) as u8
}

/// Sign and mantissa.
#[inline(always)]
fn low_byte(value: u16) -> u8 {
    (value >> 8) as u8 & 0x80 | value as u8 & 0x7f
}

#[inline(always)]
fn code(value: u16, base: u8) -> u8 {
    let exponent = exponent(value);
    let below = base.wrapping_sub(exponent).min(ESCAPED);
    if exponent == 0 { ZERO } else { below }
}

/// Low bytes and codes of a row; whether any value escaped.
#[inline(always)]
fn code_row(values: &[u16], bases: &[u8], low: &mut [u8], codes: &mut [u8]) -> bool {
    let half = codes.len();
    let (first, second) = values.split_at(half);
    let (first_bases, second_bases) = bases.split_at(half);
    let (second_bases, second) = (&second_bases[..half], &second[..half]);
    low.iter_mut().zip(values).for_each(|(low, value)| *low = low_byte(*value));
    let mut escaped = false;
    for j in 0..half {
        let (a, b) = (code(first[j], first_bases[j]), code(second[j], second_bases[j]));
        codes[j] = a | b << 4;
        escaped |= a == ESCAPED || b == ESCAPED;
    }
    escaped
}

struct PackPlane<'a> {
    d: usize,
    rows: &'a [u16],
    to: &'a mut [u8],
    plane: &'a mut [u8],
    number: u32,
}

impl Kernel for PackPlane<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, half) = (self.d, self.d / 2);
        let (low, codes, rest) = parts_mut(self.to, d);
        low.iter_mut().zip(self.rows).for_each(|(low, value)| *low = low_byte(*value));
        let nibbles = codes.chunks_exact_mut(half).zip(self.plane.chunks_exact_mut(half));
        for (values, (codes, plane)) in self.rows.chunks_exact(d).zip(nibbles) {
            let (first, second) = values.split_at(half);
            for j in 0..half {
                let (a, b) = (exponent(first[j]), exponent(second[j]));
                codes[j] = a & 15 | b << 4;
                plane[j] = a >> 4 | b & 0xf0;
            }
        }
        rest.fill(0);
        rest[d + 4..][..4].copy_from_slice(&(self.number + 1).to_le_bytes());
    }
}

/// Unpacks a half.
pub(super) struct Unpack<'a> {
    d: usize,
    half: &'a [u8],
    plane: Option<&'a [u8]>,
    rows: &'a mut [u16],
    /// What is asked for from memory meanwhile.
    ahead: &'a [u8],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, half) = (self.d, self.d / 2);
        let parts = Parts::of(self.half, d);
        let coded = parts.low.chunks_exact(d).zip(parts.codes.chunks_exact(half));
        let coded = self.rows.chunks_exact_mut(d).zip(coded);
        if parts.number(4) != 0 {
            let plane = self.plane.expect("the half names a plane");
            for ((values, (low, codes)), plane) in coded.zip(plane.chunks_exact(half)) {
                let (first, second) = values.split_at_mut(half);
                for j in 0..half {
                    first[j] = value(low[j], codes[j] & 15 | plane[j] << 4);
                    second[j] = value(low[half + j], codes[j] >> 4 | plane[j] & 0xf0);
                }
            }
            return;
        }
        let step = self.ahead.len().div_ceil(UNIT);
        for (row, (values, (low, codes))) in coded.enumerate() {
            for at in (row * step..self.ahead.len().min((row + 1) * step)).step_by(LINE) {
                S::prefetch(self.ahead[at..].as_ptr().cast());
            }
            decode_row::<S>(values, parts.bases, low, codes);
        }
        let count = parts.number(0) as usize;
        assert!(count <= escapes_max(d), "{count} escapes");
        for escape in parts.escapes[..4 * count].chunks_exact(4) {
            let escape = number(escape);
            self.rows[(escape >> 16) as usize] = escape as u16;
        }
    }
}

/// A row, but for values that escaped.
#[inline(always)]
fn decode_row<S: Simd>(values: &mut [u16], bases: &[u8], low: &[u8], codes: &[u8]) {
    let half = codes.len();
    let (first, second) = values.split_at_mut(half);
    join::<S, false>(&low[..half], codes, &bases[..half], first);
    join::<S, true>(&low[half..], codes, &bases[half..], second);
}

#[inline(always)]
fn join<S: Simd, const HIGH: bool>(low: &[u8], codes: &[u8], bases: &[u8], to: &mut [u16]) {
    let (half, step) = (codes.len(), 2 * S::LANES);
    if half < step {
        for (i, to) in to.iter_mut().enumerate() {
            let code = if HIGH { codes[i] >> 4 } else { codes[i] & 15 };
            *to = value(low[i], if code == ZERO { 0 } else { bases[i].wrapping_sub(code) });
        }
        return;
    }
    // The last vector ends with the half, and may begin within the one before.
    for at in (0..half).step_by(step).map(|at| at.min(half - step)) {
        S::join_codes::<HIGH>(&low[at..], &codes[at..], &bases[at..], &mut to[at..]);
    }
}

#[inline(always)]
fn value(low: u8, exponent: u8) -> u16 {
    let low = u16::from(low);
    low << 8 & 0x8000 | u16::from(exponent) << 7 | low & 0x7f
}
