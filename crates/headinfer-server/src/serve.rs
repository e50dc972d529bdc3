//! Listening, connections with time limits, and an end that lets running answers finish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::api::App;
use crate::config::{ConfigError, ServerConfig};
use crate::model::ServedModel;
use crate::patience::Patient;
use crate::worded::Worded;
use crate::worker::{EngineHandle, State};

/// Why a server does not start or go on.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system does not let the server listen.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No async runtime.
    #[error("cannot start the server's threads")]
    Runtime(#[source] std::io::Error),
    /// The sessions could not be opened.
    #[error("{0}")]
    Engine(String),
}

/// Asks a server to end; may be cloned, and asked from any thread.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Shutdown {
    /// Asks. New requests are refused from now on.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    async fn requested(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Threads for async work: it is little, and the engine needs the cores.
const ASYNC_THREADS: usize = 2;
/// Threads that read small bodies and write long answers, beside those for large bodies; more wait. Few: the allocator
/// keeps what each of them once needed.
const SMALL_THREADS: usize = 2;
/// After the engine was stopped, for the last words to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// After the system refused a connection, usually because no descriptors are left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves on threads of its own until `shutdown` is asked for; `listening` is told the address first.
///
/// # Errors
/// [`ServeError`].
pub fn run(
    config: ServerConfig,
    model: ServedModel,
    engine: EngineHandle,
    shutdown: &Shutdown,
    listening: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .max_blocking_threads(config.limits.tokenizing + SMALL_THREADS)
        .thread_name("server")
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(async {
        let server = Server::bind(config, model, engine).await?;
        listening(server.address());
        server.run(shutdown).await
    })
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: App,
}

impl Server {
    /// Checks the configuration and listens.
    ///
    /// # Errors
    /// [`ServeError`].
    pub async fn bind(
        config: ServerConfig,
        model: ServedModel,
        engine: EngineHandle,
    ) -> Result<Self, ServeError> {
        config.validate()?;
        let address = config.address;
        let failed = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, app: App::new(config, model, engine) })
    }

    /// Where it listens; with port 0 the system has chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is asked for, then lets running answers finish for `drain` and ends.
    ///
    /// # Errors
    /// [`ServeError::Engine`] when the sessions cannot be opened. A device that fails later is told by `/health`.
    pub async fn run(self, shutdown: &Shutdown) -> Result<(), ServeError> {
        let Self { listener, app, .. } = self;
        let (graceful, router) = (GracefulShutdown::new(), app.router());
        let opened = opened(&app);
        tokio::pin!(opened);
        let mut loading = true;
        loop {
            tokio::select! {
                () = shutdown.requested() => break,
                result = &mut opened, if loading => {
                    result?;
                    loading = false;
                }
                (stream, permit) = accept(&listener, &app.connections) => {
                    connect(stream, permit, &app, router.clone(), graceful.watcher());
                }
            }
        }
        drop(listener);
        app.shared().close();
        let finished = graceful.shutdown();
        tokio::pin!(finished);
        if timeout(app.config.drain, &mut finished).await.is_err() {
            app.shared().stop();
            // Clients that do not read their last words are left.
            let _ = timeout(LAST_WORDS, finished).await;
        }
        app.shared().stop();
        Ok(())
    }
}

/// Ends when the sessions are open.
async fn opened(app: &App) -> Result<(), ServeError> {
    let mut states = app.shared().watch();
    let state = states.wait_for(|state| *state != State::Loading).await;
    match state.as_deref() {
        Ok(State::Failed(why)) => Err(ServeError::Engine(why.clone())),
        _ => Ok(()),
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    loop {
        // A look first: whoever waits to be accepted is not a connection yet. The semaphore is never closed.
        drop(permits.acquire().await);
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permits.clone().try_acquire_owned().ok()),
            Err(error) => {
                tracing::warn!("a connection was not accepted: {error}");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// Serves one connection on a task of its own.
fn connect(
    stream: TcpStream,
    permit: Option<OwnedSemaphorePermit>,
    app: &App,
    router: Router,
    watcher: Watcher,
) {
    // Tokens are small and must not be held back; where the system refuses, they only come later.
    let _ = stream.set_nodelay(true);
    let limits = &app.config.limits;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_bytes)
        .serve_connection(
            TokioIo::new(Worded::new(Patient::new(stream, limits.write_time), limits.head_bytes)),
            TowerToHyperService::new(router),
        );
    let connection = watcher.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection ended: {error}");
        }
        drop(permit);
    });
}
