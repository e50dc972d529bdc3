//! Counts for /metrics: Prometheus' text format, with names in vLLM's manner.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use headinfer_core::engine::guess::Counts;
use headinfer_core::plan::Lane;
use headinfer_core::store::StoreStats;

use crate::worker::{FinishReason, Shared, SlotReport, State};

/// What was done since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    restored_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    drafts: AtomicU64,
    draft_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    /// By [`Ending::index`].
    endings: [AtomicU64; 4],
    turned_away: AtomicU64,
    first_token: Histogram,
    whole: Histogram,
}

/// How a job ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    Finished(FinishReason),
    Cancelled,
    Failed,
}

impl Ending {
    const NAMES: [&str; 4] = ["stop", "length", "abort", "error"];

    fn index(self) -> usize {
        match self {
            Self::Finished(FinishReason::Stop) => 0,
            Self::Finished(FinishReason::Length) => 1,
            Self::Cancelled => 2,
            Self::Failed => 3,
        }
    }
}

impl Counters {
    /// A job got a slot.
    pub(crate) fn began(&self, prompt: usize, cached: usize) {
        self.prompt_tokens.fetch_add(prompt as u64, Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Relaxed);
    }

    /// So many more tokens of a prompt came from the disk.
    pub(crate) fn restored(&self, tokens: usize) {
        self.restored_tokens.fetch_add(tokens as u64, Relaxed);
    }

    /// A token was generated for a job that was `asked` for then.
    pub(crate) fn made(&self, asked: Instant, first: bool) {
        self.generated_tokens.fetch_add(1, Relaxed);
        if first {
            self.first_token.record(asked.elapsed());
        }
    }

    /// So much more was guessed.
    pub(crate) fn guessed(&self, more: Counts) {
        self.drafts.fetch_add(more.drafts, Relaxed);
        self.draft_tokens.fetch_add(more.guessed, Relaxed);
        self.accepted_tokens.fetch_add(more.accepted, Relaxed);
    }

    /// A full queue refused a request.
    pub(crate) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self, ending: Ending, asked: Instant) {
        self.endings[ending.index()].fetch_add(1, Relaxed);
        if matches!(ending, Ending::Finished(_)) {
            self.whole.record(asked.elapsed());
        }
    }
}

/// Upper bounds of the buckets, in seconds: from a token to the prefill of millions.
const BOUNDS_S: [f64; 14] =
    [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 36000.0];

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last has no bound.
    buckets: [AtomicU64; BOUNDS_S.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn record(&self, time: Duration) {
        let at = BOUNDS_S.partition_point(|bound| *bound < time.as_secs_f64());
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(time.as_micros() as u64, Relaxed);
    }
}

/// The whole page.
pub(crate) fn render(shared: &Shared, model: &str, connections: usize) -> String {
    let mut page = Page { text: String::new(), model: label(model) };
    let (counters, slots) = (&shared.counters, shared.slots());
    let context = if let State::Ready { context, .. } = shared.state() { context } else { 0 };
    requests(&mut page, shared, &slots);
    page.one("connections", "gauge", "Connections open.", connections as f64);
    let count = |counter: &AtomicU64| counter.load(Relaxed) as f64;
    let (prompt, cached) = (count(&counters.prompt_tokens), count(&counters.cached_tokens));
    page.one("prompt_tokens_total", "counter", "Prompt tokens of requests that got a slot.", prompt);
    page.one("generation_tokens_total", "counter", "Tokens generated.", count(&counters.generated_tokens));
    for (name, help, counter) in [
        ("spec_decode_num_drafts_total", "Decode passes that took guesses along.", &counters.drafts),
        ("spec_decode_num_draft_tokens_total", "Tokens guessed.", &counters.draft_tokens),
        ("spec_decode_num_accepted_tokens_total", "Of them, right ones.", &counters.accepted_tokens),
    ] {
        page.one(name, "counter", help, count(counter));
    }
    page.one(
        "prefix_cache_queries_total",
        "counter",
        "Prompt tokens looked up in the slots' caches.",
        prompt,
    );
    page.one("prefix_cache_hits_total", "counter", "Prompt tokens that were there.", cached);
    page.histogram(
        "time_to_first_token_seconds",
        "From the request to its first token.",
        &counters.first_token,
    );
    page.histogram("e2e_request_latency_seconds", "From the request to its last token.", &counters.whole);
    let held: usize = slots.iter().map(|slot| slot.tokens).sum();
    let share = held as f64 / (slots.len() * context).max(1) as f64;
    page.one(
        "kv_cache_usage_perc",
        "gauge",
        "Share of the slots' context that holds tokens, 1 is full.",
        share,
    );
    prefill(&mut page, &slots);
    let store = shared.store();
    memory(&mut page, &slots, store);
    if let Some(store) = store {
        disk(&mut page, &store, &slots, count(&counters.restored_tokens));
    }
    page.text
}

fn requests(page: &mut Page, shared: &Shared, slots: &[SlotReport]) {
    let counters = &shared.counters;
    let busy = slots.iter().filter(|slot| slot.busy).count();
    page.one("num_requests_running", "gauge", "Requests that have a slot.", busy as f64);
    page.one("num_requests_waiting", "gauge", "Requests in the queue.", shared.waiting() as f64);
    page.head("request_success_total", "counter", "Requests that ended, by reason.");
    for (name, ending) in Ending::NAMES.iter().zip(&counters.endings) {
        page.line(
            "request_success_total",
            &format!("finished_reason=\"{name}\""),
            ending.load(Relaxed) as f64,
        );
    }
    let away = counters.turned_away.load(Relaxed) as f64;
    page.one("requests_rejected_total", "counter", "Requests turned away by a full queue.", away);
}

