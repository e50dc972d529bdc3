//! A connection whose refused heads get words. Hyper answers a head that it cannot read by itself, with a status and
//! nothing else; here the body is put to it that every other error has, and the client is given time to hear it.
//!
//! Must not know requests: hyper's own answers are told by their bytes, which no handler writes.

use std::io::{ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::api::ApiError;

/// What hyper writes of an answer without a body.
const EMPTY: &str = "content-length: 0\r\n";
/// Header fields that hyper takes.
const FIELDS_MAX: usize = 100;
/// For what a refused client still sends: were the connection closed with bytes on their way, the answer could be
/// lost with it.
const LINGER: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Worded<S> {
    stream: S,
    head_bytes: usize,
    /// Written in place of a bare one, from where it stands.
    answer: Option<(Vec<u8>, usize)>,
    refused: bool,
    /// Set while the end waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Worded<S> {
    /// `head_bytes`: what a head may have.
    pub(crate) fn new(stream: S, head_bytes: usize) -> Self {
        Self { stream, head_bytes, answer: None, refused: false, waiting: None }
    }
}

/// `head` with a body, if it is one of hyper's own answers.
fn worded(head: &[u8], head_bytes: usize) -> Option<Vec<u8>> {
    let head = str::from_utf8(head).ok().filter(|head| head.ends_with("\r\n\r\n"))?;
    let (before, after) = head.split_once(EMPTY)?;
    let status = before.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    let (status, message) = match status {
        "400" => (StatusCode::BAD_REQUEST, "the request's head cannot be read as HTTP/1.1".to_owned()),
        "414" => (StatusCode::URI_TOO_LONG, "the request's path is too long".to_owned()),
        "431" => {
            let most = format!("at most {head_bytes} bytes and {FIELDS_MAX} fields");
            let message = format!("the request's head is too large: {most}");
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
        }
        _ => return None,
    };
    let body = ApiError::new(status, message).body().to_string();
    let kind = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    Some([before, &kind, after, &body].concat().into_bytes())
}

impl<S: AsyncRead + Unpin> AsyncRead for Worded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let this = &mut *self;
        let answer = this.answer.take().or_else(|| Some((worded(bytes, this.head_bytes)?, 0)));
        let Some((answer, mut done)) = answer else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        this.refused = true;
        while done < answer.len() {
            match Pin::new(&mut this.stream).poll_write(context, &answer[done..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => done += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    this.answer = Some((answer, done));
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        match parts {
            [alone] => self.poll_write(context, alone),
            _ => Pin::new(&mut self.stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = &mut *self;
        if this.waiting.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        if !this.refused {
            return Poll::Ready(Ok(()));
        }
        let waiting = this.waiting.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut bytes = [0; 4096];
        while waiting.as_mut().poll(context).is_pending() {
            let mut rest = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut this.stream).poll_read(context, &mut rest));
            if read.is_err() || rest.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
                        date: Tue, 24 Nov 2026 12:00:00 GMT\r\n\r\n";

    #[tokio::test]
    async fn a_bare_answer_gets_a_body_however_slowly_it_is_taken() {
        let (near, mut far) = tokio::io::duplex(10);
        let mut worded = Worded::new(near, 12_345);
        let mut said = String::new();
        let write = async {
            worded.write_all(BARE.as_bytes()).await.unwrap();
            worded.shutdown().await.unwrap();
        };
        let hear = async {
            far.write_all(&[b'x'; 10]).await.unwrap();
            far.read_to_string(&mut said).await.unwrap();
            drop(far);
        };
        tokio::join!(write, hear);
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{said}");
        assert!(head.contains("connection: close\r\n") && head.ends_with("GMT"), "{said}");
        let error = &serde_json::from_str::<Value>(body).unwrap()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains("12345 bytes"));
    }

    #[test]
    fn nothing_else_is_touched() {
        assert!(worded(BARE.as_bytes(), 1).is_some());
        for other in [
            BARE.replace("431", "200"),
            BARE.replace("431", "503"),
            BARE.replace(": 0", ": 10"),
            BARE.to_owned() + "{}",
            format!("data: {BARE}"),
        ] {
            assert!(worded(other.as_bytes(), 1).is_none(), "{other}");
        }
    }
}
