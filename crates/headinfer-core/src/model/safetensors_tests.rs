//! Headers of safetensors files: sound, unsound and damaged.

use proptest::prelude::*;

use super::*;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data, 0);
    out
}

const TWO: &str = r#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
    "y":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}"#;

#[test]
fn a_sound_header_is_read() {
    let bytes = file(TWO, 10);
    let entries = parse_header(&bytes).unwrap();
    let start = 8 + TWO.len() as u64;
    let x = Entry { dtype: "F32".into(), shape: vec![2], begin: start, end: start + 8 };
    assert_eq!((entries.len(), &entries["x"]), (2, &x));
    assert_eq!(entries["y"].end, bytes.len() as u64);
}

#[test]
fn files_of_the_reference_implementation_are_read() {
    let view =
        |data| ::safetensors::tensor::TensorView::new(::safetensors::Dtype::F32, vec![2, 1], data).unwrap();
    let bytes = ::safetensors::serialize([("a", view(&[1; 8])), ("b", view(&[2; 8]))], None).unwrap();
    let entries = parse_header(&bytes).unwrap();
    let b = &entries["b"];
    assert_eq!((b.shape.as_slice(), &bytes[b.begin as usize..b.end as usize]), (&[2, 1][..], &[2; 8][..]));
}

#[test]
fn unsound_headers_are_refused() {
    let one = |name: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{begin},{end}]}}"#)
    };
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    let cases = [
        (file(TWO, 9), "truncated"),
        (file(TWO, 11), "cover"),
        (file(&two(one("a", 0, 4), one("b", 3, 8)), 8), "overlap"),
        (file(&two(one("a", 0, 4), one("b", 5, 8)), 8), "hole"),
        (file(&two(one("a", 0, 4), one("a", 4, 8)), 8), "twice"),
        (file(&two(one("a", 4, 0), one("b", 0, 4)), 4), "`a`"),
        (file(&two(one("a", 0, u64::MAX), one("b", u64::MAX, u64::MAX)), 8), "`a`"),
        (file("[]", 0), "cannot be read"),
        (file(&"[".repeat(10_000), 0), "cannot be read"),
        (file(r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1), "cannot be read"),
        (vec![], "too few"),
        (vec![1; 7], "too few"),
        ((1u64 << 63).to_le_bytes().to_vec(), "states a header"),
        (u64::MAX.to_le_bytes().to_vec(), "states a header"),
        (1000u64.to_le_bytes().to_vec(), "truncated"),
    ];
    for (bytes, named) in cases {
        let problem = parse_header(&bytes).unwrap_err();
        assert!(problem.contains(named) && !problem.contains('\n'), "{named}: {problem}");
    }
}

/// Every view that could be taken is inside the file, and views do not overlap.
fn in_bounds(bytes: &[u8]) {
    let Ok(entries) = parse_header(bytes) else { return };
    let mut ranges: Vec<_> = entries.values().map(|e| (e.begin as usize, e.end as usize)).collect();
    ranges.sort_unstable();
    for (begin, end) in &ranges {
        assert!(bytes.get(*begin..*end).is_some(), "{begin}..{end} of {}", bytes.len());
    }
    assert!(ranges.windows(2).all(|w| w[0].1 <= w[1].0), "{ranges:?}");
}

proptest! {
    #[test]
    fn any_bytes_give_views_in_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        in_bounds(&bytes);
    }

    #[test]
    fn mutated_files_give_views_in_bounds(
        changes in proptest::collection::vec((0usize..200, any::<u8>()), 0..4),
        data in 0usize..24,
    ) {
        let mut bytes = file(TWO, data);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        in_bounds(&bytes);
    }

    #[test]
    fn mutated_offsets_give_views_in_bounds(
        offsets in proptest::collection::vec(prop_oneof![0u64..20, any::<u64>()], 6),
        data in 0usize..24,
    ) {
        let entry = |i: usize| {
            let (a, b) = (offsets[2 * i], offsets[2 * i + 1]);
            format!(r#""{i}":{{"dtype":"F32","shape":[{b}],"data_offsets":[{a},{b}]}}"#)
        };
        in_bounds(&file(&format!("{{{},{},{}}}", entry(0), entry(1), entry(2)), data));
    }
}
