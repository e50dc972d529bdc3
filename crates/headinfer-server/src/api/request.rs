//! What chats and completions have in common: from fields to a job in the queue.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::http::HeaderMap;
use headinfer_core::engine::sample::{Sampling, TokenMask};
use headinfer_core::engine::stop::StopMatcher;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::answer::Answer;
use super::fields::Fields;
use super::format::unsupported;
use super::respond::Early;
use super::{ApiError, App, models};
use crate::sessions::Question;
use crate::worker::{Event, Feed, Job, Refused, Teller};

/// Most likeliest tokens reported with each token.
const TOP_LOGPROBS_MAX: usize = 20;
const SESSION_BYTES_MAX: usize = 128;
/// Fields of OpenAI's and other servers' that would change the answer, and are not read here.
const REFUSED: [&str; 31] = [
    "functions",
    "function_call",
    "audio",
    "prediction",
    "web_search_options",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
    "stop_token_ids",
    "min_tokens",
    "use_beam_search",
    "bad_words",
    "allowed_token_ids",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "include_stop_str_in_output",
    "continue_final_message",
    "chat_template",
    "documents",
    "n_predict",
    "n_probs",
    "mirostat",
    "samplers",
    "xtc_probability",
    "dry_multiplier",
    "dynatemp_range",
    "lora",
];
/// Fields that are not read here, and the value that changes nothing.
static NEUTRAL: LazyLock<[(&str, Value); 12]> = LazyLock::new(|| {
    [
        ("n", json!(1)),
        ("best_of", json!(1)),
        ("frequency_penalty", json!(0)),
        ("presence_penalty", json!(0)),
        ("repeat_penalty", json!(1)),
        ("typical_p", json!(1)),
        ("logit_bias", json!({})),
        ("echo", json!(false)),
        ("suffix", json!("")),
        ("modalities", json!(["text"])),
        ("skip_special_tokens", json!(true)),
        ("add_generation_prompt", json!(true)),
    ]
});
/// Fields that do not bear on what the answer is.
const PRESENTATION: [&str; 6] = ["stream", "stream_options", "return_progress", "user", "metadata", "store"];

/// A request that has been read.
pub(super) struct Request {
    pub(super) ids: Vec<u32>,
    pub(super) max_tokens: usize,
    pub(super) sampling: Sampling,
    pub(super) stops: StopMatcher,
    pub(super) ignore_end: bool,
    pub(super) logprobs: Option<usize>,
    pub(super) mask: Option<Box<dyn TokenMask>>,
    /// `None`: the answer is sent whole.
    pub(super) stream: Option<StreamOptions>,
    /// The name of the work, and what is asked under it.
    pub(super) session: Option<(String, Question)>,
}

/// How an answer is streamed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamOptions {
    /// A last chunk has the usage.
    pub(crate) usage: bool,
    /// Prefill sends chunks of its own.
    pub(crate) progress: bool,
}

impl Request {
    /// Reads all fields but those of the prompt, then lets `ids` make its tokens: what is wrong with a small field is
    /// known before work is done. `name` is the prompt's field. `room`: tokens generated when the request does not say;
    /// `None` is all that the context leaves.
    pub(super) fn read(
        app: &App,
        fields: &Fields<'_>,
        early: Early,
        (name, ids): (&str, impl FnOnce() -> Result<Vec<u32>, ApiError>),
        room: Option<usize>,
    ) -> Result<Self, ApiError> {
        let asked = max_tokens(app, fields)?;
        let (sampling, stops) = (sampling(app, fields)?, stops(fields)?);
        let (ignore_end, stream) = (fields.flag("ignore_eos")?, stream(fields)?);
        early.tell(stream);
        let ids = ids()?;
        let most = room_for(app, name, &ids, asked.unwrap_or(1))?;
        Ok(Self {
            ids,
            max_tokens: asked.unwrap_or_else(|| room.unwrap_or(most).min(most)),
            sampling,
            stops,
            ignore_end,
            logprobs: None,
            mask: None,
            stream,
            session: None,
        })
    }

