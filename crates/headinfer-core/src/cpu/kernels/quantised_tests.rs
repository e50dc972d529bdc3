//! What is quantised comes back as near as the format says, and the same on every instruction set.

use super::coded_tests::{Random, attended};
use super::packed::UNIT;
use super::quantised::*;
use super::*;

const DIMS: [usize; 7] = [8, 16, 64, 80, 96, 128, 256];

impl Random {
    /// Rows whose columns have a scale and an offset each.
    fn rows(&mut self, d: usize) -> Vec<u16> {
        let columns: Vec<(f32, f32)> = (0..d)
            .map(|_| ((self.normal() * 3.0).exp2(), self.normal() * [0.0, 1.0, 100.0][self.below(3)]))
            .collect();
        let value = |random: &mut Self, i: usize| {
            let (scale, offset) = columns[i % d];
            half::bf16::from_f32(random.normal() * scale + offset).to_bits()
        };
        (0..UNIT * d).map(|i| value(self, i)).collect()
    }
}

fn widen(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}

/// Codes and decodes on every instruction set, with the same bytes and bits on all; those.
fn coded(format: Quantised, half: Half, d: usize, rows: &[u16]) -> (Vec<u8>, Vec<u16>) {
    let mut first = None;
    for isa in Isa::available() {
        let (mut to, mut back) = (vec![0xa5; format.half_bytes(d)], vec![0xa5a5; rows.len()]);
        quantise_half(isa, format, half, d, rows, &mut to);
        dequantise_half(isa, format, half, d, &to, &mut back);
        let (bytes, values) = first.get_or_insert_with(|| (to.clone(), back.clone()));
        assert!(*bytes == to && *values == back, "{isa:?} {format:?} {half:?} {d}");
    }
    first.unwrap()
}

/// Indices of the values of each block.
fn blocks(half: Half, d: usize) -> Vec<Vec<usize>> {
    match half {
        Half::Keys => (0..UNIT / 64 * d)
            .map(|block| (0..64).map(|row| (block / d * 64 + row) * d + block % d).collect())
            .collect(),
        Half::Values => (0..UNIT)
            .flat_map(|row| {
                (0..d).step_by(64).map(move |at| (row * d + at..row * d + d.min(at + 64)).collect())
            })
            .collect(),
    }
}

fn every(mut check: impl FnMut(Quantised, Half, usize)) {
    for d in DIMS {
        for format in Quantised::ALL {
            for half in [Half::Keys, Half::Values] {
                check(format, half, d);
            }
        }
    }
}

#[test]
fn a_value_comes_back_within_half_a_step_of_its_block() {
    let mut random = Random(1);
    every(|format, half, d| {
        let rows = random.rows(d);
        let (_, back) = coded(format, half, d, &rows);
        let levels = if format == Quantised::Int8 { 255.0 } else { 15.0 };
        for block in blocks(half, d) {
            let of = |rows: &[u16]| -> Vec<f32> { block.iter().map(|i| widen(rows[*i])).collect() };
            let (before, after) = (of(&rows), of(&back));
            let least = before.iter().copied().fold(f32::INFINITY, f32::min);
            let largest = before.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for (before, after) in before.iter().zip(&after) {
                // Half a step, and the rounding to bf16.
                let most = (largest - least) / levels * 0.501 + after.abs() / 256.0;
                assert!((before - after).abs() <= most, "{format:?} {half:?} {d}: {before} {after}");
            }
        }
    });
}

#[test]
fn what_was_decoded_has_the_same_codes() {
    let mut random = Random(2);
    every(|format, half, d| {
        for kind in 0..4 {
            let mut rows = random.rows(d);
            match kind {
                0 => {}
                1 => rows.iter_mut().for_each(|x| *x = 0x3f80 | *x & 0x8003),
                2 => rows.iter_mut().for_each(|x| *x &= 0x3fff),
                _ => rows.iter_mut().for_each(|x| *x = (*x & 0x3fff).max(0x3000)),
            }
            let codes = format.half_bytes(d) - 1024 * d.div_ceil(64);
            let codes = codes.min(UNIT * if format == Quantised::Int8 { d } else { d / 2 });
            let (first, back) = coded(format, half, d, &rows);
            let (again, _) = coded(format, half, d, &back);
            let stray = first[..codes].iter().zip(&again).position(|(a, b)| a != b);
            assert!(stray.is_none(), "{format:?} {half:?} {d} kind {kind}: byte {stray:?}");
        }
    });
}

