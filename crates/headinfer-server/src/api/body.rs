//! Bodies: how they arrive, how many at once, and where they are read.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{ApiError, App};
use crate::config::Limits;

/// Bodies up to this wait for no other: short requests are not stuck behind long ones. All connections together
/// hold little of them.
const LIGHT_BYTES: usize = 64 << 10;
/// The unit in which room for bodies is counted; a semaphore counts in u32.
const ROOM_BYTES: usize = 1 << 10;

/// What bounds the memory and the time that bodies take.
pub(super) struct Bodies {
    /// For bodies, in [`ROOM_BYTES`].
    room: Arc<Semaphore>,
    /// Large bodies that may be read at once.
    readers: Arc<Semaphore>,
    all: u32,
}

/// A whole body, and its share of the room for all.
pub(super) struct Whole {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(super) fn new(limits: &Limits) -> Self {
        let all = units(limits.bodies_bytes);
        let (room, readers) = (Semaphore::new(all as usize), Semaphore::new(limits.tokenizing));
        Self { room: Arc::new(room), readers: Arc::new(readers), all }
    }
}

impl App {
    /// The body, whole.
    ///
    /// # Errors
    /// 415 when it says that it is no JSON; 413; 408 when it takes too long; 429 when others hold the memory for too
    /// long; 400 when it ends early or is no body.
    pub(super) async fn body(&self, headers: &HeaderMap, body: Body) -> Result<Whole, ApiError> {
        check_type(headers)?;
        let limits = &self.config.limits;
        let declared = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let bytes = declared.unwrap_or(limits.body_bytes);
        if bytes > limits.body_bytes {
            return Err(too_large(limits.body_bytes));
        }
        let room = match bytes > LIGHT_BYTES {
            true => Some(self.room(bytes, limits.body_time).await?),
            false => None,
        };
        let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
        let bytes = timeout(limits.body_time, collect(body, limits.body_bytes)).await.map_err(late)??;
        Ok(Whole { bytes, _room: room })
    }

    async fn room(&self, bytes: usize, patience: Duration) -> Result<OwnedSemaphorePermit, ApiError> {
        let share = units(bytes).min(self.bodies.all);
        let room = timeout(patience, self.bodies.room.clone().acquire_many_owned(share)).await;
        let full = || {
            let message = "other large requests are being read: try again later";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        };
        // The semaphore is never closed.
        room.ok().and_then(Result::ok).ok_or_else(full)
    }

    /// Reads a body beside the async threads: JSON, templates and tokenisers take their time. Of large bodies only
    /// some are read at once.
    pub(super) async fn aside<T: Send + 'static>(
        &self,
        body: Whole,
        read: impl FnOnce(&App, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let broken = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read");
        let permit = match body.bytes.len() > LIGHT_BYTES {
            true => Some(self.bodies.readers.clone().acquire_owned().await.map_err(|_| broken())?),
            false => None,
        };
        let app = self.clone();
        let work = move || {
            let _permit = permit;
            read(&app, &body.bytes)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| broken())?
    }
}

/// What says nothing is taken for JSON, and so is what curl says of all that it is given with `-d`.
fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let told = |name| {
        headers.get(name).map(|v| v.to_str().unwrap_or_default().split(';').next().unwrap_or_default())
    };
    let one_of = |told: Option<&str>, known: &[&str]| {
        told.is_none_or(|told| known.iter().any(|known| told.trim().eq_ignore_ascii_case(known)))
    };
    let wrong = |message| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    match () {
        () if !one_of(told(CONTENT_TYPE), &["application/json", "application/x-www-form-urlencoded"]) => {
            wrong("the body must be JSON: send Content-Type: application/json")
        }
        () if !one_of(told(CONTENT_ENCODING), &["identity"]) => {
            wrong("the body must not be compressed: leave Content-Encoding out")
        }
        () => Ok(()),
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(ROOM_BYTES)).unwrap_or(u32::MAX)
}

async fn collect(mut body: Body, most: usize) -> Result<Bytes, ApiError> {
    let mut whole = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let broken = |e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body did not arrive: {e}"));
        // Trailers are not asked for.
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if whole.len() + data.len() > most {
            return Err(too_large(most));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.into())
}

fn too_large(most: usize) -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {most} bytes"))
}
