//! The page's files, and what it is told of the cache.

use hyper::Method;
use serde_json::{Value, json};

use crate::client::Client;
use crate::house::{Setup, start, start_loading};
use crate::model::{CHUNK, text};

const KEY: &str = "open-sesame";

/// The page, and all that it and its files name.
async fn files(client: &Client) -> Vec<String> {
    let mut files = vec!["/".to_owned()];
    let mut read = 0;
    while let Some(path) = files.get(read).cloned() {
        let reply = client.get(&path).await;
        assert_eq!(reply.status, 200, "{path}");
        for name in reply.text.split('"').skip(1).step_by(2) {
            let beside = name.strip_prefix("./").filter(|name| name.ends_with(".js"));
            let name = beside.map_or_else(|| name.to_owned(), |name| format!("/page/{name}"));
            if name.starts_with("/page/") && !files.contains(&name) {
                files.push(name);
            }
        }
        read += 1;
    }
    files
}

#[tokio::test]
async fn the_page_is_open_to_all_and_what_it_asks_for_is_not() {
    let mut setup = Setup::default();
    setup.config.api_key = Some(KEY.into());
    let house = start(setup).await;
    let files = files(&house).await;
    assert_eq!(files.len(), 11, "{files:?}");
    for path in [
        "/cache",
        "/page",
        "/page/",
        "/page/main.rs",
        "/page/../metrics",
        "//",
        "/index.html",
        "/page/%6dain.js",
    ] {
        assert_eq!(house.get(path).await.status, 401, "{path}");
    }
    assert_eq!(house.with("authorization", &format!("Bearer {KEY}")).get("/cache").await.status, 200);
    assert_eq!(house.raw(Method::POST, "/", Vec::new()).await.status, 405);
}

#[tokio::test]
async fn the_page_may_load_its_own_files_alone() {
    let house = start(Setup::default()).await;
    for path in files(&house).await {
        let reply = house.get(&path).await;
        let header = |name: &str| reply.headers[name].to_str().expect("text").to_owned();
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let kind = match path.rsplit_once('.') {
            Some((_, "js")) => "text/javascript; charset=utf-8",
            Some((_, "css")) => "text/css; charset=utf-8",
            Some((_, "svg")) => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(header("content-type"), kind, "{path}");
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style=\"", "//cdn"]
        {
            assert!(!reply.text.contains(forbidden), "{forbidden} in {path}");
        }
    }
}

#[tokio::test]
async fn the_cache_is_told_head_by_head_and_slot_by_slot() {
    let house = start(Setup { slots: 2, ..Setup::default() }).await;
    house.ask("/v1/completions", &json!({"prompt": text(1, 3 * CHUNK), "max_tokens": 1})).await;
    let said = house.ask_for_cache().await;
    let cache = &said["cache"];
    assert_eq!(
        (&said["state"], &said["model"], &said["context"]),
        (&json!("ready"), &json!("tiny"), &json!(1024))
    );
    assert_eq!((&said["chat"], &said["waiting"]), (&json!(true), &json!(0)));
    assert_eq!(
        (&cache["layers"], &cache["kv_heads"], &cache["chunk"]),
        (&json!(2), &json!(2), &json!(CHUNK))
    );
    assert_eq!(cache["places"], json!(["hh", "hh"]));
    // K and V of 2 layers of 2 heads of 16 in bf16.
    assert_eq!(cache["bytes_per_token"], 2 * 2 * 2 * 16 * 2);
    let tokens: Vec<&Value> =
        cache["slots"].as_array().expect("a list").iter().map(|slot| &slot["tokens"]).collect();
    assert_eq!(tokens, [&json!(3 * CHUNK), &json!(0)]);
    assert_eq!((&cache["slots"][0]["moving"], &cache["store"]), (&json!({}), &Value::Null));
    assert!(cache["lanes"]["in"]["bytes"].as_u64() > Some(0));
}

#[tokio::test]
async fn a_server_that_loads_says_so_and_shows_no_cache() {
    let house = start_loading(Setup::default()).await;
    let said = house.ask_for_cache().await;
    assert_eq!(
        (&said["state"], &said["context"], &said["cache"]),
        (&json!("loading"), &Value::Null, &Value::Null)
    );
    assert_eq!(house.get("/").await.status, 200);
}

impl Client {
    async fn ask_for_cache(&self) -> Value {
        let reply = self.get("/cache").await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json
    }
}
