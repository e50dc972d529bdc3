//! What is packed comes back, whatever it was, and in the bytes that the format names.

use super::coded_tests::{Random, attended};
use super::packed::*;
use super::*;

const DIMS: [usize; 6] = [16, 64, 80, 96, 128, 256];

/// A bf16 that is about normal.
fn normal(random: &mut Random) -> u16 {
    half::bf16::from_f32(random.normal()).to_bits()
}

/// Packs and unpacks `rows` on every instruction set, with the same bytes on all; those bytes, and whether they fit
/// without a plane.
fn restored(d: usize, rows: &[u16]) -> (Vec<u8>, bool) {
    let mut first = None;
    for isa in Isa::available() {
        let (mut half, mut plane) = (vec![0xa5; half_bytes(d)], vec![0xa5; plane_bytes(d)]);
        let fits = pack_half(isa, d, rows, &mut half);
        if !fits {
            pack_half_plane(isa, d, rows, &mut half, &mut plane, 7);
        }
        assert_eq!(plane_of(&half, d), (!fits).then_some(7), "{d} {isa:?}");
        let mut back = vec![0xa5a5; rows.len()];
        unpack_half(isa, d, &half, (!fits).then_some(&plane), &mut back);
        assert!(back == rows, "{d} {isa:?}");
        // Any half may have a plane.
        let mut other = vec![0x5a; half_bytes(d)];
        pack_half_plane(isa, d, rows, &mut other, &mut plane, 0);
        back.fill(0xa5a5);
        unpack_half(isa, d, &other, Some(&plane), &mut back);
        assert!(back == rows && plane_of(&other, d) == Some(0), "{d} {isa:?}");
        let (bytes, _) = first.get_or_insert_with(|| (half.clone(), fits));
        assert!(*bytes == half, "{d} {isa:?}: the bytes differ from those of plain Rust");
    }
    first.unwrap()
}

fn escapes(half: &[u8], d: usize) -> u32 {
    u32::from_le_bytes(half[UNIT * d / 2 * 3 + d..][..4].try_into().unwrap())
}

#[test]
fn every_bit_pattern_is_restored() {
    for d in DIMS {
        let all: Vec<u16> = (0..=u16::MAX).cycle().take((1 << 16).max(UNIT * d)).collect();
        for rows in all.chunks_exact(UNIT * d) {
            restored(d, rows);
        }
        // Transposed: a column has neighbours.
        let columns = |i: usize| ((i % d * UNIT + i / d) * (65536 / (UNIT * d)).max(1)) as u16;
        restored(d, &(0..UNIT * d).map(columns).collect::<Vec<_>>());
    }
}

#[test]
fn normal_values_fit_with_few_escapes() {
    let mut random = Random(1);
    for d in DIMS {
        let rows: Vec<u16> = (0..UNIT * d).map(|_| normal(&mut random)).collect();
        let (half, fits) = restored(d, &rows);
        assert!(fits && escapes(&half, d) < d as u32 / 2, "{d}: {}", escapes(&half, d));
    }
}

#[test]
fn random_bits_need_a_plane() {
    let mut random = Random(2);
    for d in DIMS {
        let rows: Vec<u16> = (0..UNIT * d).map(|_| random.next() as u16).collect();
        assert!(!restored(d, &rows).1, "{d}");
    }
}

#[test]
fn a_half_fits_up_to_its_room_for_escapes() {
    let mut random = Random(3);
    for d in DIMS {
        for over in [0, 1] {
            // Ones, of which some are 2^-20, from the end backwards.
            let mut rows = vec![half::bf16::ONE.to_bits(); UNIT * d];
            let small = escapes_max(d) + over;
            for i in 0..small {
                rows[UNIT * d - 1 - i * 3] = (127 - 20) << 7 | random.next() as u16 & 0x807f;
            }
            let (half, fits) = restored(d, &rows);
            assert_eq!(fits, over == 0, "{d}");
            assert_eq!(escapes(&half, d), if fits { small as u32 } else { 0 });
        }
    }
}

#[test]
fn a_column_may_have_every_exponent() {
    for d in DIMS {
        let mut rows = vec![half::bf16::ONE.to_bits(); UNIT * d];
        for (row, values) in rows.chunks_exact_mut(d).enumerate() {
            values[d - 3] = (row as u16) << 7 | 5;
        }
        let (half, fits) = restored(d, &rows);
        // 255 down to 242 have codes, and 0 has.
        assert_eq!(fits, escapes_max(d) >= 241, "{d}");
        assert_eq!(escapes(&half, d), if fits { 241 } else { 0 });
    }
}

