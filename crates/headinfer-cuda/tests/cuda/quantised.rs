//! Quantising on the device: the bytes of the CPU's, and what attention sees to the last bit.

use headinfer_core::cpu::kernels::Isa;
use headinfer_core::cpu::kernels::packed::UNIT;
use headinfer_core::cpu::kernels::quantised::{Half, Quantised, dequantise_half, quantise_half};
use headinfer_cuda::measure::{Bed, Packing};

use crate::run::{has_gpu, options, random_bf16};
use crate::support::Draw;

/// Rows of half a unit, of a kind.
fn rows_of(draw: &mut Draw, d: usize, kind: usize) -> Vec<u16> {
    let mut rows = random_bf16(draw, UNIT * d, 1.0);
    match kind {
        0 => {}
        // Narrow blocks, wide ones, and a few values.
        1 => rows.iter_mut().for_each(|x| *x = 0x4200 | *x & 0x8007),
        2 => rows.iter_mut().for_each(|x| *x = draw.below(0x7e80) as u16 | *x & 0x8000),
        3 => rows.iter_mut().for_each(|x| *x = draw.of(&[0, 0x8000, 1, 0x807f, 0x0080])),
        4 => rows.iter_mut().enumerate().for_each(|(i, x)| *x = (i / 64 % 0x7e80) as u16),
        // Some blocks have what has no code.
        5 => (0..20).for_each(|_| {
            let at = draw.below(UNIT * d);
            rows[at] = draw.of(&[0x7f80, 0xff80, 0x7fc1, 0xffff, 0x7e80, 0xfe80, 0x7e7f, 0xfe7f]);
        }),
        _ => rows.iter_mut().for_each(|x| *x = draw.below(1 << 16) as u16),
    }
    rows
}

fn bed(d: usize, p: &Packing) -> Bed {
    let (device, host) = (p.device_bytes(d), p.host_bytes(d));
    Bed::open(&options(), d, device.max(host), host).unwrap()
}

/// Half by half what the CPU makes of `rows`.
fn check(bed: &mut Bed, format: Quantised, d: usize, p: &Packing, rows: &[u16]) {
    let (halves, restored) = bed.quantised(format, p, rows).unwrap();
    let isa = Isa::detect();
    for (i, got) in halves.chunks_exact(format.half_bytes(d)).enumerate() {
        let (head, unit, which) = (i / 2 / p.units, i / 2 % p.units, i % 2);
        let at = ((2 * head + which) * p.units + unit) * UNIT * d..;
        let half = [Half::Keys, Half::Values][which];
        let (mut bytes, mut back) = (vec![0xa5; format.half_bytes(d)], vec![0xa5a5; UNIT * d]);
        quantise_half(isa, format, half, d, &rows[at.clone()][..UNIT * d], &mut bytes);
        dequantise_half(isa, format, half, d, &bytes, &mut back);
        let stray = got.iter().zip(&bytes).position(|(a, b)| a != b);
        assert!(stray.is_none(), "{format:?} {d} half {i}: byte {stray:?} of {}", bytes.len());
        let stray = restored[at].iter().zip(&back).position(|(a, b)| a != b);
        assert!(stray.is_none(), "{format:?} {d} half {i}: value {stray:?}");
    }
}

#[test]
fn the_device_quantises_to_the_bytes_of_the_cpu_and_restores_its_bits() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(61);
    for d in [8, 24, 64, 80, 96, 128, 256] {
        let p = Packing { heads: 3, units: 3, planes: 1 };
        let mut bed = bed(d, &p);
        for format in Quantised::ALL {
            let kinds = (0..2 * p.heads * p.units).map(|i| i % 7);
            let rows: Vec<u16> = kinds.flat_map(|kind| rows_of(&mut draw, d, kind)).collect();
            check(&mut bed, format, d, &p, &rows);
        }
    }
}

#[test]
fn more_heads_than_a_launch_takes_are_quantised() {
    if !has_gpu() {
        return;
    }
    let mut draw = Draw(62);
    for (heads, units) in [(1, 130), (66, 2)] {
        let p = Packing { heads, units, planes: 1 };
        let rows: Vec<u16> = (0..2 * heads * units).flat_map(|i| rows_of(&mut draw, 16, i % 7)).collect();
        for format in Quantised::ALL {
            check(&mut bed(16, &p), format, 16, &p, &rows);
        }
    }
}

/// `cargo test --release -p headinfer-cuda --test cuda -- --ignored --nocapture quantising_rates`
#[test]
#[ignore = "a measurement"]
fn quantising_rates() {
    if !has_gpu() {
        return;
    }
    for d in [64, 96, 128, 256] {
        let p = Packing { heads: 8, units: (1 << 14) / d, planes: 4 };
        let mut bed = bed(d, &p);
        for format in Quantised::ALL {
            let rates = bed.quantising(format, &p).unwrap();
            eprintln!(
                "{d:>4} {format:?} units {:>4}: code {:5.0} GB/s, decode {:5.0} GB/s read and written",
                p.units,
                rates.pack / 1e9,
                rates.unpack / 1e9
            );
        }
    }
}