#[test]
fn few_different_values_and_zeros_are_restored() {
    every(|format, half, d| {
        for values in [[0u16, 0], [0x3f80, 0x3f80], [0xc2f7, 0x3c01], [0, 1], [0x8001, 0x0040]] {
            let rows: Vec<u16> = (0..UNIT * d).map(|i| values[i / 7 % 2]).collect();
            let (_, back) = coded(format, half, d, &rows);
            // Subnormals next to zero are the least of their block.
            let tiny = values.iter().all(|x| x & 0x7fff < 0x80);
            for (before, after) in rows.iter().zip(&back) {
                let right = before == after || tiny && (widen(*before) - widen(*after)).abs() < 1e-37;
                assert!(right, "{format:?} {half:?} {d} {values:x?}: {before:x} {after:x}");
            }
        }
    });
}

#[test]
fn what_has_no_code_makes_its_block_nan_and_no_other() {
    let mut random = Random(3);
    every(|format, half, d| {
        for bad in [0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7f81, 0x7e80, 0xfe80] {
            let mut rows = random.rows(d);
            let (_, sound) = coded(format, half, d, &rows);
            let at = random.below((UNIT * d) as u64);
            rows[at] = bad;
            let (_, back) = coded(format, half, d, &rows);
            for block in blocks(half, d) {
                let hit = block.contains(&at);
                for i in block {
                    let want = if hit { 0x7fc0 } else { sound[i] };
                    assert_eq!(back[i], want, "{format:?} {half:?} {d} {bad:x} at {at}: {i}");
                }
            }
            // The largest that has a code.
            rows[at] = bad & 0x8000 | 0x7e7f;
            let (_, back) = coded(format, half, d, &rows);
            assert!(back.iter().all(|x| widen(*x).is_finite()), "{format:?} {half:?} {d}");
            assert_eq!(back[at], rows[at], "{format:?} {half:?} {d}");
        }
    });
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let d = 4;
    // Columns 0.., 8.., 16.., 24.. of which the last row of the first block has 15 steps more.
    let rows: Vec<f32> = (0..UNIT * d)
        .map(|i| (i % d * 8) as f32 + if i / d == 63 { 15.0 } else { (i / d % 5) as f32 })
        .collect();
    let rows: Vec<u16> = rows.into_iter().map(|x| half::bf16::from_f32(x).to_bits()).collect();
    let (half, _) = coded(Quantised::Int4, Half::Keys, d, &rows);
    assert_eq!(half.len(), 1536);
    assert_eq!(half[..10], [0x00, 0x00, 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0x44, 0x44]);
    assert_eq!(half[126..128], [0xff, 0xff]);
    let bounds: Vec<u16> = half[512..576].chunks(2).map(|x| u16::from_le_bytes([x[0], x[1]])).collect();
    assert_eq!(bounds[..8], [0, 0x4100, 0x4180, 0x41c0, 0x4170, 0x41b8, 0x41f8, 0x421c]);
    // The next block begins with 64 % 5 steps.
    assert_eq!(half[128..130], [0xff, 0xff]);
    assert_eq!(bounds[8..16], [0, 0x4100, 0x4180, 0x41c0, 0x4080, 0x4140, 0x41a0, 0x41e0]);
    assert!(half[576..].iter().all(|b| *b == 0));
    let (half, _) = coded(Quantised::Int8, Half::Values, d, &rows);
    assert_eq!((half.len(), &half[..4]), (2048, &[0, 85, 170, 255][..]));
    assert_eq!(half[1024..1028], [0, 0, 0xc0, 0x41]);
    assert_eq!(half[1028..1032], [0x80, 0x3f, 0xc8, 0x41]);
}

