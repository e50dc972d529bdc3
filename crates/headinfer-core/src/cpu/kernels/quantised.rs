//! Lossy coding of bf16 rows in 8 or 4 bits a value.
//!
//! A unit is [`UNIT`] rows of one head, and a half of it its keys or its values, n = 256 · d values of head dimension d.
//! Values are coded in blocks that lie alike, between the least and the largest of each. Keys have a few columns far
//! larger than the others, values have not: a block of keys is 64 rows of one column, one of values 64 columns (the last
//! fewer) of one row, as in [KIVI](https://arxiv.org/abs/2402.02750). Coded, little-endian, a half is
//!
//! | bytes | |
//! |---|---|
//! | n, or n / 2 | codes, row-major: a byte each, or d / 2 bytes a row of which byte j has column j in its low nibble, column j + d / 2 in its high one |
//! | 16 d of keys | per 64 rows: the least of each column, then the largest of each, bf16 |
//! | 1024 ⌈d / 64⌉ of values | per row: least and largest of each block, bf16 |
//!
//! and zeros up to a multiple of 64, keys up to the bytes of values. With L the largest code, 255 or 15, and every
//! operation rounded to nearest even in f32, x has the code (x - least) · (L / (largest - least)), rounded, and code c is
//! the value least + c · ((largest - least) / L), rounded to bf16. A block whose bounds are less than 2^-100 apart has codes
//! of 0. Coding again what was decoded gives the same codes.
//!
//! A NaN, an infinity or a magnitude of 2^126 or more is never hidden: bounds of its block are NaN, and so is what all
//! of the block decodes to, and with it every answer that sees any of it.
//!
//! Knows nothing of where halves lie.

use super::Isa;
use super::attention::HEAD_DIM_MAX;
use super::packed::UNIT;
use super::simd::{Kernel, Simd, dispatch};

/// Rows of a block of keys, and columns of one of values.
const BLOCK: usize = 64;
/// Bounds of a block that holds what has no code.
const NAN: u16 = 0x7fc0;
/// 2^126 in bf16.
const TOO_LARGE: i16 = 0x7e80;
/// Bounds less apart than this are the same.
const APART_MIN: f32 = f32::from_bits((127 - 100) << 23);
/// Whole numbers up to 2^22 added to it end its significand.
const WHOLE: f32 = 12_582_912.0;
/// Bytes of a cache line.
const LINE: usize = 64;

/// How many bits a value has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantised {
    /// Eight.
    Int8,
    /// Four.
    Int4,
}

/// Which half of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Keys: the first one.
    Keys,
    /// Values.
    Values,
}

impl Quantised {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Int8, Self::Int4];

    /// Bytes of a coded half of heads of `head_dim` elements, an even number of at most 256; a multiple of 64.
    pub const fn half_bytes(self, head_dim: usize) -> usize {
        (UNIT * self.code_bytes(head_dim) + 4 * UNIT * head_dim.div_ceil(BLOCK)).next_multiple_of(64)
    }

    /// Bytes of the codes of a row.
    const fn code_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Int8 => head_dim,
            Self::Int4 => head_dim / 2,
        }
    }

    /// The largest code.
    const fn levels(self) -> f32 {
        match self {
            Self::Int8 => 255.0,
            Self::Int4 => 15.0,
        }
    }
}

/// Codes `rows`, bf16 bits `[UNIT, head_dim]`, into the [`Quantised::half_bytes`] of `to`. The bytes are the same on every
/// instruction set and on a GPU.
///
/// # Panics
/// When a length is not that of `head_dim`.
pub fn quantise_half(isa: Isa, format: Quantised, half: Half, head_dim: usize, rows: &[u16], to: &mut [u8]) {
    check(format, head_dim, rows.len(), to.len());
    dispatch(isa, Quantise { format, half, d: head_dim, rows, to });
}

/// What attention sees of the rows that were coded into `from`, as bf16 bits `[UNIT, head_dim]`: the same bits on every
/// instruction set and on a GPU.
///
/// # Panics
/// As [`quantise_half`].
pub fn dequantise_half(
    isa: Isa,
    format: Quantised,
    half: Half,
    head_dim: usize,
    from: &[u8],
    rows: &mut [u16],
) {
    check(format, head_dim, rows.len(), from.len());
    dispatch(isa, Dequantise { format, half, d: head_dim, from, rows, ahead: &[] });
}

/// Consecutive coded units of one head.
#[derive(Clone, Copy, Debug)]
pub struct QuantisedRows<'a> {
    /// How they are coded.
    pub format: Quantised,
    /// `[unit][K | V][half_bytes]`.
    pub units: &'a [u8],
    /// Position of the first row, a multiple of [`UNIT`].
    pub start: u64,
}

impl<'a> QuantisedRows<'a> {
    /// Rows of heads of `head_dim` elements.
    pub fn rows(&self, head_dim: usize) -> usize {
        self.units.len() / (2 * self.format.half_bytes(head_dim)) * UNIT
    }

