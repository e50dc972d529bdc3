//! Packing and unpacking on the device: the bytes of the CPU's, and every bit back.

use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::kernels::packed::{
    UNIT, half_bytes, pack_half, pack_half_plane, plane_bytes, plane_of,
};
use headinfer_cuda::measure::{Bed, Packing};

use crate::run::{has_gpu, options, random_bf16};
use crate::support::Draw;

/// Rows of half a unit, of a kind.
fn rows_of(draw: &mut Draw, d: usize, kind: usize) -> Vec<u16> {
    let mut rows = random_bf16(draw, UNIT * d, 1.0);
    let few = [0, 3, 1 + 3 * d / 4, 3 * d / 2, 3 * d / 2 + 1];
    match kind {
        // Zeros, subnormals, infinities and NaN.
        5 => rows.iter_mut().for_each(|x| *x = draw.of(&[0, 0x8000, 1, 0x807f, 0x3f80, 0xbfff])),
        6 => rows.iter_mut().for_each(|x| *x = draw.of(&[0x7f80, 0xff80, 0x7fc1, 0xffff, 0x7f00])),
        // Any bits: a plane.
        7 => rows.iter_mut().for_each(|x| *x = draw.below(1 << 16) as u16),
        8 => rows.iter_mut().enumerate().for_each(|(i, x)| *x = i as u16),
        // So many escapes, where nothing else escapes.
        _ => {
            rows.iter_mut().for_each(|x| *x = 0x3f80 | *x & 0x807f);
            (0..few[kind]).for_each(|i| rows[i * 7 % (UNIT * d) + i / 3] = 0x2080 | (i as u16 & 0x7f));
        }
    }
    rows
}

fn bed(d: usize, p: &Packing) -> Bed {
    let (device, host) = (p.device_bytes(d), p.host_bytes(d));
    Bed::open(&options(), d, device.max(host), host).unwrap()
}

/// Half by half what the CPU makes of `rows`; planes have numbers in the order that blocks took them.
fn check(d: usize, p: &Packing, rows: &[u16]) {
    let packed = bed(d, p).packed(p, rows).unwrap();
    assert_eq!(packed.fault, 0, "{d} {p:?}");
    assert!(packed.restored == rows, "{d} {p:?}");
    let isa = Isa::detect();
    let mut taken = vec![Vec::new(); p.units];
    let numbered = (0..).zip(packed.halves.chunks_exact(half_bytes(d)));
    for (i, got) in numbered {
        let (head, unit, which) = (i / 2 / p.units, i / 2 % p.units, i % 2);
        let rows = &rows[((2 * head + which) * p.units + unit) * UNIT * d..][..UNIT * d];
        let mut half = vec![0xa5; half_bytes(d)];
        if !pack_half(isa, d, rows, &mut half) {
            let number = plane_of(got, d).expect("a plane");
            let mut plane = vec![0; plane_bytes(d)];
            pack_half_plane(isa, d, rows, &mut half, &mut plane, number);
            let at = (unit * p.planes + number as usize) * plane_bytes(d);
            assert!(packed.planes[at..][..plane_bytes(d)] == plane, "{d} {i} plane {number}");
            taken[unit].push(number);
        }
        let stray = got.iter().zip(&half).position(|(a, b)| a != b);
        assert!(stray.is_none(), "{d} half {i}: byte {stray:?} of {}", half.len());
    }
    for (numbers, count) in taken.iter_mut().zip(&packed.counts) {
        numbers.sort_unstable();
        assert!((0..*count).eq(numbers.iter().copied()), "{d}: {numbers:?} of {count}");
    }
}

#[test]
fn the_device_packs_to_the_bytes_of_the_cpu_and_restores_every_bit() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(51);
    for d in [8, 24, 64, 80, 96, 128, 256] {
        let p = Packing { heads: 3, units: 3, planes: 6 };
        let kinds = (0..2 * p.heads * p.units).map(|i| i % 9);
        let rows: Vec<u16> = kinds.flat_map(|kind| rows_of(&mut draw, d, kind)).collect();
        check(d, &p, &rows);
        let rows: Vec<u16> = (0..2 * p.heads * p.units).flat_map(|_| rows_of(&mut draw, d, 7)).collect();
        check(d, &p, &rows);
    }
}

#[test]
fn more_units_and_heads_than_a_launch_takes_are_packed() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(52);
    for (heads, units) in [(1, 130), (66, 2)] {
        let p = Packing { heads, units, planes: 2 * heads };
        let rows: Vec<u16> = (0..2 * heads * units).flat_map(|i| rows_of(&mut draw, 16, i % 9)).collect();
        check(16, &p, &rows);
    }
}

#[test]
fn a_unit_without_a_plane_left_is_named() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(53);
    let p = Packing { heads: 2, units: 3, planes: 2 };
    // Of the middle unit three halves need planes.
    let kind = |i: usize| if i % 3 == 1 && i < 9 { 7 } else { 1 };
    let rows: Vec<u16> = (0..12).flat_map(|i| rows_of(&mut draw, 64, kind(i))).collect();
    let packed = bed(64, &p).packed(&p, &rows).unwrap();
    assert_eq!((packed.fault, packed.counts), (2, vec![0, 3, 0]));
}

/// `cargo test --release -p headinfer-cuda --test cuda -- --ignored --nocapture rates_of_packing`
#[test]
#[ignore = "a measurement"]
fn rates_of_packing() {
    if !has_gpu() {
        return;
    }
    for d in [64, 96, 128, 256] {
        let units = (1 << 14) / d;
        for p in [Packing { heads: 8, units: units / 4, planes: 4 }, Packing { heads: 8, units, planes: 4 }] {
            let rates = bed(d, &p).packing(&p).unwrap();
            eprintln!(
                "{d:>4} heads {} units {:>4}: pack {:5.0} GB/s, unpack {:5.0} GB/s read and written",
                p.heads,
                p.units,
                rates.pack / 1e9,
                rates.unpack / 1e9
            );
        }
    }
}
