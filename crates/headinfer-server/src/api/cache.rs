//! GET /cache: where each (layer, KV head) lives, what the slots hold, and what moves now.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use headinfer_core::plan::{Lane, Place, Plan};
use headinfer_core::store::StoreStats;
use headinfer_core::watch::Watch;
use serde_json::{Map, Value, json};

use super::{App, json as answer};
use crate::worker::{SlotReport, State as Engine};

/// What a client must know of the server to draw its cache and to ask of it. Null while the sessions are not open:
/// `context`, `cache`. Null without a session store: `cache.store`.
pub(super) async fn show(State(app): State<App>) -> Response {
    let (state, context) = match app.engine.state() {
        Engine::Ready { context, .. } => ("ready", Some(context)),
        Engine::Loading => ("loading", None),
        Engine::Stopped => ("stopped", None),
        Engine::Failed(_) => ("failed", None),
    };
    let shared = app.shared();
    let reports = shared.slots();
    let cache = shared.view().map(|view| {
        let slots = reports.iter().zip(&view.watches);
        let slots: Vec<Value> = slots.map(|(report, watch)| slot(report, watch.as_deref())).collect();
        let (spec, knobs) = (&view.plan.spec, view.plan.knobs());
        json!({
            "layers": spec.layers,
            "kv_heads": spec.kv_heads,
            "bytes_per_token": view.plan.kv_bytes_per_token(),
            "chunk": knobs.chunk,
            "places": places(&view.plan),
            "slots": slots,
            "lanes": lanes(&reports),
            "store": shared.store().map(|store| disk(&store, &reports)),
        })
    });
    let body = json!({
        "state": state,
        "model": app.model.id,
        "chat": app.engine.tokenizer().has_chat_template(),
        "context": context,
        "body_bytes_max": app.config.limits.body_bytes,
        "waiting": shared.waiting(),
        "cache": cache,
    });
    answer(StatusCode::OK, &body)
}

/// By layer a string with a letter for each head: `d` on the device, `h` in host memory and streamed, `c` in host
/// memory and attended to by the CPU in decode.
fn places(plan: &Plan) -> Vec<String> {
    let heads = plan.spec.kv_heads;
    let letter = |layer, head| match plan.layout().place(layer, head, heads) {
        Place::Resident(_) => 'd',
        Place::Streamed(_) => 'h',
        Place::HostAttend(_) => 'c',
    };
    (0..plan.spec.layers).map(|layer| (0..heads).map(|head| letter(layer, head)).collect()).collect()
}

/// `moving`: by lane, of those that are at some head and whose backend can tell which, `[layer, first head, one past the
/// last]`; null when the backend can tell of none.
fn slot(report: &SlotReport, watch: Option<&dyn Watch>) -> Value {
    let moving = watch.map(|watch| {
        let spots = Lane::ALL.iter().filter_map(|lane| Some((lane, watch.now(*lane)?)));
        let spot = |(lane, spot): (&Lane, headinfer_core::watch::Spot)| {
            (lane.name().to_owned(), json!([spot.layer, spot.heads.start, spot.heads.end]))
        };
        Value::Object(spots.map(spot).collect())
    });
    let (done, total) = report.prefill;
    json!({"busy": report.busy, "tokens": report.tokens, "prefill": {"done": done, "total": total}, "moving": moving})
}

/// What the disk holds, which are copies: `behind_tokens` are not on it yet.
fn disk(store: &StoreStats, reports: &[SlotReport]) -> Value {
    let behind: usize = reports.iter().map(|report| report.behind).sum();
    let StoreStats { folder_bytes, written_bytes, read_bytes, .. } = store;
    json!({
        "bytes": folder_bytes, "behind_tokens": behind, "written_bytes": written_bytes, "read_bytes": read_bytes,
    })
}

/// Totals of all slots: two looks give a rate.
fn lanes(reports: &[SlotReport]) -> Value {
    let lane = |lane: &Lane| {
        let at = lane.index();
        let bytes: u64 = reports.iter().map(|report| report.stats.bytes[at]).sum();
        let busy: f64 = reports.iter().map(|report| report.stats.busy[at].as_secs_f64()).sum();
        (lane.name().to_owned(), json!({"bytes": bytes, "busy_s": busy}))
    };
    Value::Object(Lane::ALL.iter().map(lane).collect::<Map<_, _>>())
}