    /// K and V from unit `first` on.
    pub(super) fn from(&self, first: usize, d: usize) -> &'a [u8] {
        &self.units[2 * first * self.format.half_bytes(d)..]
    }

    /// What decodes a half of `unit` to `rows`, and asks for `ahead` meanwhile.
    pub(super) fn dequantise<'b>(
        &self,
        d: usize,
        (unit, half): (usize, Half),
        rows: &'b mut [u16],
        ahead: &'b [u8],
    ) -> Dequantise<'b>
    where
        'a: 'b,
    {
        let bytes = self.format.half_bytes(d);
        let from = &self.from(unit, d)[half as usize * bytes..][..bytes];
        check(self.format, d, rows.len(), from.len());
        Dequantise { format: self.format, half, d, from, rows, ahead }
    }
}

fn check(format: Quantised, d: usize, values: usize, bytes: usize) {
    assert!(d.is_multiple_of(2) && d <= HEAD_DIM_MAX, "a head of {d} elements");
    assert_eq!((values, bytes), (UNIT * d, format.half_bytes(d)), "values and bytes of a half");
}

/// For each column of a row: what its codes are reckoned by.
struct Columns {
    least: [f32; HEAD_DIM_MAX],
    /// Codes per unit of value to code, or value of a code to decode.
    scale: [f32; HEAD_DIM_MAX],
    /// 0 where all codes are 0.
    mask: [u8; HEAD_DIM_MAX],
}

impl Columns {
    #[inline(always)]
    fn new() -> Self {
        Self { least: [0.0; HEAD_DIM_MAX], scale: [0.0; HEAD_DIM_MAX], mask: [0; HEAD_DIM_MAX] }
    }

    /// To code between the bounds that `ordered` numbers stand for; returns their bf16 bits.
    #[inline(always)]
    fn code(&mut self, at: usize, (least, largest): (i16, i16), levels: f32) -> (u16, u16) {
        if largest >= TOO_LARGE || least < -TOO_LARGE {
            self.mask[at] = 0;
            return (NAN, NAN);
        }
        let bounds = (ordered(least as u16) as u16, ordered(largest as u16) as u16);
        self.least[at] = widen(bounds.0);
        let apart = widen(bounds.1) - widen(bounds.0);
        self.scale[at] = levels / apart;
        self.mask[at] = if apart < APART_MIN { 0 } else { 0xff };
        bounds
    }

    /// To decode what has these bounds.
    #[inline(always)]
    fn decode(&mut self, at: usize, (least, largest): (u16, u16), levels: f32) {
        self.least[at] = widen(least);
        self.scale[at] = (widen(largest) - widen(least)) / levels;
    }

    /// Column `from` for all of `to`, too.
    #[inline(always)]
    fn repeat(&mut self, from: usize, to: std::ops::Range<usize>) {
        let (least, scale, mask) = (self.least[from], self.scale[from], self.mask[from]);
        self.least[to.clone()].fill(least);
        self.scale[to.clone()].fill(scale);
        self.mask[to].fill(mask);
    }
}

/// A number that is ordered as the values of bf16 bits are (-0 before 0); of that number, the bits.
#[inline(always)]
fn ordered(bits: u16) -> i16 {
    bits as i16 ^ (bits as i16 >> 15 & 0x7fff)
}

#[inline(always)]
fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// To nearest even; of NaN only quiet ones.
#[inline(always)]
fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

struct Quantise<'a> {
    format: Quantised,
    half: Half,
    d: usize,
    rows: &'a [u16],
    to: &'a mut [u8],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, format) = (self.d, self.format);
        let (codes, bounds) = self.to.split_at_mut(UNIT * format.code_bytes(d));
        let mut columns = Columns::new();
        bounds.fill(0);
        match self.half {
            Half::Keys => {
                let blocks = self.rows.chunks_exact(BLOCK * d);
                let blocks = blocks.zip(codes.chunks_exact_mut(BLOCK * format.code_bytes(d)));
                for ((rows, codes), bounds) in blocks.zip(bounds.chunks_exact_mut(4 * d)) {
                    let (least, largest) = bounds.split_at_mut(2 * d);
                    for (column, found) in bounds_of_columns(rows, d).into_iter().enumerate().take(d) {
                        let (low, high) = columns.code(column, found, format.levels());
                        least[2 * column..][..2].copy_from_slice(&low.to_le_bytes());
                        largest[2 * column..][..2].copy_from_slice(&high.to_le_bytes());
                    }
                    let rows = rows.chunks_exact(d).zip(codes.chunks_exact_mut(format.code_bytes(d)));
                    rows.for_each(|(values, codes)| code_row(format, &columns, values, codes));
                }
            }
            Half::Values => {
                let rows = self.rows.chunks_exact(d).zip(codes.chunks_exact_mut(format.code_bytes(d)));
                for ((values, codes), bounds) in rows.zip(bounds.chunks_exact_mut(4 * d.div_ceil(BLOCK))) {
                    for (block, bounds) in bounds.chunks_exact_mut(4).enumerate() {
                        let within = block * BLOCK..d.min((block + 1) * BLOCK);
                        let found = bounds_of(&values[within.clone()]);
                        let (low, high) = columns.code(within.start, found, format.levels());
                        columns.repeat(within.start, within);
                        bounds[..2].copy_from_slice(&low.to_le_bytes());
                        bounds[2..].copy_from_slice(&high.to_le_bytes());
                    }
                    code_row(format, &columns, values, codes);
                }
            }
        }
    }
}

