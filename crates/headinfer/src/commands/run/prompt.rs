//! From the user's text to the ids that are prefilled.

use anyhow::Result;
use headinfer_core::text::Tokenizer;
use headinfer_core::text::chat::{ChatOptions, Date, Message};

use crate::args::RunArgs;
use crate::date;
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

/// Today, for a template that prints it.
fn today() -> Option<Date> {
    let (year, month, day) = date::today()?;
    Date::new(i32::try_from(year).ok()?, month, day)
}
