//! Prefills on disk while the server runs: what leaves a slot comes back, and a disk that refuses costs no answer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use headinfer_core::store::{Store, StoreOptions};
use serde_json::json;
use tempfile::TempDir;

use crate::house::{House, Setup, start};
use crate::model::{CHUNK, greedy, text};
use crate::reuse::ask;

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A checkpoint to each chunk.
pub(crate) fn open(dir: &Path) -> Store {
    Store::open(dir, &StoreOptions { interval_min: CHUNK, ..StoreOptions::default() }).unwrap()
}

pub(crate) async fn kept(dir: &Path, slots: usize) -> House {
    start(Setup { slots, store: Some(open(dir)), ..Setup::default() }).await
}

/// A store whose disk hangs until this is dropped: its lock is a pipe that nobody reads, so that opening it waits.
pub(crate) struct Stalled(PathBuf);

impl Stalled {
    /// Of a store that nothing was written to yet.
    pub(crate) fn new(dir: &Path) -> Self {
        let pipe = dir.join("lock");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        Self(pipe)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let pipe = File::options().read(true).write(true).open(&self.0).unwrap();
        // Those who found the pipe need its reader, later ones find a plain file.
        fs::remove_file(&self.0).unwrap();
        std::mem::forget(pipe);
    }
}

/// Until the disk has all that was prefilled.
pub(crate) async fn written(house: &House) {
    house.until("all is written", async || house.metric("store_behind_tokens").await == 0.0).await;
}

pub(crate) fn chunks(n: usize) -> u64 {
    (n * CHUNK) as u64
}

#[tokio::test]
async fn the_longest_prefix_wins_in_memory_or_on_the_disk() {
    let dir = folder();
    let house = kept(dir.path(), 1).await;
    let (book, other) = (text(1, 8 * CHUNK + 5), text(2, 5 * CHUNK));
    let fresh = ask(&house, &format!("{book} Who?")).await;
    ask(&house, &other).await;
    written(&house).await;
    let steps = house.gate.steps().len();
    // The book has left the slot; of the other text more is in memory than this asks for.
    assert_eq!(ask(&house, &other[..3 * CHUNK]).await.2, chunks(2));
    let back = ask(&house, &format!("{book} Who?")).await;
    assert_eq!(back, (fresh.0, fresh.1, chunks(8)));
    assert_eq!(house.metric("store_restored_tokens_total").await, chunks(8) as f64);
    assert!(house.metric("store_read_bytes_total").await > 0.0);
    // 1 chunk and 7 tokens; 8 intervals, the rest of the prompt and 7 tokens.
    assert_eq!(house.gate.steps().len() - steps, 8 + 16);
    // In memory again: nothing is read.
    assert_eq!(ask(&house, &format!("{book} And?")).await.2, chunks(8));
    assert_eq!(house.metric("store_restored_tokens_total").await, chunks(8) as f64);
}

#[tokio::test]
async fn a_stored_text_takes_the_slot_whose_cache_is_cheaper_to_lose() {
    let dir = folder();
    let house = kept(dir.path(), 2).await;
    let shared = text(3, CHUNK);
    let (long, stored) =
        (format!("{shared}{}", text(4, 9 * CHUNK)), format!("{shared}{}", text(5, 4 * CHUNK)));
    ask(&house, &stored).await;
    ask(&house, &text(6, 3 * CHUNK)).await;
    written(&house).await;
    // It has its first chunk from the other slot's text and takes that slot.
    assert_eq!(ask(&house, &long).await.2, chunks(1));
    let read = house.metric("store_restored_tokens_total").await;
    assert_eq!(ask(&house, &format!("{stored}?")).await.2, chunks(5));
    assert!(house.metric("store_restored_tokens_total").await > read);
    assert_eq!(ask(&house, &format!("{long}?")).await.2, chunks(10));
}

#[tokio::test]
async fn what_a_slot_gives_up_is_on_the_disk_first() {
    let dir = folder();
    let house = kept(dir.path(), 1).await;
    let stalled = Stalled::new(dir.path());
    let book = text(7, 12 * CHUNK);
    let fresh = ask(&house, &book).await;
    assert!(house.metric("store_behind_tokens").await > 0.0);
    let steps = house.gate.steps().len();
    let body = json!({"prompt": text(8, CHUNK), "max_tokens": 1, "stream": true, "return_progress": true});
    let mut left = house.stream("/v1/completions", &body).await;
    left.until(|c| c["prompt_progress"]["processed"] == 0).await;
    // Whoever leaves meanwhile makes place, and the slot still has the book.
    drop(left);
    house.until("the server knows", async || house.metric("connections").await == 1.0).await;
    let mut waits = house.stream("/v1/completions", &body).await;
    waits.until(|c| c["prompt_progress"]["processed"] == 0).await;
    assert_eq!(house.gate.steps().len(), steps);
    drop(stalled);
    waits.all().await;
    let back = ask(&house, &book).await;
    assert_eq!(back, (fresh.0, fresh.1, chunks(11)));
    assert_eq!(house.metric("store_restored_tokens_total").await, chunks(11) as f64);
    assert_eq!(house.metric("store_warnings_total").await, 0.0);
}

