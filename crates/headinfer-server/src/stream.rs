//! Server-sent events: an answer's chunks as they come, and comments on a wall clock while none does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::HeaderName;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::api::{Answer, StreamOptions, lost};
use crate::worker::Event;

/// Proxies must pass chunks on as they come.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Headers now, then the chunks of `events`. The timer of the comments is the async runtime's: whatever the engine
/// does, it ticks.
pub(crate) fn respond(
    mut answer: Answer,
    options: StreamOptions,
    events: UnboundedReceiver<Event>,
    ping: Duration,
) -> Response {
    let ready = answer.first(options).map(|chunk| data(&chunk)).into_iter().collect();
    let chunks = Chunks { answer, options, events, ready, ended: false };
    let stream = Sse::new(chunks).keep_alive(KeepAlive::new().interval(ping).text("ping"));
    ([UNBUFFERED], stream).into_response()
}

/// Dropped when the client leaves, which closes `events` and so ends the job.
struct Chunks {
    answer: Answer,
    options: StreamOptions,
    events: UnboundedReceiver<Event>,
    ready: VecDeque<sse::Event>,
    ended: bool,
}

impl Stream for Chunks {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while this.ready.is_empty() && !this.ended {
            match std::task::ready!(this.events.poll_recv(context)) {
                Some(event) => this.take(event),
                None => {
                    this.ready.push_back(data(&lost().body()));
                    this.ended = true;
                }
            }
        }
        Poll::Ready(this.ready.pop_front().map(Ok))
    }
}

impl Chunks {
    fn take(&mut self, event: Event) {
        let complete = matches!(event, Event::Done { .. });
        let (chunks, ended) = self.answer.chunks(event, self.options);
        self.ready.extend(chunks.iter().map(data));
        if complete {
            self.ready.push_back(sse::Event::default().data("[DONE]"));
        }
        self.ended = ended;
    }
}

fn data(value: &Value) -> sse::Event {
    sse::Event::default().data(value.to_string())
}
