//! Who is refused while still sending must hear why: a connection that is closed with bytes on their way is reset, and
//! the answer is lost with it. So what is left of the body of a refused request is read, and thrown away.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;

/// In all, and for the next piece: whoever sends more slowly is cut off.
const LINGER: Duration = Duration::from_secs(10);
const PIECE: Duration = Duration::from_secs(1);

/// Lets a request through, and reads the rest of its body when it was refused.
pub(crate) async fn linger(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let back = Arc::new(Mutex::new(None));
    // Who asks first sends nothing unless the body is read.
    let asks = asks(&head.headers);
    let lent = Lent { body, touched: !asks, back: back.clone() };
    let response = next.run(Request::from_parts(head, Body::new(lent))).await;
    let refused = response.status().is_client_error() || response.status().is_server_error();
    // Who was too slow has been waited for.
    if refused && response.status() != StatusCode::REQUEST_TIMEOUT {
        let rest = back.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(rest) = rest {
            // What comes of it does not matter.
            let _ = timeout(LINGER, discard(rest)).await;
        }
    }
    response
}

fn asks(headers: &HeaderMap) -> bool {
    headers.get(EXPECT).is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

async fn discard(mut body: Body) {
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let Ok(Some(Ok(_))) = timeout(PIECE, next).await else { return };
    }
}

/// A body that comes back when it is dropped, if it was not read to its end.
struct Lent {
    body: Body,
    /// It is sent, whether it is read or not.
    touched: bool,
    back: Arc<Mutex<Option<Body>>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.touched = true;
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.touched && !self.body.is_end_stream() {
            let body = std::mem::take(&mut self.body);
            *self.back.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