fn prefill(page: &mut Page, slots: &[SlotReport]) {
    page.head("prefill_tokens", "gauge", "Prompt of the prefill under way: tokens done and in all, by slot.");
    for (i, slot) in slots.iter().enumerate() {
        for (part, tokens) in [("done", slot.prefill.0), ("total", slot.prefill.1)] {
            page.line("prefill_tokens", &format!("slot=\"{i}\",part=\"{part}\""), tokens as f64);
        }
    }
}

/// Bytes where they lie, and as they move.
fn memory(page: &mut Page, slots: &[SlotReport], store: Option<StoreStats>) {
    let sum = |of: &dyn Fn(&SlotReport) -> f64| slots.iter().map(of).sum::<f64>();
    let (buffers, files) = store.map_or((0, 0), |s| (s.buffer_bytes, s.folder_bytes));
    page.head("memory_bytes", "gauge", "Bytes taken by all slots and the session store, by tier.");
    page.line("memory_bytes", "tier=\"device\"", sum(&|s| s.stats.device_bytes as f64));
    page.line("memory_bytes", "tier=\"host\"", sum(&|s| s.stats.host_bytes as f64) + buffers as f64);
    page.line("memory_bytes", "tier=\"disk\"", files as f64);
    let lanes = Lane::ALL.map(|lane| {
        let bytes = sum(&|s| s.stats.bytes[lane.index()] as f64);
        (format!("lane=\"{}\"", lane.name()), bytes, sum(&|s| s.stats.busy[lane.index()].as_secs_f64()))
    });
    page.head("lane_bytes_total", "counter", "Bytes moved, or read from the KV cache, by lane.");
    lanes.iter().for_each(|(lane, bytes, _)| page.line("lane_bytes_total", lane, *bytes));
    page.head("lane_busy_seconds_total", "counter", "Time a lane worked.");
    lanes.iter().for_each(|(lane, _, busy)| page.line("lane_busy_seconds_total", lane, *busy));
    page.head("lane_gigabytes_per_second", "gauge", "Bytes over busy time since the start, by lane.");
    for (lane, bytes, busy) in &lanes {
        let rate = if *busy > 0.0 { bytes / busy / 1e9 } else { 0.0 };
        page.line("lane_gigabytes_per_second", lane, rate);
    }
    let copy = sum(&|s| s.stats.copy.as_secs_f64());
    let hidden = sum(&|s| s.stats.copy_hidden.as_secs_f64());
    page.one("copy_seconds_total", "counter", "Time in copies between host and device.", copy);
    page.one("copy_hidden_seconds_total", "counter", "The part of it during which arithmetic ran.", hidden);
}

/// What the session store does.
fn disk(page: &mut Page, store: &StoreStats, slots: &[SlotReport], restored: f64) {
    page.one("store_restored_tokens_total", "counter", "Prompt tokens that came from the disk.", restored);
    let behind: usize = slots.iter().map(|slot| slot.behind).sum();
    page.one("store_behind_tokens", "gauge", "Prefilled tokens the disk has not got yet.", behind as f64);
    for (name, help, value) in [
        ("store_read_bytes_total", "Bytes read from the session store.", store.read_bytes),
        ("store_written_bytes_total", "Bytes written to it.", store.written_bytes),
        ("store_refused_writes_total", "Checkpoints that the disk refused.", store.refused),
        (
            "store_warnings_total",
            "Warnings: files passed over, and times the disk began to refuse.",
            store.warnings,
        ),
    ] {
        page.one(name, "counter", help, value as f64);
    }
}

struct Page {
    text: String,
    model: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.text, "# HELP headinfer:{name} {help}\n# TYPE headinfer:{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ =
            writeln!(self.text, "headinfer:{name}{{model_name=\"{}\"{comma}{labels}}} {value}", self.model);
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut below = 0;
        for (at, bucket) in histogram.buckets.iter().enumerate() {
            below += bucket.load(Relaxed);
            let bound = BOUNDS_S.get(at).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.line(&format!("{name}_bucket"), &format!("le=\"{bound}\""), below as f64);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum_us.load(Relaxed) as f64 / 1e6);
        self.line(&format!("{name}_count"), "", below as f64);
    }
}

/// A value between quotes.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_at_the_count() {
        let histogram = Histogram::default();
        [5, 10, 50, 100_000_000].into_iter().for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let mut page = Page { text: String::new(), model: label("a\"b") };
        page.histogram("t", "Times.", &histogram);
        assert!(
            page.text.contains("headinfer:t_bucket{model_name=\"a\\\"b\",le=\"0.01\"} 2\n"),
            "{}",
            page.text
        );
        assert!(page.text.contains("le=\"0.1\"} 3\n") && page.text.contains("le=\"36000\"} 3\n"));
        assert!(
            page.text.contains("le=\"+Inf\"} 4\n")
                && page.text.contains("t_count{model_name=\"a\\\"b\"} 4\n")
        );
    }
}