#[tokio::test]
async fn others_are_served_while_one_waits_for_the_disk() {
    let dir = folder();
    let house = kept(dir.path(), 2).await;
    let stalled = Stalled::new(dir.path());
    let (short, long) = (text(20, 6 * CHUNK), text(21, 12 * CHUNK));
    ask(&house, &short).await;
    ask(&house, &long).await;
    let body = json!({"prompt": text(22, 2 * CHUNK), "max_tokens": 1, "stream": true});
    let waits = house.stream("/v1/completions", &body).await;
    house.until("it has a slot", async || house.metric("num_requests_running").await == 1.0).await;
    let steps = house.gate.steps().len();
    // Its slot has all of it but the question, so nothing is given up for it.
    assert_eq!(ask(&house, &format!("{long}?")).await.2, chunks(12));
    assert_eq!(house.metric("num_requests_running").await, 1.0);
    assert_eq!(house.gate.steps().len() - steps, 8);
    drop(stalled);
    waits.all().await;
}

/// A house whose store has `book`, and no slot does.
async fn with_stored(dir: &Path, slots: usize, book: &str) -> House {
    let house = kept(dir, 1).await;
    ask(&house, book).await;
    written(&house).await;
    drop(house);
    kept(dir, slots).await
}

#[tokio::test]
async fn restoring_ends_within_an_interval_when_its_client_leaves() {
    let (dir, book) = (folder(), text(9, 10 * CHUNK));
    let house = with_stored(dir.path(), 1, &book).await;
    let body = json!({"prompt": book, "max_tokens": 1, "stream": true, "return_progress": true});
    house.gate.allow(2);
    let mut events = house.stream("/v1/completions", &body).await;
    let seen = events.until(|c| c["prompt_progress"]["processed"] == 2 * CHUNK).await;
    assert_eq!(seen["prompt_progress"]["cache"], 2 * CHUNK);
    drop(events);
    house.until("the server knows", async || house.metric("connections").await == 1.0).await;
    house.gate.open();
    let aborted = "request_success_total{model_name=\"tiny\",finished_reason=\"abort\"} ";
    house.until("it ends", async || house.labelled(aborted).await == 1.0).await;
    let steps = house.gate.steps();
    assert!(steps.len() <= 3 && steps.iter().all(|rows| *rows == 0), "{steps:?}");
}

#[tokio::test]
async fn others_have_their_turns_while_a_long_text_is_restored() {
    let (dir, book) = (folder(), text(10, 30 * CHUNK));
    let house = with_stored(dir.path(), 2, &book).await;
    let body = json!({"prompt": "short", "max_tokens": 200, "stream": true, "ignore_eos": true});
    house.gate.allow(1);
    let short = house.stream("/v1/completions", &body).await;
    house.until("it decodes", async || house.gate.steps().len() == 2).await;
    let asked = async { ask(&house, &book).await.2 };
    let opened = async {
        house.until("both are there", async || house.metric("num_requests_waiting").await == 1.0).await;
        house.gate.open();
    };
    let (cached, ()) = tokio::join!(asked, opened);
    assert_eq!(cached, chunks(29));
    short.all().await;
    let steps = house.gate.steps();
    let restoring = &steps[steps.iter().position(|rows| *rows == 0).unwrap()..];
    let last = restoring.iter().rposition(|rows| *rows == 0).unwrap();
    assert!(restoring[..last].contains(&1), "{steps:?}");
}

#[tokio::test]
async fn a_disk_that_refuses_costs_one_warning_and_no_answer() {
    let dir = folder();
    let place = dir.path().join("store");
    let house = kept(&place, 1).await;
    fs::remove_dir(&place).unwrap();
    fs::write(&place, "in the way").unwrap();
    for seed in 11..14 {
        let prompt = text(seed, 9 * CHUNK);
        let answer = ask(&house, &prompt).await.0;
        assert!(answer.as_str().unwrap().starts_with(&greedy(&prompt, 1)));
    }
    assert!(house.metric("store_refused_writes_total").await >= 2.0);
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    let book = text(14, 29 * CHUNK);
    // It is tried again now and then, and then all that is still in the session follows.
    house
        .until("it is written", async || {
            ask(&house, &book[..house.gate.steps().len() % 28 * CHUNK + CHUNK]).await;
            house.metric("store_written_bytes_total").await > 0.0
        })
        .await;
    assert_eq!(house.metric("store_warnings_total").await, 1.0);
}

#[tokio::test]
async fn the_metrics_know_the_bytes_of_every_tier() {
    let dir = folder();
    let house = kept(dir.path(), 1).await;
    ask(&house, &text(15, 6 * CHUNK)).await;
    written(&house).await;
    let tier = async |name: &str| {
        house.labelled(&format!("memory_bytes{{model_name=\"tiny\",tier=\"{name}\"}} ")).await
    };
    let files = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "kv"));
    let bytes: u64 = files.map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes > 0);
    assert_eq!(tier("disk").await, bytes as f64);
    assert_eq!(house.metric("store_written_bytes_total").await, bytes as f64);
    assert!(tier("device").await > 0.0 && tier("host").await > 0.0);
}
