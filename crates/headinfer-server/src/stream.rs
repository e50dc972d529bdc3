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

use crate::api::{Answer, ApiError, StreamOptions, lost};
use crate::worker::Event;

/// Proxies must pass chunks on as they come.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Work to be done before there is an answer.
pub(crate) type Beginning<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send>>;
/// Makes chunks of events.
type Told = (Answer, UnboundedReceiver<Event>);

/// Headers now, then the chunks of `events`. The timer of the comments is the async runtime's: whatever the engine
/// does, it ticks.
pub(crate) fn respond(
    mut answer: Answer,
    options: StreamOptions,
    events: UnboundedReceiver<Event>,
    ping: Duration,
) -> Response {
    let ready = first(&mut answer, options);
    comments(Chunks { source: Source::Told((answer, events)), options, ready, ended: false }, ping)
}

/// As [`respond`], before it is known what there is to tell.
pub(crate) fn respond_early(begun: Beginning<Told>, options: StreamOptions, ping: Duration) -> Response {
    let source = Source::Begun(begun);
    comments(Chunks { source, options, ready: VecDeque::new(), ended: false }, ping)
}

fn comments(chunks: Chunks, ping: Duration) -> Response {
    ([UNBUFFERED], Sse::new(chunks).keep_alive(KeepAlive::new().interval(ping).text("ping"))).into_response()
}

fn first(answer: &mut Answer, options: StreamOptions) -> VecDeque<sse::Event> {
    answer.first(options).map(|chunk| data(&chunk)).into_iter().collect()
}

/// Dropped when the client leaves, which closes the events and so ends the job.
struct Chunks {
    source: Source,
    options: StreamOptions,
    ready: VecDeque<sse::Event>,
    ended: bool,
}

enum Source {
    Begun(Beginning<Told>),
    Told(Told),
}

impl Stream for Chunks {
    type Item = Result<sse::Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while this.ready.is_empty() && !this.ended {
            match &mut this.source {
                Source::Begun(begun) => match std::task::ready!(begun.as_mut().poll(context)) {
                    Ok((mut answer, events)) => {
                        this.ready = first(&mut answer, this.options);
                        this.source = Source::Told((answer, events));
                    }
                    Err(error) => this.end(&error),
                },
                Source::Told((answer, events)) => match std::task::ready!(events.poll_recv(context)) {
                    Some(event) => {
                        let complete = matches!(event, Event::Done { .. });
                        let (chunks, ended) = answer.chunks(event, this.options);
                        this.ready.extend(chunks.iter().map(data));
                        if complete {
                            this.ready.push_back(sse::Event::default().data("[DONE]"));
                        }
                        this.ended = ended;
                    }
                    None => this.end(&lost()),
                },
            }
        }
        Poll::Ready(this.ready.pop_front().map(Ok))
    }
}

impl Chunks {
    fn end(&mut self, error: &ApiError) {
        self.ready.push_back(data(&error.body()));
        self.ended = true;
    }
}

fn data(value: &Value) -> sse::Event {
    sse::Event::default().data(value.to_string())
}
