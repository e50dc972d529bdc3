//! Thousands of requests with one thing or another wrong, drawn from a seed: each has an answer, a 4xx has OpenAI's
//! shape, and the server lives.

use hyper::Method;
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::house::{Setup, start};
use crate::malformed::{draw, full, survives};

const REQUESTS: u64 = 6000;
const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];

/// Draws without end.
struct Dice(u64);

impl Dice {
    fn of(request: u64) -> Self {
        Self(request * 1000)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 += 1;
        (draw(self.0) >> 16) as usize % n
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// A small request that most paths would serve, or now and then one with a grammar.
fn sane(dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => full(),
        _ => {
            json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "tokens": [1, 2],
            "max_tokens": 1, "temperature": 0.5, "stop": ["x"], "stream": false, "logprobs": null,
            "stream_options": null, "tools": null, "tool_choice": null, "response_format": null})
        }
    }
}

/// JSON, and what is not quite JSON, to stand where something else should.
fn odd(dice: &mut Dice) -> String {
    let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    let (wide, long) = (json!(vec![json!({"role": "user"}); 300]), "a".repeat(3000));
    match dice.below(30) {
        0 => "1e999".into(),
        1 => "-1e308".into(),
        2 => u64::MAX.to_string(),
        3 => i64::MIN.to_string(),
        4 => "123456789012345678901234567890".into(),
        5 => "NaN".into(),
        6 => "-Infinity".into(),
        7 => r#""\ud800""#.into(),
        8 => r#""\udc00\ud800""#.into(),
        9 => r#""\u0000\u001b""#.into(),
        10 => "\"\u{1f600}\u{202e}\"".into(),
        11 => deep(100),
        12 => deep(10_000),
        13 => wide.to_string(),
        14 => json!(long).to_string(),
        15 => "null".into(),
        16 => "true".into(),
        17 => "{}".into(),
        18 => "[]".into(),
        19 => "\"\"".into(),
        20 => "0".into(),
        21 => "-1".into(),
        22 => "0.5".into(),
        23 => "[null]".into(),
        24 => "[[]]".into(),
        25 => "[\"\", \"\"]".into(),
        26 => r#"{"a": 1, "a": 2}"#.into(),
        27 => r#"{"type": "function", "function": {"name": "\ud83d"}}"#.into(),
        28 => r#"[{"role": "user", "content": [{"type": "text"}]}]"#.into(),
        _ => r#"{"type": "json_schema", "json_schema": {"schema": {"$ref": "/"}}}"#.into(),
    }
}

/// `body` with one value, at any depth, replaced by something odd.
fn misplaced(dice: &mut Dice, mut body: Value) -> Vec<u8> {
    const MARK: &str = "\u{2318}";
    let mut at = &mut body;
    loop {
        let inner = match &*at {
            Value::Object(map) => map.len(),
            Value::Array(list) => list.len(),
            _ => 0,
        };
        if inner == 0 || dice.below(4) == 0 {
            break;
        }
        let which = dice.below(inner);
        at = match at {
            Value::Object(map) => map.values_mut().nth(which).unwrap(),
            other => &mut other[which],
        };
    }
    *at = json!(MARK);
    body.to_string().replace(&json!(MARK).to_string(), &odd(dice)).into_bytes()
}

/// `bytes` after a few changes.
fn changed(dice: &mut Dice, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=dice.below(3) {
        let at = dice.below(bytes.len().max(1)).min(bytes.len());
        let end = (at + dice.below(9)).min(bytes.len());
        let put: &[u8] = match dice.below(8) {
            0 => &[dice.below(256) as u8],
            1 => b"\xff\xfe",
            2 => b"99999999999999999999",
            3 => b"[{\"a\":[",
            4 => b"\\ud83d",
            5 => b"\"prompt\": 1, ",
            6 => b"\0",
            _ => b"",
        };
        bytes.splice(at..end, put.iter().copied());
    }
    bytes
}

/// A client that says odd things about what it sends.
fn strange(dice: &mut Dice, client: &Client) -> Client {
    let long = "y".repeat(dice.below(12_000));
    let (name, value) = match dice.below(9) {
        0 => ("content-type", "text/xml"),
        1 => ("content-type", "application/json; charset=\"\u{7f}"),
        2 => ("content-encoding", "br"),
        3 => ("x-long", long.as_str()),
        4 => ("x-session-id", ""),
        5 => ("x-session-id", &long[..long.len().min(200)]),
        6 => ("origin", "http://a.example"),
        7 => ("host", "\u{e9}.example"),
        _ => ("accept", "nothing/at-all"),
    };
    match hyper::header::HeaderValue::from_bytes(value.as_bytes()) {
        Ok(_) => client.with(name, value),
        Err(_) => client.clone(),
    }
}

async fn request(client: &Client, number: u64) -> Reply {
    let mut dice = Dice::of(number);
    let (kind, path, body) = (dice.below(12), dice.one_of(&PATHS), sane(&mut dice));
    let plain = || body.to_string().into_bytes();
    match kind {
        0..5 => client.raw(Method::POST, path, misplaced(&mut dice, body)).await,
        5..10 => client.raw(Method::POST, path, changed(&mut dice, plain())).await,
        10 => strange(&mut dice, client).raw(Method::POST, path, plain()).await,
        _ => {
            let known = [Method::GET, Method::PUT, Method::OPTIONS, Method::DELETE, Method::PATCH];
            let places = ["/", "//health", "/v1/models/x", "/v1/sessions/%ff", "/v1/../metrics", path];
            let (method, path) = (dice.one_of(&known), dice.one_of(&places));
            client.raw(method, path, changed(&mut dice, plain())).await
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_breaks_the_server() {
    let mut setup = Setup { context: 256, queue: 1000, ..Setup::default() };
    setup.config.limits.head_bytes = 8192;
    let house = start(setup).await;
    const HANDS: u64 = 8;
    let hands = (0..HANDS).map(|hand| {
        let client = (*house).clone();
        tokio::spawn(async move {
            let (mut served, mut refused) = (0, 0);
            for number in (hand..REQUESTS).step_by(HANDS as usize) {
                let reply = request(&client, number).await;
                let (status, text) = (reply.status.as_u16(), &reply.text);
                // A head that is too long is answered below all handlers, without a body.
                let fields = reply.json["error"].as_object().map_or(0, |error| error.len());
                let fine = status == 200 || status == 431 || reply.status.is_client_error() && fields == 4;
                assert!(fine, "request {number}: {status} {text}");
                *(if status == 200 { &mut served } else { &mut refused }) += 1;
            }
            (served, refused)
        })
    });
    let (mut served, mut refused) = (0, 0);
    for hand in hands.collect::<Vec<_>>() {
        let counts = hand.await.expect("every request had a right answer");
        (served, refused) = (served + counts.0, refused + counts.1);
    }
    // Neither is all nonsense nor is all taken.
    assert!(served > REQUESTS / 20 && refused > REQUESTS / 2, "{served} served, {refused} refused");
    survives(&house).await;
    let failed = "request_success_total{model_name=\"tiny\",finished_reason=\"error\"} ";
    assert_eq!(house.labelled(failed).await, 0.0);
}
