//! Rotary frequencies against those of transformers.

use super::*;

const PAIRS: [usize; 10] = [0, 1, 16, 24, 28, 31, 32, 40, 48, 63];

/// Frequencies of transformers 5.23 (f32, nine digits), made by
/// `ROPE_INIT_FUNCTIONS[kind](LlamaConfig(hidden_size=256, num_attention_heads=2, rope_parameters=...),
/// "cpu")`.
fn agrees(rope: &Rope, expected: [f64; 10], attention_factor: f64) {
    let inv_freq = rope.inv_freq(128);
    assert_eq!(inv_freq.len(), 64);
    for (pair, want) in PAIRS.into_iter().zip(expected) {
        let got = inv_freq[pair];
        // f32 powers and products: a few units in the 24th bit.
        assert!((got / want - 1.0).abs() < 1e-6, "{rope:?} pair {pair}: {got:e}, transformers {want:e}");
    }
    assert!((rope.attention_factor() - attention_factor).abs() < 1e-12);
}

fn yarn() -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max: 32768.0,
        attention_factor: 1.138629436111989,
        truncate: true,
    }
}

#[test]
#[rustfmt::skip]
fn every_scaled_kind_agrees_with_transformers() {
    let linear = Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } };
    agrees(&linear, [
        2.500000000e-01, 2.164910883e-01, 2.500000037e-02, 7.905694656e-03, 4.445698578e-03,
        2.886954928e-03, 2.499999944e-03, 7.905694656e-04, 2.500000119e-04, 2.886954826e-05,
    ], 1.0);
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max: 8192.0,
    };
    agrees(&Rope { theta: 5e5, scaling: llama3 }, [
        1.000000000e+00, 8.146172166e-01, 3.760603070e-02, 7.292665076e-03, 3.211446106e-03,
        8.567514597e-04, 5.248460220e-04, 3.428102355e-05, 6.647869668e-06, 3.068925878e-07,
    ], 1.0);
    agrees(&Rope { theta: 1e6, scaling: yarn() }, [
        1.000000000e+00, 8.058422208e-01, 3.162277862e-02, 5.375321489e-03, 1.848276588e-03,
        8.029597811e-04, 6.029411452e-04, 4.445698505e-05, 7.905693565e-06, 3.102344408e-07,
    ], 1.138629436111989);
    let untruncated = RopeScaling::Yarn {
        factor: 40.0, beta_fast: 16.0, beta_slow: 2.0, original_max: 4096.0,
        attention_factor: 1.0569662567531275, truncate: false,
    };
    agrees(&Rope { theta: 1e4, scaling: untruncated }, [
        1.000000000e+00, 8.659643531e-01, 1.000000015e-01, 3.162277862e-02, 1.509611961e-02,
        7.465517614e-03, 5.790104624e-03, 1.239524572e-04, 2.499999937e-05, 2.886954690e-06,
    ], 1.0569662567531275);
}

#[test]
fn tables_of_any_cut_are_the_same() {
    let rope = Rope { theta: 1e6, scaling: yarn() };
    let (rows, half) = (24, 32);
    let (mut cos, mut sin) = (vec![0.0; rows * half], vec![0.0; rows * half]);
    rope.table(64, 1000, rows, &mut cos, &mut sin);
    let (mut c, mut s) = (vec![0.0; 8 * half], vec![0.0; 8 * half]);
    rope.table(64, 1016, 8, &mut c, &mut s);
    assert_eq!(c, cos[16 * half..]);
    assert_eq!(s, sin[16 * half..]);
}

#[test]
fn angles_at_four_million_positions_are_exact_to_f32() {
    let rope = Rope { theta: 1e4, scaling: RopeScaling::Default };
    let (mut cos, mut sin) = (vec![0.0; 4], vec![0.0; 4]);
    let position = (4 << 20) + 1;
    rope.table(8, position, 1, &mut cos, &mut sin);
    // Python: [math.cos(4194305 * 10000.0 ** (-i / 4)) for i in range(4)], and sin.
    let want_cos = [-0.7007924716933591, -0.9235389473282878, -0.938160561094001, -0.9613843206678454];
    let want_sin = [0.7133652021355629, 0.3835046450406541, 0.3462004644823417, -0.27520935299154586];
    for i in 0..4 {
        assert!((f64::from(cos[i]) - want_cos[i]).abs() < 1e-7, "{i}: {} {}", cos[i], want_cos[i]);
        assert!((f64::from(sin[i]) - want_sin[i]).abs() < 1e-7, "{i}: {} {}", sin[i], want_sin[i]);
    }
}
