//! Who is let in.

use headinfer_server::{
    EngineHandle, EngineOptions, ServeError, ServedModel, Server, ServerConfig, Shutdown,
};
use serde_json::json;

use crate::house::{Setup, start};
use crate::model;

#[tokio::test]
async fn the_key_guards_every_path_but_health_and_the_page() {
    let mut setup = Setup::default();
    setup.config.api_key = Some("open-sesame".into());
    let house = start(setup).await;
    let right = house.with("authorization", "Bearer open-sesame");
    let wrong = house.with("authorization", "Bearer open-sesam");
    let other = house.with("authorization", "Basic open-sesame");
    for path in ["/v1/models", "/metrics", "/v1/completions", "/tokenize", "/v1/sessions/x", "/nowhere"] {
        for client in [&*house, &wrong, &other] {
            let reply = client.get(path).await;
            assert_eq!(
                (reply.status.as_u16(), &reply.json["error"]["code"]),
                (401, &json!("invalid_api_key"))
            );
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
        assert_ne!(right.get(path).await.status, 401);
    }
    assert_eq!(house.get("/health").await.status, 200);
    right.ask("/v1/completions", &json!({"prompt": "x", "max_tokens": 1})).await;
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let house = start(Setup::default()).await;
    let here = format!("http://{}", house.address);
    assert_eq!(house.with("origin", &here).get("/v1/models").await.status, 200);
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(house.with("origin", origin).get("/v1/models").await.status, 403, "{origin}");
    }
    // A name of theirs that points here.
    let rebound = house.with("host", "evil.example").with("origin", "http://evil.example");
    assert_eq!(rebound.get("/v1/models").await.status, 403);
    let reply = house.get("/v1/models").await;
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn an_open_address_is_not_listened_on_without_a_key() {
    let config = ServerConfig { address: ([0, 0, 0, 0], 0).into(), ..ServerConfig::default() };
    let open = |_| Err("no session is needed".to_owned());
    let engine = EngineHandle::start(EngineOptions::default(), model::tokenizer(), open).unwrap();
    let served = ServedModel { id: "tiny".into(), end_tokens: Vec::new() };
    assert!(matches!(Server::bind(config, served, engine).await, Err(ServeError::Config(_))));
}

#[tokio::test]
async fn sessions_that_cannot_be_opened_end_the_server_with_the_reason() {
    let config = ServerConfig { address: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
    let open = |_| Err("no memory for the cache".to_owned());
    let engine = EngineHandle::start(EngineOptions::default(), model::tokenizer(), open).unwrap();
    let served = ServedModel { id: "tiny".into(), end_tokens: Vec::new() };
    let server = Server::bind(config, served, engine).await.unwrap();
    let ended = server.run(&Shutdown::default()).await;
    assert_eq!(ended.unwrap_err().to_string(), "no memory for the cache");
}

#[tokio::test]
async fn session_names_have_a_limit() {
    let house = start(Setup::default()).await;
    for name in ["", &"n".repeat(129)] {
        let reply = house.with("x-session-id", name).post("/v1/completions", &json!({"prompt": "x"})).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!("X-Session-Id")));
    }
}

#[tokio::test]
async fn a_template_that_works_for_ever_costs_its_request_alone() {
    let template = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a * b }}{% endfor %}{% endfor %}";
    let house = start(Setup { template, ..Setup::default() }).await;
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    for path in ["/v1/chat/completions", "/tokenize"] {
        let reply = house.post(path, &chat).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!("messages")));
        assert!(reply.json["error"]["message"].as_str().unwrap().contains("too much work"), "{}", reply.text);
    }
    house.ask("/v1/completions", &json!({"prompt": "x", "max_tokens": 1})).await;
}