/// Quantised units of a head's keys and values: `[unit][K | V]`; and what they decode to.
fn units(format: Quantised, d: usize, k: &[u16], v: &[u16]) -> (Vec<u8>, [Vec<u16>; 2]) {
    let (mut units, mut back) = (Vec::new(), [Vec::new(), Vec::new()]);
    for (k, v) in k.chunks(UNIT * d).zip(v.chunks(UNIT * d)) {
        for (half, rows) in [(Half::Keys, k), (Half::Values, v)] {
            let (bytes, values) = coded(format, half, d, rows);
            units.extend(bytes);
            back[half as usize].extend(values);
        }
    }
    (units, back)
}

#[test]
fn decode_over_quantised_units_has_the_bits_of_what_they_decode_to() {
    let mut random = Random(4);
    for round in 0..28 {
        let (d, format) = (DIMS[round % DIMS.len()], Quantised::ALL[round / 7 % 2]);
        let (group, tokens) = (1 + random.below(4), 1 + random.below(16));
        let (count, start) = (1 + random.below(5), 256 * random.below(3) as u64);
        let rows = |random: &mut Random| (0..count).flat_map(|_| random.rows(d)).collect::<Vec<_>>();
        let (k, v) = (rows(&mut random), rows(&mut random));
        let (coded, [k, v]) = units(format, d, &k, &v);
        let q: Vec<f32> = (0..tokens * group * d).map(|_| random.normal()).collect();
        let geo = Geometry {
            head_dim: d,
            group,
            scale: 0.1 / (d as f32).sqrt(),
            window: [None, Some(1 + random.below(700))][round % 2],
            q_start: start + (count * UNIT + random.below(300)) as u64,
            sees: Sees::Before,
        };
        let attend = |isa, pieces: &[Keys<'_>]| attended(isa, &geo, &q, pieces);
        for isa in Isa::available() {
            let plain = attend(isa, &[Keys::Plain(KvRows { k: &k, v: &v, start })]);
            let whole = QuantisedRows { format, units: &coded, start };
            assert!(attend(isa, &[Keys::Quantised(whole)]) == plain, "{isa:?} {geo:?}");
            // A quantised piece, then a plain one.
            let cut = random.below(count as u64 + 1);
            let first = &coded[..cut * 2 * format.half_bytes(d)];
            let (k, v) = (&k[cut * UNIT * d..], &v[cut * UNIT * d..]);
            let pieces = [
                Keys::Quantised(QuantisedRows { format, units: first, start }),
                Keys::Plain(KvRows { k, v, start: start + (cut * UNIT) as u64 }),
            ];
            assert!(attend(isa, &pieces) == plain, "{isa:?} {geo:?} cut at {cut}");
        }
    }
}

/// `cargo test --release -p headinfer-core --lib -- --ignored --nocapture quantising_rates`
#[test]
#[ignore = "a measurement"]
fn quantising_rates() {
    let mut random = Random(5);
    for d in [64, 80, 96, 128, 256] {
        let rows = random.rows(d);
        let mut back = vec![0; UNIT * d];
        for (format, half) in Quantised::ALL.into_iter().flat_map(|f| [(f, Half::Keys), (f, Half::Values)]) {
            let mut to = vec![0; format.half_bytes(d)];
            for isa in Isa::available() {
                let rate = |run: &mut dyn FnMut()| {
                    let begun = std::time::Instant::now();
                    (0..2000).for_each(|_| run());
                    2000.0 * (UNIT * d * 2) as f64 / begun.elapsed().as_secs_f64() / 1e9
                };
                let code = rate(&mut || quantise_half(isa, format, half, d, &rows, &mut to));
                let decode = rate(&mut || dequantise_half(isa, format, half, d, &to, &mut back));
                let (isa, what) = (isa.name(), format!("{format:?} {half:?}"));
                eprintln!(
                    "{d:>4} {what:<12} {isa:<9} code {code:5.1} GB/s, decode {decode:5.1} GB/s of bf16"
                );
            }
        }
    }
}
