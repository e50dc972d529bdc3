//! What a server serves: a name, and the parts of a model above the engine.

use std::time::{SystemTime, UNIX_EPOCH};

use headinfer_core::text::chat::Date;

/// The model as clients see it.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// What `/v1/models` lists and requests name.
    pub id: String,
    /// Tokens that end a generation: the model's and the tokenizer's.
    pub end_tokens: Vec<u32>,
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The day in UTC, for templates that print it.
pub(crate) fn today() -> Option<Date> {
    date_of(unix_time() / 86_400)
}

/// Day `days` after 1970-01-01. Counts years from March 1st, so that leap days come last.
fn date_of(days: u64) -> Option<Date> {
    let days = i64::try_from(days).ok()? + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (in_month, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    Date::new(i32::try_from(year).ok()?, u8::try_from(month).ok()?, u8::try_from(in_month).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, year, month, day) in [
            (0, 1970, 1, 1),
            (58, 1970, 2, 28),
            (59, 1970, 3, 1),
            (11_016, 2000, 2, 29),
            (20_088, 2024, 12, 31),
        ] {
            assert_eq!(date_of(days), Date::new(year, month, day), "{days}");
        }
    }
}
