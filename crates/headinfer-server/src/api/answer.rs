//! An answer, whole or in chunks.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::Response;
use headinfer_core::text::Tokenizer;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::request::StreamOptions;
use super::shape::Shape;
use super::{ApiError, App, written};
use crate::model::unix_time;
use crate::tools::{Calls, Said};
use crate::worker::{Event, FinishReason, Scored, Usage};

/// Makes JSON of one job's events.
#[derive(Clone)]
pub(crate) struct Answer {
    shape: Shape,
    /// Unlike any other answer's.
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Characters of text given out, for the offsets of completions.
    offset: usize,
    /// Takes calls of tools out of the text, and counts them.
    calls: Option<Calls>,
    called: usize,
}

/// Longer answers are written beside the async threads.
const LIGHT_BYTES: usize = 32 << 10;

impl Answer {
    pub(super) fn new(app: &App, shape: Shape, calls: Option<Calls>) -> Self {
        Self {
            shape,
            id: app.answer_id(),
            created: unix_time(),
            model: app.model.id.clone(),
            tokenizer: app.engine.tokenizer().clone(),
            offset: 0,
            calls,
            called: 0,
        }
    }

    /// Everything, at the end.
    pub(super) async fn whole(
        self,
        mut events: UnboundedReceiver<Event>,
        scored: bool,
    ) -> Result<Response, ApiError> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        while let Some(event) = events.recv().await {
            match event {
                Event::Progress { .. } => {}
                Event::Text { text: piece, tokens: more } => {
                    text += &piece;
                    tokens.extend(more);
                }
                Event::Done { reason, usage } => {
                    let light = text.len() + size_of_val(&*tokens) <= LIGHT_BYTES;
                    let write = move || self.complete(&text, scored.then_some(&*tokens), reason, usage);
                    let json = match light {
                        true => write(),
                        false => tokio::task::spawn_blocking(write).await.map_err(|_| lost())?,
                    };
                    return Ok(written(StatusCode::OK, json));
                }
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
        Err(lost())
    }

    fn complete(
        mut self,
        text: &str,
        tokens: Option<&[Scored]>,
        reason: FinishReason,
        used: Usage,
    ) -> String {
        let (mut content, mut calls) = (String::new(), Vec::new());
        for said in self.read(text).into_iter().chain(self.rest()) {
            match said {
                Said::Text(text) => content += &text,
                Said::Call(name) => calls.push((name, String::new())),
                Said::Arguments(more) => calls.last_mut().into_iter().for_each(|(_, known)| *known += &more),
            }
        }
        let call = |(at, (name, arguments)): (usize, (String, String))| {
            let mut call = self.shape.call(&self.id, at, &name);
            call["function"]["arguments"] = arguments.into();
            call
        };
        let calls: Vec<Value> = calls.into_iter().enumerate().map(call).collect();
        let (logprobs, reason) = (self.logprobs(tokens), self.reason(reason));
        let mut body = self.object(self.shape.whole_name());
        body["choices"] = json!([self.shape.whole_choice(&content, calls, logprobs, reason)]);
        body["usage"] = usage(used);
        body.to_string()
    }

    /// What a stream begins with, before there is any text.
    pub(crate) fn first(&mut self, options: StreamOptions) -> Option<Value> {
        let choice = self.shape.first_choice()?;
        Some(self.chunk(choice, options))
    }

    /// What a stream says of an event, and whether nothing comes after.
    pub(crate) fn chunks(&mut self, event: Event, options: StreamOptions) -> (Vec<Value>, bool) {
        match event {
            Event::Progress { total, cache, processed, time_ms } if options.progress => {
                let mut chunk = self.chunk(self.shape.chunk_choice("", Value::Null, None), options);
                chunk["prompt_progress"] =
                    json!({"total": total, "cache": cache, "processed": processed, "time_ms": time_ms});
                (vec![chunk], false)
            }
            Event::Progress { .. } => (Vec::new(), false),
            Event::Text { text, tokens } => {
                let logprobs = self.logprobs(Some(&*tokens).filter(|tokens| !tokens.is_empty()));
                let said = self.read(&text);
                (self.said(said, logprobs, options), false)
            }
            Event::Done { reason, usage } => {
                let rest = self.rest();
                let mut chunks = self.said(rest, Value::Null, options);
                chunks.extend(self.last(reason, usage, options));
                (chunks, true)
            }
            Event::Failed(failure) => (vec![ApiError::from(failure).body()], true),
        }
    }

    /// Chunks of what was said; the first has the `logprobs`, which may be those of text that is held back.
    fn said(&mut self, said: Vec<Said>, logprobs: Value, options: StreamOptions) -> Vec<Value> {
        let (mut logprobs, mut chunks) = (Some(logprobs).filter(|p| !p.is_null()), Vec::new());
        for said in said {
            let logprobs = logprobs.take().unwrap_or_default();
            let choice = match said {
                Said::Text(text) => self.shape.chunk_choice(&text, logprobs, None),
                Said::Call(name) => {
                    let at = self.called;
                    self.called += 1;
                    self.shape.call_choice(at, self.shape.call(&self.id, at, &name), logprobs)
                }
                Said::Arguments(more) => {
                    let more = json!({"function": {"arguments": more}});
                    self.shape.call_choice(self.called.saturating_sub(1), more, logprobs)
                }
            };
            chunks.push(self.chunk(choice, options));
        }
        let silent =
            logprobs.map(|logprobs| self.chunk(self.shape.chunk_choice("", logprobs, None), options));
        chunks.extend(silent);
        chunks
    }

    fn last(&mut self, reason: FinishReason, used: Usage, options: StreamOptions) -> Vec<Value> {
        let choice = self.shape.chunk_choice("", Value::Null, Some(self.reason(reason)));
        let mut chunks = vec![self.chunk(choice, options)];
        if options.usage {
            let mut chunk = self.object(self.shape.chunk_name());
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(used);
            chunks.push(chunk);
        }
        chunks
    }

    fn read(&mut self, text: &str) -> Vec<Said> {
        match &mut self.calls {
            Some(calls) => calls.push(text),
            None if text.is_empty() => Vec::new(),
            None => vec![Said::Text(text.to_owned())],
        }
    }

    fn rest(&mut self) -> Vec<Said> {
        self.calls.as_mut().map(Calls::finish).unwrap_or_default()
    }

    fn reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop if self.calls.as_ref().is_some_and(Calls::called) => "tool_calls",
            reason => reason.name(),
        }
    }

    fn chunk(&self, choice: Value, options: StreamOptions) -> Value {
        let mut chunk = self.object(self.shape.chunk_name());
        chunk["choices"] = json!([choice]);
        if options.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn object(&self, name: &str) -> Value {
        let Self { id, created, model, .. } = self;
        let id = format!("{}-{id}", self.shape.id_prefix());
        json!({"id": id, "object": name, "created": created, "model": model})
    }

    fn logprobs(&mut self, tokens: Option<&[Scored]>) -> Value {
        tokens.map_or(Value::Null, |tokens| self.shape.logprobs(&self.tokenizer, tokens, &mut self.offset))
    }
}

/// The engine ended without a word: it can only have panicked.
pub(crate) fn lost() -> ApiError {
    ApiError::from(crate::worker::Failure::Lost)
}

fn usage(usage: Usage) -> Value {
    let Usage { prompt, cached, completion } = usage;
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}
