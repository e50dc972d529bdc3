//! A running server, and a gate that stalls its engine.

use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use headinfer_core::backend::{Backend, BackendError, Stats, Timed};
use headinfer_core::cpu::Cpu;
use headinfer_core::engine::Session;
use headinfer_core::engine::guess::Speculation;
use headinfer_core::plan::Schedule;
use headinfer_core::store::Store;
use headinfer_core::watch::Watch;
use headinfer_server::{
    EngineHandle, EngineOptions, Opened, ServeError, ServedModel, Server, ServerConfig, Shutdown,
};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::model;

/// What a test changes before the server starts.
pub(crate) struct Setup {
    pub(crate) slots: usize,
    pub(crate) queue: usize,
    pub(crate) context: usize,
    /// For chats.
    pub(crate) template: &'static str,
    pub(crate) config: ServerConfig,
    /// What keeps the sessions.
    pub(crate) store: Option<Store>,
    /// A pass takes so many guesses along; by default none, as tests count steps.
    pub(crate) guesses: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let mut config = ServerConfig { address: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
        config.drain = Duration::from_millis(100);
        let template = model::TEMPLATE;
        Self { slots: 2, queue: 64, context: 1024, template, config, store: None, guesses: 0 }
    }
}

/// Ends with the test.
pub(crate) struct House {
    client: Client,
    pub(crate) gate: Gate,
    pub(crate) shutdown: Shutdown,
    pub(crate) task: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Deref for House {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.gate.open();
        self.shutdown.request();
    }
}

/// A server that is ready.
pub(crate) async fn start(setup: Setup) -> House {
    let house = start_loading(setup).await;
    house.gate.open();
    house.until("the server is ready", async || house.get("/health").await.status == 200).await;
    house
}

/// A server that is loading until its gate is opened.
pub(crate) async fn start_loading(setup: Setup) -> House {
    let gate = Gate::default();
    gate.close();
    let (plan, below, store) = (model::plan(setup.context), gate.clone(), setup.store);
    let open = move |_| {
        below.pass_load();
        let inner = model::backend(&plan);
        let gated = Gated { inner, gate: below.clone(), spoken: Vec::new() };
        let session = Session::new(plan.clone(), Box::new(gated));
        Ok(match &store {
            Some(store) => {
                let trail = store.trail(&model::digest(), &session).expect("it can be kept");
                Opened::kept(session, trail)
            }
            None => session.into(),
        })
    };
    let options = EngineOptions {
        slots: setup.slots,
        queue: setup.queue,
        speculation: Speculation::Fixed(setup.guesses),
    };
    let tokenizer = model::tokenizer_of(setup.template);
    let engine = EngineHandle::start(options, tokenizer, open).expect("the engine starts");
    let served = ServedModel { id: "tiny".into(), end_tokens: vec![model::END] };
    let server = Server::bind(setup.config, served, engine).await.expect("listens");
    let client = Client { address: server.address(), headers: Vec::new() };
    let shutdown = Shutdown::default();
    let ending = shutdown.clone();
    let task = tokio::spawn(async move { server.run(&ending).await });
    House { client, gate, shutdown, task: Some(task) }
}

impl House {
    /// Looks again until `met`; a test that waits forever is ended by the harness's patience, not by ours.
    pub(crate) async fn until(&self, what: &str, met: impl AsyncFn() -> bool) {
        for _ in 0..6000 {
            if met().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never: {what}");
    }

    /// The value of a line of /metrics that has no labels but the model.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        self.labelled(&format!("{name}{{model_name=\"tiny\"}} ")).await
    }

    /// The value of the line of /metrics that begins like this.
    pub(crate) async fn labelled(&self, line: &str) -> f64 {
        let page = self.get("/metrics").await.text;
        let line = format!("headinfer:{line}");
        let value =
            page.lines().find_map(|l| l.strip_prefix(&line)).unwrap_or_else(|| panic!("{line} in {page}"));
        value.trim().parse().expect("a number")
    }
}

