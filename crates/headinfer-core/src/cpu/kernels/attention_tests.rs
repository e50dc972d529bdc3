//! Attention against f64, and against itself in other groupings and cuts.

use super::*;
use crate::model::synthetic::{Half, SyntheticKv};

/// Keys, values and queries of one head, and where they start.
struct Case {
    geo: Geometry,
    k: Vec<u16>,
    v: Vec<u16>,
    q: Vec<f32>,
    start: u64,
}

fn f32_of(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `tokens` query tokens at the end of `keys` keys, of which the first is at `start`.
fn case(
    head_dim: usize,
    group: usize,
    tokens: usize,
    keys: usize,
    start: u64,
    window: Option<usize>,
) -> Case {
    let draw = |seed, half, len| {
        let mut values = vec![0; len];
        SyntheticKv::new(seed, head_dim * group, half).fill(0, &mut values);
        values
    };
    let q_start = start + (keys - tokens) as u64;
    let scale = 1.0 / (head_dim as f32).sqrt();
    Case {
        geo: Geometry { head_dim, group, scale, window, q_start, sees: Sees::Causal },
        k: draw(1, Half::Key, keys * head_dim),
        v: draw(1, Half::Value, keys * head_dim),
        q: draw(2, Half::Key, tokens * group * head_dim).into_iter().map(f32_of).collect(),
        start,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prefill,
    Decode,
}

/// Normalised output of the rows `[first, first + rows)`, the keys cut at `cut`s.
fn run(phase: Phase, isa: Isa, case: &Case, first: usize, rows: usize, cut: usize) -> Vec<f32> {
    let d = case.geo.head_dim;
    let (mut max, mut sum, mut acc) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows], vec![0.0; rows * d]);
    let mut scratch = vec![f32::NAN; 3 * rows * (d + 2)];
    // Rows of a group share a position: a part of the rows must start with a token.
    let q_start = case.geo.q_start + (first / case.geo.group) as u64;
    let geo = Geometry { q_start, ..case.geo };
    let mut start = case.start;
    for (k, v) in case.k.chunks(cut * d).zip(case.v.chunks(cut * d)) {
        let mut heads = [HeadTask {
            q: &case.q[first * d..(first + rows) * d],
            kv: KvRows { k, v, start },
            state: StateMut { max: &mut max, sum: &mut sum, acc: &mut acc },
        }];
        match phase {
            Phase::Prefill => attend_prefill(isa, &geo, &mut heads),
            Phase::Decode => attend_decode(isa, &geo, 256, &mut heads, &mut scratch),
        }
        start += (k.len() / d) as u64;
    }
    let mut out = vec![0.0; rows * d];
    for ((acc, sum), out) in acc.chunks(d).zip(sum).zip(out.chunks_mut(d)) {
        state_finish(sum, acc, out);
    }
    out
}

/// The same in f64.
fn reference(case: &Case) -> Vec<f64> {
    let (d, keys) = (case.geo.head_dim, case.k.len() / case.geo.head_dim);
    let row = |row: usize, q: &[f32]| {
        let (from, to) = case.geo.visible(row);
        let score = |j: usize| {
            let k = &case.k[j * d..][..d];
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(f32_of(*k))).sum();
            dot * f64::from(case.geo.scale)
        };
        let seen: Vec<usize> = (0..keys).filter(|j| (from..to).contains(&(case.start + *j as u64))).collect();
        let weights: Vec<f64> = seen.iter().map(|j| score(*j).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |i: usize| {
            let sum = seen.iter().zip(&weights).map(|(j, w)| w * f64::from(f32_of(case.v[j * d + i])));
            sum.sum::<f64>() / total
        };
        (0..d).map(value).collect::<Vec<f64>>()
    };
    case.q.chunks(d).enumerate().flat_map(|(r, q)| row(r, q)).collect()
}

fn cases() -> [Case; 9] {
    [
        case(16, 1, 1, 70, 0, None),
        case(64, 1, 1, 700, 0, None),
        case(64, 2, 3, 513, 256, None),
        case(80, 3, 2, 300, 64, None),
        case(128, 4, 1, 1000, 0, None),
        case(128, 7, 2, 259, 192, Some(100)),
        case(256, 1, 5, 333, 7, Some(40)),
        case(22, 2, 40, 200, 0, Some(33)),
        case(64, 3, 110, 300, 128, None),
    ]
}

fn all_instruction_sets_agree_with_f64(phase: Phase) {
    for case in &cases() {
        let expected = reference(case);
        for isa in Isa::available() {
            let got = run(phase, isa, case, 0, case.q.len() / case.geo.head_dim, usize::MAX / 256);
            let square = |x: f64| x * x;
            let error: f64 = got.iter().zip(&expected).map(|(a, b)| square(f64::from(*a) - b)).sum();
            let norm: f64 = expected.iter().map(|b| square(*b)).sum();
            // A few roundings of f32 in dots of up to 256 terms.
            assert!((error / norm).sqrt() < 2e-6, "{isa:?} {:?} {}", case.geo, (error / norm).sqrt());
        }
    }
}

#[test]
fn prefill_agrees_with_f64_on_all_instruction_sets() {
    all_instruction_sets_agree_with_f64(Phase::Prefill);
}

#[test]
fn decode_agrees_with_f64_on_all_instruction_sets() {
    all_instruction_sets_agree_with_f64(Phase::Decode);
}