    /// With the probabilities of each token and of so many likeliest ones.
    pub(super) fn scored(self, logprobs: Option<usize>) -> Self {
        Self { logprobs, ..self }
    }

    /// An answer that a Lark `grammar` derives; errors name the field `param`.
    pub(super) fn obeying(self, app: &App, param: &str, grammar: Option<String>) -> Result<Self, ApiError> {
        let Some(grammar) = grammar else { return Ok(self) };
        let (_, vocab) = app.ready()?;
        let mask = app.grammars.mask(vocab, &grammar).map_err(|why| unsupported(param, &why))?;
        Ok(Self { mask: Some(mask), ..self })
    }

    /// A work with a name, if it has one. `kind` is what else bears on the answer.
    pub(super) fn named(self, session: Option<String>, kind: &str, fields: &Fields<'_>) -> Self {
        static HASHERS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        let asked = || fields.all().filter(|(name, _)| !PRESENTATION.contains(name));
        let hash = |hasher: &RandomState| hasher.hash_one((kind, asked().collect::<Vec<_>>()));
        let session = session.map(|name| (name, Question(HASHERS.each_ref().map(hash))));
        Self { session, ..self }
    }

    /// Puts the job into the queue, or finds the work of its name. Dropping the receiver cancels a job without a name.
    pub(super) fn submit(
        mut self,
        app: &App,
        answer: Answer,
    ) -> Result<(Answer, UnboundedReceiver<Event>), ApiError> {
        let Some((name, question)) = self.session.take() else {
            let (feed, events) = Feed::unnamed();
            self.enqueue(app, None, feed)?;
            return Ok((answer, events));
        };
        let begin = |feed| self.enqueue(app, Some(name.clone()), feed);
        app.sessions.ask(&name, question, answer, begin)
    }

    fn enqueue(self, app: &App, session: Option<String>, feed: Arc<Feed>) -> Result<(), ApiError> {
        let stop_tokens = if self.ignore_end { Vec::new() } else { app.model.end_tokens.clone() };
        let Self { ids, max_tokens, sampling, stops, logprobs, mask, .. } = self;
        let (teller, asked) = (Teller::new(feed), Instant::now());
        let job =
            Job { ids, max_tokens, sampling, stops, stop_tokens, logprobs, mask, session, teller, asked };
        app.shared().submit(job).inspect_err(|refused| {
            if matches!(refused, Refused::Full { .. }) {
                app.shared().counters.turned_away();
            }
        })?;
        Ok(())
    }
}

/// Most tokens that may follow the prompt `ids`, called `name`; at least `least`.
fn room_for(app: &App, name: &str, ids: &[u32], least: usize) -> Result<usize, ApiError> {
    let (context, vocab) = app.ready()?;
    if ids.is_empty() {
        return Err(ApiError::field(name, format!("{name} has no tokens")));
    }
    within(name, ids, vocab)?;
    let left = context.saturating_sub(ids.len());
    if left < least {
        let (have, need) = (ids.len(), ids.len() + least);
        let message =
            format!("{have} tokens of {name} and {least} to generate are {need}; the context is {context}");
        return Err(ApiError::field(name, message).code("context_length_exceeded"));
    }
    Ok(left.min(app.config.limits.max_tokens))
}

/// Refuses what is not there before anything is tokenised: another model, and fields that would change the answer
/// and are not implemented.
pub(super) fn check(app: &App, fields: &Fields<'_>) -> Result<(), ApiError> {
    if let Some(id) = fields.text("model")? {
        models::check(app, id)?;
    }
    for (name, value) in NEUTRAL.iter() {
        fields.refuse_unless(name, value)?;
    }
    // Switched off, or nothing of it.
    let off = |given: &Value| *given == json!(false) || given.as_f64() == Some(0.0);
    match REFUSED.iter().find(|name| fields.get(name).is_some_and(|given| !off(given))) {
        None => Ok(()),
        Some(name) => Err(ApiError::field(*name, format!("{name} is not supported: leave it out"))),
    }
}

