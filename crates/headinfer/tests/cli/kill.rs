//! `kill -9` at any moment of prefill, decode and store writes: whoever asks again hears the right answer, sooner.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Value, json};

use crate::serve::{Served, cached, essence, question};
use crate::support::{folder, names};

/// Tokens of a checkpoint: the least interval, which is the retrieval model's chunk.
const INTERVAL: u64 = 512;
/// Four whole checkpoints, and the rest of a prompt.
const TOKENS: usize = 2500;

#[test]
fn death_at_any_moment_costs_no_more_than_the_last_checkpoint() {
    let tally = kills(8, 0x7a31_9e05);
    assert_eq!(tally.kills, 8);
}

/// The whole test, whose tally is committed: `cargo test --release --test cli fifty -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn fifty_deaths_at_any_moment_cost_no_more_than_the_last_checkpoint() {
    let tally = kills(50, 0x11d4_66b9);
    assert!(tally.prefill >= 10 && tally.decode >= 10 && tally.writing >= 10);
    eprintln!("{}", tally.json());
}

/// What [`kills`] saw.
#[derive(Default)]
struct Tally {
    kills: usize,
    /// Of these, while chunks were taken in, tokens made, a file half written.
    prefill: usize,
    decode: usize,
    writing: usize,
    /// Deaths that left a half-written file.
    half_written: usize,
    /// In checkpoints that were complete at the deaths, and brought back.
    complete: u64,
    restored: u64,
}

impl Tally {
    fn json(&self) -> Value {
        json!({"kills": self.kills, "in_prefill": self.prefill, "in_decode": self.decode,
            "in_store_writes": self.writing, "half_written_files": self.half_written,
            "prompt_tokens": TOKENS, "interval": INTERVAL, "complete_tokens": self.complete,
            "restored_tokens": self.restored, "wrong_answers": 0, "warnings": 0})
    }
}

/// Where a death is to fall.
#[derive(Clone, Copy)]
enum Moment {
    /// After so many chunks.
    Prefill(usize),
    /// After so many tokens.
    Decode(usize),
    /// While a file is written, after so many chunks.
    Writing(usize),
}

/// Kills a server so many times, each time in the midst of another question, and asks the next one again.
fn kills(count: usize, seed: u64) -> Tally {
    let (dir, mut draw, mut tally) = (folder(), Draw(seed), Tally::default());
    let plain = Served::plain();
    let mut served = Served::kept(dir.path());
    for round in 0..count {
        let (body, before) = (question(round + 10, TOKENS), stored(dir.path()));
        let moment = match round % 3 {
            0 => Moment::Prefill(draw.below(5)),
            1 => Moment::Decode(1 + draw.below(10)),
            _ => Moment::Writing(draw.below(4)),
        };
        die(&mut served, &body, moment, dir.path(), &mut draw);
        match moment {
            Moment::Prefill(_) => tally.prefill += 1,
            Moment::Decode(_) => tally.decode += 1,
            Moment::Writing(_) => tally.writing += 1,
        }
        let complete = (stored(dir.path()) - before) as u64 * INTERVAL;
        tally.half_written += usize::from(half_written(dir.path()));
        served = Served::kept(dir.path());
        let answer = served.complete(&body);
        let restored = cached(&answer);
        assert_eq!(essence(&answer), essence(&plain.complete(&body)), "round {round}");
        assert!(restored >= complete, "round {round}: {restored} of {complete}");
        assert_eq!(served.metric("store_warnings_total"), 0.0, "round {round}");
        tally.kills += 1;
        tally.complete += complete;
        tally.restored += restored;
    }
    tally
}

/// Asks, and kills the server at `moment` or a little later.
fn die(served: &mut Served, body: &Value, moment: Moment, dir: &Path, draw: &mut Draw) {
    let mut body = body.clone();
    (body["stream"], body["return_progress"]) = (json!(true), json!(true));
    // All are written at last, so that waiting for one has an end.
    let all = stored(dir) + TOKENS / INTERVAL as usize;
    let answer = served.ask("POST /v1/completions HTTP/1.1", "", &body.to_string());
    let mut lines = BufReader::new(answer).lines().map_while(Result::ok);
    let chunks =
        |wanted: usize| move |line: &String| progress(line).is_some_and(|n| n >= wanted * INTERVAL as usize);
    match moment {
        Moment::Prefill(wanted) => drop(lines.find(chunks(wanted))),
        Moment::Decode(wanted) => {
            drop(lines.by_ref().filter(|line| line.contains("\"text\":")).nth(wanted - 1));
        }
        Moment::Writing(wanted) => {
            drop(lines.find(chunks(wanted)));
            while !half_written(dir) && stored(dir) < all {
                std::hint::spin_loop();
            }
        }
    }
    let spin = if let Moment::Writing(_) = moment { 300_000 } else { 20_000_000 };
    (0..draw.below(spin)).for_each(|_| std::hint::spin_loop());
    served.child.kill().unwrap();
    served.child.wait().unwrap();
}

/// Tokens of the prompt that are done, of a line of the stream that tells.
fn progress(line: &str) -> Option<usize> {
    let told: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
    told["prompt_progress"]["processed"].as_u64().map(|tokens| tokens as usize)
}

/// Checkpoints that are complete.
fn stored(dir: &Path) -> usize {
    names(dir).iter().filter(|name| name.ends_with(".kv")).count()
}

fn half_written(dir: &Path) -> bool {
    names(dir).iter().any(|name| name.ends_with(".partial"))
}

/// A fixed sequence of numbers, by xorshift.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
