//! `headinfer serve`: a model over HTTP until Ctrl-C.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use headinfer_core::model::ModelDigest;
use headinfer_core::plan::{Plan, PlanError, Request};
use headinfer_core::store::Store;
use headinfer_core::text::Tokenizer;
use headinfer_server::{
    EngineHandle, EngineOptions, Opened, ServeError, ServedModel, ServerConfig, Shutdown, run as serve,
};

use crate::args::{EngineArgs, Environment, ServeArgs};
use crate::error::{Exit, Failure};
use crate::model_source::{Model, ModelSource};
use crate::{device, interrupt, open, output, sessions};

/// Context when neither the user nor the model asks for less: memory is taken for all of it at the start.
const CONTEXT: usize = 128 << 10;

/// Serves.
///
/// # Errors
/// When the address is refused, the model cannot be used, or nothing fits; a stop by signal is none.
pub(crate) fn run(args: &ServeArgs, environment: &Environment) -> Result<()> {
    let config = config(args)?;
    let source = ModelSource::parse(&args.model.model)?;
    let device = device::choose(args.engine.device)?;
    let model = source.find(&environment.hub)?;
    let tokenizer = Arc::new(model.tokenizer()?);
    let context = args.context.unwrap_or(model.spec.max_position.min(CONTEXT));
    let request = open::request(model.generated_bytes(), device, context, &args.engine, environment);
    let plan = plan(&model, request, args)?;
    let served = ServedModel { id: model_id(args), end_tokens: end_tokens(&model, &tokenizer) };
    let shutdown = Shutdown::default();
    let _cooperative = interrupt::cooperative();
    let asked = shutdown.clone();
    interrupt::tell(move || asked.request());
    let options = EngineOptions {
        slots: usize::from(args.parallel),
        queue: usize::from(args.queue),
        speculation: args.guess.speculate,
    };
    let mut opener = Opener {
        model,
        plan,
        flags: args.engine.clone(),
        cache: environment.cache.clone(),
        store: sessions::store(&args.store)?,
        digest: None,
    };
    let refusal = Arc::new(Mutex::new(None));
    let refused = refusal.clone();
    let engine = EngineHandle::start(options, tokenizer, move |_| {
        opener.open().map_err(|error| {
            let text = format!("{error:#}");
            *refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            text
        })
    })?;
    let id = served.id.clone();
    let listening = |address: SocketAddr| output::remark(&format!("serving {id} on http://{address}"));
    serve(config, served, engine, &shutdown, listening).map_err(|error| {
        let refusal = refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The server knows it as text, without its exit code and hint.
        refusal.unwrap_or_else(|| failure(error))
    })
}

/// Opens the slots, one after the other.
struct Opener {
    model: Model,
    plan: Arc<Plan>,
    flags: EngineArgs,
    cache: Option<PathBuf>,
    store: Option<Store>,
    /// Of the model: to make it, all weights are read once.
    digest: Option<ModelDigest>,
}

impl Opener {
    fn open(&mut self) -> Result<Opened> {
        let session = open::session(&self.model, self.plan.clone(), &self.flags, self.cache.as_deref())?;
        let Some(store) = &self.store else { return Ok(session.into()) };
        let digest = match self.digest.take() {
            Some(digest) => digest,
            None => self.model.digest(store)?,
        };
        let trail = store.trail(self.digest.insert(digest), &session)?;
        Ok(Opened::kept(session, trail))
    }
}

/// Each slot has its share of the memory.
fn plan(model: &Model, request: Request, args: &ServeArgs) -> Result<Arc<Plan>> {
    let slots = u64::from(args.parallel);
    let request = Request {
        device_budget: request.device_budget / slots,
        stored: sessions::interval_min(&args.store),
        guesses: args.guess.any(),
        ..request
    };
    // The store's own is shared, and as large as a chunk makes it.
    let anywhere = Request { host_budget: u64::MAX, ..request.clone() };
    let store = Plan::new(&model.spec, &anywhere).map_or(0, |plan| plan.store_bytes());
    let host_budget = request.host_budget.saturating_sub(store) / slots + store.min(request.host_budget);
    let share = Request { host_budget, ..request };
    open::plan(&model.spec, &share).map_err(|error| match error {
        PlanError::DoesNotFit { .. } if slots > 1 => {
            let message = format!("with --parallel {slots}, each request has 1/{slots} of the memory");
            Failure::new(Exit::DoesNotFit, message)
                .because(error)
                .hint("give a smaller --parallel or --context")
                .into()
        }
        error => error.into(),
    })
}

fn config(args: &ServeArgs) -> Result<ServerConfig, Failure> {
    let config = ServerConfig {
        address: SocketAddr::from((args.host, args.port)),
        api_key: args.api_key.clone(),
        insecure: args.insecure,
        ..ServerConfig::default()
    };
    match config.validate() {
        Ok(()) => Ok(config),
        Err(error) => Err(Failure::usage(error.to_string())),
    }
}

fn model_id(args: &ServeArgs) -> String {
    let model = &args.model.model;
    let folder = Path::new(model).is_dir().then(|| Path::new(model).file_name()).flatten();
    let name = folder.map_or_else(|| model.clone(), |name| name.to_string_lossy().into_owned());
    args.model_id.clone().unwrap_or(name)
}

fn end_tokens(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut tokens = model.spec.eos.clone();
    tokens.extend(tokenizer.end_tokens());
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

fn failure(error: ServeError) -> anyhow::Error {
    match error {
        ServeError::Bind { address, source } => {
            Failure::new(Exit::Failed, format!("cannot listen on {address}"))
                .because(source)
                .hint("give another --port or --host")
                .into()
        }
        error => error.into(),
    }
}