/// Least and largest of each column, as `ordered` numbers.
#[inline(always)]
fn bounds_of_columns(rows: &[u16], d: usize) -> [(i16, i16); HEAD_DIM_MAX] {
    let (mut least, mut largest) = ([i16::MAX; HEAD_DIM_MAX], [i16::MIN; HEAD_DIM_MAX]);
    for row in rows.chunks_exact(d) {
        for ((least, largest), value) in least.iter_mut().zip(&mut largest).zip(row) {
            let value = ordered(*value);
            (*least, *largest) = ((*least).min(value), (*largest).max(value));
        }
    }
    std::array::from_fn(|i| (least[i], largest[i]))
}

/// Least and largest, as `ordered` numbers.
#[inline(always)]
fn bounds_of(values: &[u16]) -> (i16, i16) {
    values.iter().fold((i16::MAX, i16::MIN), |(least, largest), value| {
        let value = ordered(*value);
        (least.min(value), largest.max(value))
    })
}

#[inline(always)]
fn code_row(format: Quantised, columns: &Columns, values: &[u16], codes: &mut [u8]) {
    let code = |value: u16, least: f32, scale: f32, mask: u8| {
        ((widen(value) - least) * scale + WHOLE).to_bits() as u8 & mask
    };
    // Slices of one length: no index is checked, so whole vectors are computed.
    let n = codes.len();
    let of =
        |from: usize| (&columns.least[from..][..n], &columns.scale[from..][..n], &columns.mask[from..][..n]);
    let ((least, scale, mask), first) = (of(0), &values[..n]);
    match format {
        Quantised::Int8 => {
            for i in 0..n {
                codes[i] = code(first[i], least[i], scale[i], mask[i]);
            }
        }
        Quantised::Int4 => {
            let ((least_2, scale_2, mask_2), second) = (of(n), &values[n..][..n]);
            for i in 0..n {
                let low = code(first[i], least[i], scale[i], mask[i]);
                let high = code(second[i], least_2[i], scale_2[i], mask_2[i]);
                codes[i] = low & 15 | high << 4;
            }
        }
    }
}

/// Decodes a half.
pub(super) struct Dequantise<'a> {
    format: Quantised,
    half: Half,
    d: usize,
    from: &'a [u8],
    rows: &'a mut [u16],
    /// What is asked for from memory meanwhile.
    ahead: &'a [u8],
}

impl Kernel for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, format) = (self.d, self.format);
        let (codes, bounds) = self.from.split_at(UNIT * format.code_bytes(d));
        let coded = codes.chunks_exact(format.code_bytes(d)).enumerate();
        let step = self.ahead.len().div_ceil(UNIT);
        let blocks = d.div_ceil(BLOCK);
        let bound = |at: usize| u16::from_le_bytes([bounds[2 * at], bounds[2 * at + 1]]);
        let mut columns = Columns::new();
        for (values, (row, codes)) in self.rows.chunks_exact_mut(d).zip(coded) {
            for at in (row * step..self.ahead.len().min((row + 1) * step)).step_by(LINE) {
                S::prefetch(self.ahead[at..].as_ptr().cast());
            }
            match self.half {
                Half::Keys if row % BLOCK == 0 => {
                    let first = row / BLOCK * 2 * d;
                    for column in 0..d {
                        let found = (bound(first + column), bound(first + d + column));
                        columns.decode(column, found, format.levels());
                    }
                }
                Half::Keys => {}
                Half::Values => {
                    for block in 0..blocks {
                        let (at, within) =
                            (2 * (row * blocks + block), block * BLOCK..d.min((block + 1) * BLOCK));
                        columns.decode(within.start, (bound(at), bound(at + 1)), format.levels());
                        columns.repeat(within.start, within);
                    }
                }
            }
            decode_row(format, &columns, codes, values);
        }
    }
}

#[inline(always)]
fn decode_row(format: Quantised, columns: &Columns, codes: &[u8], values: &mut [u16]) {
    let value = |code: u8, least: f32, scale: f32| narrow(f32::from(code) * scale + least);
    let n = codes.len();
    let of = |from: usize| (&columns.least[from..][..n], &columns.scale[from..][..n]);
    let (first, second) = values.split_at_mut(n);
    let (least, scale) = of(0);
    match format {
        Quantised::Int8 => {
            for i in 0..n {
                first[i] = value(codes[i], least[i], scale[i]);
            }
        }
        Quantised::Int4 => {
            let ((least_2, scale_2), second) = (of(n), &mut second[..n]);
            for i in 0..n {
                first[i] = value(codes[i] & 15, least[i], scale[i]);
                second[i] = value(codes[i] >> 4, least_2[i], scale_2[i]);
            }
        }
    }
}
