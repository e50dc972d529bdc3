//! The header of a safetensors file: where each tensor lies, checked so that no later slice can be out of
//! range.
//!
//! Our own parser, for what the `safetensors` crate (0.8) lets through: it keeps the last of two tensors of
//! one name, and its sum of offsets near 2^64 wraps, so that a view may start past the end of the file.
//!
//! Must not know models.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// Longest header read, as in the reference implementation.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Where one tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type as the file names it (`BF16`, `F32`, …).
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub begin: u64,
    /// One past the last byte, from the start of the file; never past its end.
    pub end: u64,
}

/// Reads the header of a file of `file` bytes.
///
/// Every entry returned lies within the file, entries do not overlap, and together they cover all bytes after
/// the header, as the format demands.
///
/// # Errors
/// A sentence that starts with a verb and says what is wrong: truncated, header too long, not JSON, repeated
/// names, offsets that overlap, leave a hole or pass the end.
pub fn parse_header(file: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("has {} bytes, too few for a safetensors file", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        return Err(format!("states a header of {length} bytes, more than {HEADER_BYTES_MAX}"));
    }
    let header = rest.get(..length as usize).ok_or_else(|| {
        format!("is truncated: it states a header of {length} bytes, {} remain", rest.len())
    })?;
    let raw: RawHeader =
        serde_json::from_slice(header).map_err(|e| format!("has a header that cannot be read: {e}"))?;
    let data_start = 8 + length;
    place(raw.0, data_start, file.len() as u64)
}

/// Turns offsets within the data into offsets within the file, after checking that they tile it.
fn place(
    raw: BTreeMap<String, RawEntry>,
    data_start: u64,
    file_len: u64,
) -> Result<BTreeMap<String, Entry>, String> {
    let data_len = file_len - data_start;
    let mut order: Vec<(&str, [u64; 2])> =
        raw.iter().map(|(name, entry)| (name.as_str(), entry.data_offsets)).collect();
    order.sort_by_key(|(_, offsets)| *offsets);
    let mut expected = 0;
    for (name, [begin, end]) in order {
        let name = super::error::printable(name);
        if begin > end || end > data_len {
            return Err(format!("has tensor `{name}` at bytes {begin}..{end} of {data_len}: truncated?"));
        }
        if begin < expected {
            return Err(format!(
                "has tensor `{name}` at byte {begin}, overlapping one that ends at {expected}"
            ));
        }
        if begin > expected {
            return Err(format!("has a hole at bytes {expected}..{begin}, before tensor `{name}`"));
        }
        expected = end;
    }
    if expected != data_len {
        return Err(format!("has {data_len} bytes of data, its tensors cover {expected}"));
    }
    let entry = |raw: RawEntry| {
        let [begin, end] = raw.data_offsets.map(|offset| offset + data_start);
        Entry { dtype: raw.dtype, shape: raw.shape, begin, end }
    };
    Ok(raw.into_iter().map(|(name, raw)| (name, entry(raw))).collect())
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct RawHeader(BTreeMap<String, RawEntry>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut tensors: BTreeMap<String, RawEntry> = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    match tensors.entry(name) {
                        Slot::Vacant(slot) => slot.insert(map.next_value()?),
                        Slot::Occupied(slot) => {
                            let name = super::error::printable(slot.key());
                            return Err(A::Error::custom(format_args!("tensor `{name}` is there twice")));
                        }
                    };
                }
                Ok(RawHeader(tensors))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
