//! The page at `/`: files that are part of the binary. They hold nothing of the server's or its users', so they are
//! open to all; whatever they ask of the server is asked with the key. This room must not know the engine.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

/// Path, type and content.
type File = (&'static str, &'static str, &'static str);

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file `page/NAME` under `/page/NAME`.
macro_rules! file {
    ($name:literal, $kind:expr) => {
        (concat!("/page/", $name), $kind, include_str!(concat!("page/", $name)))
    };
}

const FILES: [File; 11] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    file!("page.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("main.js", SCRIPT),
    file!("server.js", SCRIPT),
    file!("work.js", SCRIPT),
    file!("document.js", SCRIPT),
    file!("keep.js", SCRIPT),
    file!("pace.js", SCRIPT),
    file!("talk.js", SCRIPT),
    file!("map.js", SCRIPT),
];

/// The page may load its own files and ask this server; nothing else, and no text becomes markup or script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";

/// With each file. A newer server has newer files: they are asked for again.
const HEADERS: [(HeaderName, &str); 4] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-cache"),
];

/// Whether the page has a file at `path`.
pub(crate) fn is_file(path: &str) -> bool {
    FILES.iter().any(|(known, _, _)| *known == path)
}

/// All files.
pub(crate) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        router.route(path, get(async move || (HEADERS, [(CONTENT_TYPE, kind)], content)))
    })
}