fn a_rows_bits_do_not_depend_on_its_neighbours(phase: Phase) {
    for (head_dim, group) in [(24, 1), (64, 1), (128, 1), (128, 2)] {
        let tokens = 67;
        let case = case(head_dim, group, tokens, 600, 0, None);
        for isa in Isa::available() {
            let together = run(phase, isa, &case, 0, tokens * group, 600);
            for rows in [1, 2, 3, 25] {
                let parts = (0..tokens).step_by(rows).flat_map(|token| {
                    let rows = rows.min(tokens - token);
                    run(phase, isa, &case, token * group, rows * group, 600)
                });
                assert!(parts.eq(together.iter().copied()), "{isa:?} {head_dim} {group} {rows}");
            }
        }
    }
}

#[test]
fn prefill_gives_a_row_the_same_bits_in_any_company() {
    a_rows_bits_do_not_depend_on_its_neighbours(Phase::Prefill);
}

#[test]
fn decode_gives_a_row_the_same_bits_in_any_company() {
    a_rows_bits_do_not_depend_on_its_neighbours(Phase::Decode);
}

#[test]
fn cutting_the_keys_into_tiles_changes_no_bit() {
    for case in &cases() {
        // Tiles start where blocks do.
        let Case { start: 0 | 256, .. } = case else { continue };
        let rows = case.q.len() / case.geo.head_dim;
        for isa in Isa::available() {
            for (phase, cut) in
                [(Phase::Prefill, 64), (Phase::Prefill, 192), (Phase::Decode, 256), (Phase::Decode, 512)]
            {
                let whole = run(phase, isa, case, 0, rows, 4096);
                assert_eq!(
                    run(phase, isa, case, 0, rows, cut),
                    whole,
                    "{phase:?} {isa:?} {:?} {cut}",
                    case.geo
                );
            }
        }
    }
}

#[test]
fn a_row_that_sees_nothing_stays_as_it_was() {
    let mut case = case(64, 2, 30, 128, 0, Some(10));
    // All keys lie before every row's window.
    case.geo.q_start = 1000;
    for (phase, isa) in [Phase::Prefill, Phase::Decode]
        .into_iter()
        .flat_map(|p| Isa::available().into_iter().map(move |i| (p, i)))
    {
        let out = run(phase, isa, &case, 0, 60, 128);
        assert!(out.iter().all(|x| *x == 0.0), "{phase:?} {isa:?}");
    }
}

#[test]
fn prefill_has_the_same_bits_on_any_number_of_threads() {
    // Rows for several tasks of a head, keys for several legs of a task, some of them hidden from some rows.
    let heads = [case(64, 2, 150, 700, 64, None), case(64, 2, 150, 700, 64, None)];
    let run = |threads: usize, isa: Isa| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut max, mut sum, mut acc) = (vec![f32::NEG_INFINITY; 600], vec![0.0; 600], vec![0.0; 600 * 64]);
        let states = max.chunks_mut(300).zip(sum.chunks_mut(300)).zip(acc.chunks_mut(300 * 64));
        let mut tasks: Vec<_> = (heads.iter().zip(states))
            .map(|(case, ((max, sum), acc))| HeadTask {
                q: &case.q,
                kv: KvRows { k: &case.k, v: &case.v, start: case.start },
                state: StateMut { max, sum, acc },
            })
            .collect();
        pool.install(|| attend_prefill(isa, &heads[0].geo, &mut tasks));
        (max, sum, acc)
    };
    for isa in Isa::available() {
        let alone = run(1, isa);
        assert!([2, 5, 16].iter().all(|threads| run(*threads, isa) == alone), "{isa:?}");
    }
}

#[test]
fn keys_in_pieces_give_the_bits_of_keys_in_a_row() {
    for case in &cases() {
        let Case { start: 0 | 256, .. } = case else { continue };
        let (d, rows) = (case.geo.head_dim, case.q.len() / case.geo.head_dim);
        for (isa, cut) in Isa::available().into_iter().flat_map(|isa| [(isa, 256), (isa, 512)]) {
            let rows_of = |(k, v), i| Keys::Plain(KvRows { k, v, start: case.start + (i * cut) as u64 });
            let pieces = case.k.chunks(cut * d).zip(case.v.chunks(cut * d)).zip(0..);
            let pieces: Vec<_> = pieces.map(|(kv, i)| rows_of(kv, i)).collect();
            let (mut max, mut sum, mut acc) =
                (vec![f32::NEG_INFINITY; rows], vec![0.0; rows], vec![0.0; rows * d]);
            // Not as many splits in flight as there are.
            let mut scratch = vec![f32::NAN; 2 * rows * (d + 2)];
            let state = StateMut { max: &mut max, sum: &mut sum, acc: &mut acc };
            let mut heads = [PiecedTask { q: &case.q, pieces: &pieces, state }];
            attend_decode_pieces(isa, &case.geo, 256, &mut heads, &mut scratch);
            let mut got = vec![0.0; rows * d];
            for ((acc, sum), out) in acc.chunks(d).zip(sum).zip(got.chunks_mut(d)) {
                state_finish(sum, acc, out);
            }
            assert_eq!(got, run(Phase::Decode, isa, case, 0, rows, 4096), "{isa:?} {:?} {cut}", case.geo);
        }
    }
}
