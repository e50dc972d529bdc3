//! A client of one connection per request.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::header::HOST;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Sent with every request.
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// A status, headers, and JSON (null when it is none).
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Client {
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut headers = self.headers.clone();
        headers.push((name, value.to_owned()));
        Self { headers, ..self.clone() }
    }

    /// Headers of the answer, and its body to come. Dropping it disconnects.
    pub(crate) async fn open(&self, method: Method, path: &str, body: Vec<u8>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        if !self.headers.iter().any(|(name, _)| *name == "host") {
            request = request.header(HOST, self.address.to_string());
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        sender.send_request(request).await.expect("an answer")
    }

    pub(crate) async fn raw(&self, method: Method, path: &str, body: Vec<u8>) -> Reply {
        let (head, body) = self.open(method, path, body).await.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply { status: head.status, headers: head.headers, json, text }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.raw(Method::GET, path, Vec::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.raw(Method::POST, path, body.to_string().into_bytes()).await
    }

    /// The answer's JSON, which must be a success.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
        reply.json
    }

    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Events {
        let response = self.open(Method::POST, path, body.to_string().into_bytes()).await;
        Events::of(response)
    }
}

/// What a stream of server-sent events says.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    Ping,
    Done,
    Chunk(Value),
}

pub(crate) struct Events {
    body: Incoming,
    held: String,
}

impl Events {
    pub(crate) fn of(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), held: String::new() }
    }

    /// `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(end) = self.held.find("\n\n") {
                let event: String = self.held.drain(..end + 2).collect();
                return Some(match event.trim_end() {
                    ": ping" => Said::Ping,
                    "data: [DONE]" => Said::Done,
                    other => {
                        let data = other.strip_prefix("data: ").expect("data");
                        Said::Chunk(serde_json::from_str(data).expect("JSON"))
                    }
                });
            }
            let frame = self.body.frame().await?.expect("a frame");
            if let Ok(data) = frame.into_data() {
                self.held += std::str::from_utf8(&data).expect("UTF-8 within an event");
            }
        }
    }

    /// The next chunk for which `wanted` holds.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        while let Some(said) = self.next().await {
            match said {
                Said::Chunk(chunk) if wanted(&chunk) => return chunk,
                _ => {}
            }
        }
        panic!("the stream ended before");
    }

    /// All chunks; the stream must end with `[DONE]`.
    pub(crate) async fn all(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        while let Some(said) = self.next().await {
            match said {
                Said::Ping => {}
                Said::Chunk(chunk) => chunks.push(chunk),
                Said::Done => {
                    assert_eq!(self.next().await, None, "nothing comes after [DONE]");
                    return chunks;
                }
            }
        }
        panic!("the stream ended without [DONE]: {chunks:?}");
    }
}
