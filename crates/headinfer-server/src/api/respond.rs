//! From a request that is being read to its answer. Reading a long prompt takes its time, and who waits for a stream
//! must not be left without a sign of life.

use axum::response::Response;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::answer::{Answer, lost};
use super::body::Whole;
use super::request::{Request, StreamOptions};
use super::shape::Shape;
use super::{ApiError, App};
use crate::stream::{self, Beginning};
use crate::tools::Calls;
use crate::worker::Event;

/// A request that was read, and what takes calls of tools out of its answer.
pub(super) type Read = (Request, Option<Calls>);

/// Told by who reads a request that its answer is to be a stream.
pub(super) struct Early(oneshot::Sender<StreamOptions>);

impl Early {
    pub(super) fn tell(self, stream: Option<StreamOptions>) {
        if let Some(options) = stream {
            // Who left needs none.
            let _ = self.0.send(options);
        }
    }
}

/// Reads a request from `body`, queues it, and answers: with everything at the end, or with a stream. That begins when
/// the request is queued or refused, but not later than the time between two pings: then what is wrong with the
/// request is an event of the stream. `named`: the work goes on when the client leaves while it is read.
///
/// # Errors
/// Those of `read`, and those of the queue.
pub(super) async fn respond(
    app: App,
    (shape, named): (Shape, bool),
    body: Whole,
    read: impl FnOnce(&App, &[u8], Early) -> Result<Read, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (early, streamed) = oneshot::channel();
    let ping = app.config.ping;
    let begin = async move {
        let (request, calls) = app.aside(body, |app, bytes| read(app, bytes, Early(early))).await?;
        let (options, scored) = (request.stream, request.logprobs.is_some());
        let (answer, events) = request.submit(&app, Answer::new(&app, shape, calls))?;
        Ok(Begun { answer, events, options, scored })
    };
    let mut begun: Beginning<Begun> = match named {
        false => Box::pin(begin),
        true => {
            let task = tokio::spawn(begin);
            Box::pin(async { task.await.unwrap_or_else(|_| Err(lost())) })
        }
    };
    let late = async {
        sleep(ping).await;
        streamed.await
    };
    tokio::select! {
        begun = &mut begun => {
            let Begun { answer, events, options, scored } = begun?;
            match options {
                Some(options) => Ok(stream::respond(answer, options, events, ping)),
                None => answer.whole(events, scored).await,
            }
        }
        Ok(options) = late => {
            let begun = Box::pin(async { begun.await.map(|begun| (begun.answer, begun.events)) });
            Ok(stream::respond_early(begun, options, ping))
        }
    }
}

struct Begun {
    answer: Answer,
    events: UnboundedReceiver<Event>,
    /// `None`: the answer is sent whole.
    options: Option<StreamOptions>,
    scored: bool,
}
