//! An answer, whole or in chunks.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::Response;
use headinfer_core::text::Tokenizer;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::request::{Request, StreamOptions};
use super::shape::Shape;
use super::{ApiError, App, json as response};
use crate::model::unix_time;
use crate::stream;
use crate::worker::{Event, FinishReason, Scored, Usage};

/// Makes JSON of one job's events.
pub(crate) struct Answer {
    shape: Shape,
    id: String,
    created: u64,
    model: String,
    tokenizer: Arc<Tokenizer>,
    /// Characters of text given out, for the offsets of completions.
    offset: usize,
}

impl Answer {
    pub(super) fn new(app: &App, shape: Shape) -> Self {
        Self {
            shape,
            id: app.answer_id(shape.id_prefix()),
            created: unix_time(),
            model: app.model.id.clone(),
            tokenizer: app.engine.tokenizer().clone(),
            offset: 0,
        }
    }

    /// Queues the request and answers it: at once with a stream, or with everything at the end.
    pub(super) async fn respond(
        self,
        app: &App,
        request: Request,
        session: Option<String>,
    ) -> Result<Response, ApiError> {
        let options = request.stream;
        let scored = request.logprobs.is_some();
        let events = request.submit(app, session)?;
        match options {
            Some(options) => Ok(stream::respond(self, options, events, app.config.ping)),
            None => self.whole(events, scored).await,
        }
    }

    async fn whole(
        mut self,
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
                Event::Done { reason, usage: used } => {
                    let scored = scored.then_some(tokens.as_slice());
                    let mut body = self.object(self.shape.whole_name());
                    let logprobs = self.logprobs(scored);
                    body["choices"] = json!([self.shape.whole_choice(&text, logprobs, reason.name())]);
                    body["usage"] = usage(used);
                    return Ok(response(StatusCode::OK, &body));
                }
                Event::Failed(failure) => return Err(failure.into()),
            }
        }
        Err(lost())
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
                let logprobs = self.logprobs(Some(&tokens).filter(|t| !t.is_empty()).map(Vec::as_slice));
                (vec![self.chunk(self.shape.chunk_choice(&text, logprobs, None), options)], false)
            }
            Event::Done { reason, usage } => (self.last(reason, usage, options), true),
            Event::Failed(failure) => (vec![ApiError::from(failure).body()], true),
        }
    }

    fn last(&mut self, reason: FinishReason, used: Usage, options: StreamOptions) -> Vec<Value> {
        let mut chunks =
            vec![self.chunk(self.shape.chunk_choice("", Value::Null, Some(reason.name())), options)];
        if options.usage {
            let mut chunk = self.object(self.shape.chunk_name());
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(used);
            chunks.push(chunk);
        }
        chunks
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
        json!({"id": id, "object": name, "created": created, "model": model})
    }

    fn logprobs(&mut self, tokens: Option<&[Scored]>) -> Value {
        tokens.map_or(Value::Null, |tokens| self.shape.logprobs(&self.tokenizer, tokens, &mut self.offset))
    }
}

/// The engine ended without a word: it can only have panicked.
pub(crate) fn lost() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine failed while it worked on this request")
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
