//! Who may ask: the key, and no web page of another origin.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::{ApiError, App};
use crate::web;

/// Open to all, as the page's own files are: load balancers have no key.
pub(crate) const OPEN_PATH: &str = "/health";

/// Lets a request through or answers it with 401 or 403.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let open = path == OPEN_PATH || web::is_file(path);
    if !open && let Err(error) = check(&app, request.headers()) {
        return error.into_response();
    }
    next.run(request).await
}

fn check(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    // Without CORS a foreign page cannot read answers, but its "simple" requests would still be served.
    if headers.contains_key(ORIGIN) {
        let origin = text(ORIGIN).and_then(|o| o.split_once("://")).map(|(_, authority)| authority);
        if origin.is_none() || origin != text(HOST) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "requests of pages of another origin are refused",
            ));
        }
    }
    let Some(key) = &app.config.api_key else {
        // A page could point a name of its own at 127.0.0.1: then Origin and Host agree, but on that name.
        return match app.config.address.ip().is_loopback() && !text(HOST).is_none_or(is_local) {
            true => Err(ApiError::new(StatusCode::FORBIDDEN, "this server answers to localhost only")),
            false => Ok(()),
        };
    };
    match text(AUTHORIZATION).and_then(bearer) {
        Some(given) if equal(given.as_bytes(), key.as_bytes()) => Ok(()),
        Some(_) => Err(ApiError::key("the API key is wrong")),
        None => Err(ApiError::key("an API key is needed: send Authorization: Bearer KEY")),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => host.split(':').next(),
    };
    matches!(name, Some(name) if name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

/// Time depends on the length of what was given alone, not on where it differs.
fn equal(given: &[u8], key: &[u8]) -> bool {
    let mut difference = given.len() ^ key.len();
    for (i, byte) in given.iter().enumerate() {
        let wanted = key[i % key.len()];
        difference |= usize::from(std::hint::black_box(byte ^ wanted));
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_is_equal() {
        assert!(equal(b"secret", b"secret"));
        for wrong in [&b""[..], b"secre", b"secrets", b"Secret", b"secretsecret"] {
            assert!(!equal(wrong, b"secret"));
        }
    }

    #[test]
    fn local_names_are_told_from_others() {
        for local in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.1.2.3", "[::1]:80", "[::1]"] {
            assert!(is_local(local), "{local}");
        }
        for other in ["evil.example", "localhost.evil.example:80", "10.0.0.1", "[fe80::1]:80", ""] {
            assert!(!is_local(other), "{other}");
        }
    }
}
