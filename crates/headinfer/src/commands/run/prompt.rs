//! From the user's text to the ids that are prefilled.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use headinfer_core::text::Tokenizer;
use headinfer_core::text::chat::{ChatOptions, Date, Message};

use crate::args::RunArgs;
use crate::error::Failure;

/// Ids of `text`: as it is, or as the user's message of a chat.
///
/// # Errors
/// When the model has no chat template, or the text no tokens.
pub(super) fn ids(args: &RunArgs, tokenizer: &Tokenizer, text: String) -> Result<Vec<u32>> {
    let ids = match args.chat || args.system.is_some() {
        true => tokenizer.encode_raw(&chat(args, tokenizer, text)?)?,
        false => tokenizer.encode(&text)?,
    };
    if ids.is_empty() {
        return Err(Failure::input("the prompt is empty: the tokenizer makes no tokens of it").into());
    }
    Ok(ids)
}

fn chat(args: &RunArgs, tokenizer: &Tokenizer, text: String) -> Result<String> {
    if !tokenizer.has_chat_template() {
        let message = format!("model '{}' has no chat template", args.model.model);
        return Err(Failure::input(message).hint("leave out --chat and --system").into());
    }
    let message =
        |role: &str, content| Message { role: role.into(), content: Some(content), ..Message::default() };
    let system = args.system.clone().map(|text| message("system", text));
    let messages: Vec<Message> = system.into_iter().chain([message("user", text)]).collect();
    let options = ChatOptions { add_generation_prompt: true, today: today(), ..ChatOptions::default() };
    Ok(tokenizer.chat_prompt_with(&messages, &options)?)
}

/// Today in UTC; `None` when the clock is before 1970.
fn today() -> Option<Date> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (year, month, day) = civil(i64::try_from(seconds / 86_400).ok()?);
    Date::new(i32::try_from(year).ok()?, month, day)
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar. Years are counted from
/// March, so that the leap day is a year's last.
fn civil(days: i64) -> (i64, u8, u8) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + i64::from(month <= 2), month as u8, day as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_088), (2024, 12, 31));
        assert_eq!(civil(47_541), (2100, 3, 1));
    }
}