/// The name of the work that goes on without a client.
pub(super) fn session(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("x-session-id") else { return Ok(None) };
    match value.to_str() {
        Ok(name) if (1..=SESSION_BYTES_MAX).contains(&name.len()) => Ok(Some(name.to_owned())),
        _ => {
            let message = format!("X-Session-Id must have 1..={SESSION_BYTES_MAX} visible ASCII characters");
            Err(ApiError::field("X-Session-Id", message))
        }
    }
}

/// Token ids of a JSON list called `name`.
pub(super) fn token_ids(name: &str, list: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |(at, value): (usize, &Value)| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| ApiError::field(name, format!("{name}[{at}] must be a token id")))
    };
    list.iter().enumerate().map(id).collect()
}

/// Refuses ids that are none of `vocab` tokens.
pub(super) fn within(name: &str, ids: &[u32], vocab: usize) -> Result<(), ApiError> {
    let Some(at) = ids.iter().position(|id| *id as usize >= vocab) else { return Ok(()) };
    let message = format!("{name}[{at}] is {}: the vocabulary has {vocab} tokens", ids[at]);
    Err(ApiError::field(name, message))
}

/// How many likeliest tokens are asked for by the field `name`.
pub(super) fn top_logprobs(fields: &Fields<'_>, name: &str) -> Result<Option<usize>, ApiError> {
    fields.count(name, 0..=TOP_LOGPROBS_MAX)
}

fn max_tokens(app: &App, fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let range = 1..=app.config.limits.max_tokens;
    let newer = fields.count("max_completion_tokens", range.clone())?;
    Ok(newer.or(fields.count("max_tokens", range)?))
}

fn sampling(app: &App, fields: &Fields<'_>) -> Result<Sampling, ApiError> {
    let defaults = &app.config.defaults;
    // 0 and -1 turn it off, as in llama.cpp and vLLM.
    let top_k = match fields.integer("top_k")? {
        None => defaults.top_k,
        Some(0 | -1) => None,
        Some(k @ 1..) => Some(usize::try_from(k).unwrap_or(usize::MAX)),
        Some(k) => return Err(ApiError::field("top_k", format!("top_k must be -1 or more, not {k}"))),
    };
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(defaults.temperature),
        top_k,
        top_p: fields.number("top_p", 0.0..=1.0)?.or(defaults.top_p),
        min_p: fields.number("min_p", 0.0..=1.0)?.or(defaults.min_p),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?,
        seed: fields.integer("seed")?.map_or_else(fresh_seed, |seed| seed as u64),
    })
}

/// The standard library keys its hashers from the system's randomness.
fn fresh_seed() -> u64 {
    RandomState::new().hash_one(0)
}

fn stops(fields: &Fields<'_>) -> Result<StopMatcher, ApiError> {
    let wrong = || ApiError::field("stop", "stop must be a string or a list of strings");
    let stops = match fields.get("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(list)) => {
            let strings = list.iter().map(|v| v.as_str().map(str::to_owned));
            strings.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    StopMatcher::new(stops).map_err(|why| ApiError::field("stop", why))
}

/// How the answer is streamed; `None`: it is sent whole.
fn stream(fields: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    let (stream, progress) = (fields.flag("stream")?, fields.flag("return_progress")?);
    let usage = match fields.object("stream_options")? {
        Some(_) if !stream => {
            return Err(ApiError::field("stream_options", "stream_options is for stream: true only"));
        }
        Some(options) => options.flag("include_usage")?,
        None => false,
    };
    Ok(stream.then_some(StreamOptions { usage, progress }))
}
