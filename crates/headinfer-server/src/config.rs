//! What a server is told: every value is given, none is read from the environment.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use headinfer_core::units::MIB;
use thiserror::Error;

/// Everything a server is told.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen; port 0 lets the system choose.
    pub address: SocketAddr,
    /// What clients must send as `Authorization: Bearer KEY`, on every path but `/health` and the files of the
    /// page at `/`, which hold nothing of the server's.
    pub api_key: Option<String>,
    /// Listen beyond loopback without a key.
    pub insecure: bool,
    /// What is refused.
    pub limits: Limits,
    /// What a request means that leaves a field out.
    pub defaults: Defaults,
    /// Time between comments on a quiet stream.
    pub ping: Duration,
    /// How long running requests may go on after a shutdown was asked for.
    pub drain: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            api_key: None,
            insecure: false,
            limits: Limits::default(),
            defaults: Defaults::default(),
            ping: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}

/// What is refused.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's body. The default holds four million tokens of text.
    pub body_bytes: usize,
    /// Bytes of all large bodies that are being received or read; more wait.
    pub bodies_bytes: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Time for a request's head to arrive, also the longest rest between two requests of one connection.
    pub head_time: Duration,
    /// Time for a request's body to arrive.
    pub body_time: Duration,
    /// Time for a client to take the next byte of an answer.
    pub write_time: Duration,
    /// Connections open at once; more wait to be accepted.
    pub connections: usize,
    /// Tokens a request may generate.
    pub max_tokens: usize,
    /// Prompts tokenised at the same time; more wait.
    pub tokenizing: usize,
    /// Works with a name (`X-Session-Id`) that are remembered. Those at work are bounded by slots and queue.
    pub sessions: usize,
    /// Bytes of the answers of finished ones.
    pub sessions_bytes: usize,
    /// Bytes of one answer that can be heard again; a longer one is heard by those who listen while it is made.
    pub session_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 64 * MIB as usize,
            bodies_bytes: 256 * MIB as usize,
            head_bytes: 64 << 10,
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(300),
            write_time: Duration::from_secs(120),
            connections: 512,
            max_tokens: 1 << 20,
            tokenizing: 2,
            sessions: 64,
            sessions_bytes: 64 * MIB as usize,
            session_bytes: 16 * MIB as usize,
        }
    }
}

/// What a request means that leaves a field out. `top_k`, `top_p` and `min_p` are off unless set.
#[derive(Clone, Debug)]
pub struct Defaults {
    /// See [`Sampling`](headinfer_core::engine::sample::Sampling).
    pub temperature: f32,
    /// See `temperature`.
    pub top_k: Option<usize>,
    /// See `temperature`.
    pub top_p: Option<f32>,
    /// See `temperature`.
    pub min_p: Option<f32>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, min_p: None }
    }
}

/// A configuration that is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Anyone in reach could use the server.
    #[error(
        "{0} is not a loopback address: set an API key (--api-key), or --insecure to serve anyone without one"
    )]
    Open(IpAddr),
    /// A key that cannot be sent.
    #[error("the API key must be 1..={KEY_BYTES_MAX} visible ASCII characters without spaces")]
    Key,
    /// A limit of nothing.
    #[error("{0} must be at least {1}")]
    Least(&'static str, usize),
}

const KEY_BYTES_MAX: usize = 512;
/// What hyper needs to hold a head.
const HEAD_BYTES_MIN: usize = 8192;

impl ServerConfig {
    /// Refuses what is unsafe or has no meaning.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(key) = &self.api_key
            && !((1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(ConfigError::Key);
        }
        if !self.address.ip().is_loopback() && self.api_key.is_none() && !self.insecure {
            return Err(ConfigError::Open(self.address.ip()));
        }
        let limits = &self.limits;
        for (name, value, least) in [
            ("the body limit", limits.body_bytes, 1),
            ("room for bodies", limits.bodies_bytes, limits.body_bytes),
            ("the head limit", limits.head_bytes, HEAD_BYTES_MIN),
            ("connections", limits.connections, 1),
            ("the token limit", limits.max_tokens, 1),
            ("prompts tokenised at once", limits.tokenizing, 1),
            ("works with a name", limits.sessions, 1),
        ] {
            if value < least {
                return Err(ConfigError::Least(name, least));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> ServerConfig {
        ServerConfig { address: address.parse().unwrap(), ..ServerConfig::default() }
    }

    #[test]
    fn an_open_address_needs_a_key_or_the_word_insecure() {
        assert_eq!(at("127.0.0.1:0").validate(), Ok(()));
        assert_eq!(at("[::1]:0").validate(), Ok(()));
        for open in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80"] {
            assert!(matches!(at(open).validate(), Err(ConfigError::Open(_))));
            assert_eq!(ServerConfig { insecure: true, ..at(open) }.validate(), Ok(()));
            assert_eq!(ServerConfig { api_key: Some("k".into()), ..at(open) }.validate(), Ok(()));
        }
    }

    #[test]
    fn keys_that_cannot_be_sent_are_refused() {
        for key in ["", "two words", "schlüssel", "line\n"] {
            let config = ServerConfig { api_key: Some(key.into()), ..at("0.0.0.0:80") };
            assert_eq!(config.validate(), Err(ConfigError::Key), "{key:?}");
        }
    }
}