/// Lets steps of a backend through; open unless a test closes it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    /// Steps it lets through still; `None` is all.
    left: Option<usize>,
    fail: bool,
    panic: bool,
    /// Rows of the steps so far.
    steps: Vec<usize>,
    /// Tokens that the model finds likeliest from now on, one after the other.
    script: VecDeque<u32>,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.allow(0);
    }

    /// So many steps, then none.
    pub(crate) fn allow(&self, steps: usize) {
        self.0.0.lock().unwrap().left = Some(steps);
        self.0.1.notify_all();
    }

    pub(crate) fn open(&self) {
        self.0.0.lock().unwrap().left = None;
        self.0.1.notify_all();
    }

    /// The next step fails as a device does.
    pub(crate) fn fail(&self) {
        self.0.0.lock().unwrap().fail = true;
    }

    /// The next step panics, as only a bug does.
    pub(crate) fn panic(&self) {
        self.0.0.lock().unwrap().panic = true;
    }

    /// The model wants to say `text`, and then to end. What a grammar forbids, it does not get to say.
    pub(crate) fn say(&self, text: &str) {
        let ids = model::tokenizer().encode(text).expect("encodes");
        self.0.0.lock().unwrap().script = ids.into_iter().chain([model::END]).collect();
    }

    fn word(&self) -> Option<u32> {
        self.0.0.lock().unwrap().script.pop_front()
    }

    /// Steps that were begun.
    pub(crate) fn steps(&self) -> Vec<usize> {
        self.0.0.lock().unwrap().steps.clone()
    }

    fn pass_load(&self) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |state| state.left == Some(0)).unwrap());
    }

    fn pass(&self, rows: usize) -> Result<(), BackendError> {
        let mut state = self.0.0.lock().unwrap();
        state.steps.push(rows);
        let mut state = self.0.1.wait_while(state, |state| state.left == Some(0)).unwrap();
        state.left = state.left.map(|left| left - 1);
        if state.panic {
            drop(state);
            panic!("a bug");
        }
        if state.fail { Err(BackendError("the device fell off the bus".into())) } else { Ok(()) }
    }
}

struct Gated {
    inner: Cpu,
    gate: Gate,
    /// Logits of a word of the gate's.
    spoken: Vec<f32>,
}

impl Backend for Gated {
    fn submit(&mut self, schedule: &Schedule, ids: &[u32]) -> Result<(), BackendError> {
        self.gate.pass(ids.len())?;
        self.inner.submit(schedule, ids)
    }

    fn logits(&mut self) -> Result<&[f32], BackendError> {
        let logits = self.inner.logits()?;
        let Some(word) = (!logits.is_empty()).then(|| self.gate.word()).flatten() else { return Ok(logits) };
        self.spoken.clear();
        self.spoken.resize(logits.len(), 0.0);
        self.spoken[logits.len() - model::VOCAB + word as usize] = 9.0;
        Ok(&self.spoken)
    }

    fn read_rows(&mut self, rows: Range<usize>, held: usize, to: &mut [u8]) -> Result<(), BackendError> {
        self.inner.read_rows(rows, held, to)
    }

    /// Counts as a step of no rows.
    fn write_rows(&mut self, rows: Range<usize>, from: &[u8]) -> Result<(), BackendError> {
        self.gate.pass(0)?;
        self.inner.write_rows(rows, from)
    }

    fn numerics(&self) -> Option<String> {
        self.inner.numerics()
    }

    fn rows_alike(&self) -> usize {
        self.inner.rows_alike()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn watch(&self) -> Option<Arc<Watch>> {
        self.inner.watch()
    }

    fn record_timeline(&mut self, on: bool) {
        self.inner.record_timeline(on);
    }

    fn timeline(&self) -> &[Timed] {
        self.inner.timeline()
    }
}