#[test]
fn zeros_subnormals_infinities_and_nans_keep_their_bits() {
    let kinds: [&[u16]; 5] = [
        &[0, 0x8000],
        &[0, 1, 0x7f, 0x8001, 0x807f, 0x40],
        &[0x7f80, 0xff80, 0x7f81, 0xffff, 0x7fc0, 0xff81],
        &[0x3f80, 0, 0xbf80, 0x0001],
        &[0x0080, 0x8080, 0x00ff, 0],
    ];
    for d in DIMS {
        for kind in kinds {
            let rows: Vec<u16> = (0..UNIT * d).map(|i| kind[i % 7 % kind.len()]).collect();
            let (half, fits) = restored(d, &rows);
            assert!(fits && escapes(&half, d) == 0, "{d} {kind:x?}");
        }
    }
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let d = 4;
    let mut rows = vec![half::bf16::ONE.to_bits(); UNIT * d];
    rows[..4].copy_from_slice(&[0xc055, 0, 0x3f80, 0x3c01]); // exponents 128, 0, 127, 120
    rows[5] = 0x3001; // exponent 96: escapes
    let (half, fits) = restored(d, &rows);
    assert!(fits && half.len() == 1600);
    assert_eq!(half[..8], [0xd5, 0, 0, 1, 0, 1, 0, 0]);
    // Bases 128, 127, 127, 127; columns 0 and 2 share a byte, 1 and 3 the other.
    assert_eq!(half[1024..1028], [0x00, 0x7f, 0x01, 0x0e]);
    assert_eq!(half[1536..1540], [128, 127, 127, 127]);
    assert_eq!(half[1540..1556], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(half[1556..1560], [0x01, 0x30, 5, 0]);
    assert!(half[1560..].iter().all(|b| *b == 0));
}

/// Packed units of some heads' keys or values: `[unit][K | V]`, and their planes.
fn packed(isa: Isa, d: usize, k: &[u16], v: &[u16], planes_max: usize) -> (Vec<u8>, Vec<u8>) {
    let count = k.len() / (UNIT * d);
    let (mut units, mut planes) =
        (vec![0; 2 * count * half_bytes(d)], vec![0; count * planes_max * plane_bytes(d)]);
    let of_unit = units.chunks_mut(2 * half_bytes(d)).zip(planes.chunks_mut(planes_max * plane_bytes(d)));
    for (unit, (halves, planes)) in of_unit.enumerate() {
        let mut taken = 0;
        for (to, rows) in halves.chunks_mut(half_bytes(d)).zip([k, v]) {
            let rows = &rows[unit * UNIT * d..][..UNIT * d];
            if !pack_half(isa, d, rows, to) {
                let plane = &mut planes[taken * plane_bytes(d)..][..plane_bytes(d)];
                pack_half_plane(isa, d, rows, to, plane, taken as u32);
                taken += 1;
            }
        }
    }
    (units, planes)
}

#[test]
fn decode_over_packed_units_has_the_bits_of_plain_rows() {
    let mut random = Random(4);
    for round in 0..40 {
        let d = DIMS[round % DIMS.len()];
        let (group, tokens) = (1 + random.below(4), 1 + random.below(16));
        let (units, start) = (1 + random.below(5), 256 * random.below(3) as u64);
        // Of every few values one is far smaller than all others: some halves need planes.
        let far = 1 + random.below(400) as u64;
        let rows = |random: &mut Random| -> Vec<u16> {
            let value = |random: &mut Random| match random.next() % far {
                0 => random.next() as u16 & 0x807f | (((random.next() % 100) as u16 + 10) << 7),
                _ => normal(random),
            };
            (0..units * UNIT * d).map(|_| value(random)).collect()
        };
        let (k, v) = (rows(&mut random), rows(&mut random));
        let q: Vec<f32> =
            (0..tokens * group * d).map(|_| f32::from(half::bf16::from_bits(normal(&mut random)))).collect();
        let geo = Geometry {
            head_dim: d,
            group,
            scale: 1.0 / (d as f32).sqrt(),
            window: [None, Some(1 + random.below(700))][round % 2],
            q_start: start + (units * UNIT + random.below(300)) as u64,
            sees: Sees::Before,
        };
        let attend = |isa, pieces: &[Keys<'_>]| attended(isa, &geo, &q, pieces);
        for isa in Isa::available() {
            let (coded, planes) = packed(isa, d, &k, &v, 3);
            let plain = attend(isa, &[Keys::Plain(KvRows { k: &k, v: &v, start })]);
            let whole = PackedRows { units: &coded, planes: &planes, start };
            assert!(attend(isa, &[Keys::Packed(whole)]) == plain, "{isa:?} {geo:?}");
            // A packed piece, then a plain one.
            let cut = random.below(units as u64 + 1);
            let (first, rest) = coded.split_at(cut * 2 * half_bytes(d));
            let tail = (&k[cut * UNIT * d..], &v[cut * UNIT * d..], start + (cut * UNIT) as u64);
            let pieces = [
                Keys::Packed(PackedRows { units: first, planes: &planes[..cut * 3 * plane_bytes(d)], start }),
                Keys::Plain(KvRows { k: tail.0, v: tail.1, start: tail.2 }),
            ];
            assert!(attend(isa, &pieces) == plain, "{isa:?} {geo:?} cut at {cut} of {}", rest.len());
        }
    }
}

/// `cargo test --release -p headinfer-core --lib -- --ignored --nocapture packing_rates`
#[test]
#[ignore = "a measurement"]
fn packing_rates() {
    let mut random = Random(5);
    for d in [64, 80, 96, 128, 256] {
        let rows: Vec<u16> = (0..UNIT * d).map(|_| normal(&mut random)).collect();
        let (mut half, mut back) = (vec![0; half_bytes(d)], vec![0; UNIT * d]);
        for isa in Isa::available() {
            let rate = |run: &mut dyn FnMut()| {
                let begun = std::time::Instant::now();
                (0..2000).for_each(|_| run());
                2000.0 * (UNIT * d * 2) as f64 / begun.elapsed().as_secs_f64() / 1e9
            };
            let pack = rate(&mut || assert!(pack_half(isa, d, &rows, &mut half)));
            let unpack = rate(&mut || unpack_half(isa, d, &half, None, &mut back));
            eprintln!("{d:>4} {:<9} pack {pack:5.1} GB/s, unpack {unpack:5.1} GB/s of bf16", isa.name());
        }
    }
}
