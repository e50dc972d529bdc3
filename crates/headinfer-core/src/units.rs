//! Sizes and counts as people write them: `24GiB`, `128k`, `1M`.

use std::fmt;

/// A number of bytes. Displays in binary units with three significant digits (`16.4 GiB`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

/// One kibibyte.
pub const KIB: u64 = 1 << 10;
/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            n if n >= 1 << 40 => (1u64 << 40, "TiB"),
            n if n >= GIB => (GIB, "GiB"),
            n if n >= MIB => (MIB, "MiB"),
            n if n >= KIB => (KIB, "KiB"),
            n => return write!(f, "{n} B"),
        };
        let value = self.0 as f64 / unit as f64;
        let digits = if value >= 100.0 {
            0
        } else if value >= 10.0 {
            1
        } else {
            2
        };
        write!(f, "{value:.digits$} {name}")
    }
}

/// Parses a size: `24GiB`, `24GB`, `512MiB`, `1.5G` (binary), `4096` (bytes). Case-insensitive.
///
/// # Errors
/// A sentence saying what is accepted, when `text` is not a size or exceeds 2^63 bytes.
pub fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit: f64 = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => KIB as f64,
        "m" | "mib" => MIB as f64,
        "g" | "gib" => GIB as f64,
        "t" | "tib" => (1u64 << 40) as f64,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(size_help(text)),
    };
    let value: f64 = number.parse().map_err(|_| size_help(text))?;
    let bytes = value * unit;
    if !(0.0..9.2e18).contains(&bytes) {
        return Err(size_help(text));
    }
    Ok(Bytes(bytes as u64))
}

fn size_help(text: &str) -> String {
    format!("'{text}' is not a size; write 24GiB, 24GB, 512MiB or a number of bytes")
}

/// Parses a number of tokens: `131072`, `128k` (1024-based), `1M` (1024²).
///
/// # Errors
/// A sentence saying what is accepted, when `text` is not a count or exceeds 2^40.
pub fn parse_tokens(text: &str) -> Result<usize, String> {
    let help = || format!("'{text}' is not a number of tokens; write 131072, 128k or 1M");
    let (number, unit) = match text.char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], KIB as f64),
        Some((i, 'm' | 'M')) => (&text[..i], MIB as f64),
        Some(_) => (text, 1.0),
        None => return Err(help()),
    };
    if !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(help());
    }
    let value: f64 = number.parse::<f64>().map_err(|_| help())? * unit;
    if value.fract() != 0.0 || !(0.0..(1u64 << 40) as f64).contains(&value) {
        return Err(help());
    }
    Ok(value as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(parse_bytes("24GiB").unwrap().0, 24 * GIB);
        assert_eq!(parse_bytes("24GB").unwrap().0, 24_000_000_000);
        assert_eq!(parse_bytes("1.5g").unwrap().0, 3 * GIB / 2);
        assert_eq!(parse_bytes("4096").unwrap().0, 4096);
        for bad in ["", "GiB", "-1", "1x", "1e400", "99999999999TiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn contexts_are_1024_based() {
        assert_eq!(parse_tokens("128k").unwrap(), 131_072);
        assert_eq!(parse_tokens("1M").unwrap(), 1 << 20);
        assert_eq!(parse_tokens("131072").unwrap(), 131_072);
        for bad in ["", "k", "-1", "1.3", "1e9", "many"] {
            assert!(parse_tokens(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_print_three_digits() {
        assert_eq!(Bytes(16 * GIB + 400 * MIB).to_string(), "16.4 GiB");
        assert_eq!(Bytes(512).to_string(), "512 B");
    }
}
