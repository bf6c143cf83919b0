//! The untrusted side of confidential inference: HTTP, model files, and the enclave's life.
//!
//! It relays what it cannot read. What it sees: that there are requests, from where and when, the buckets of their lengths, and
//! the models' files. What it decides: whether and when anything is answered at all.
//!
//! - `service`: the enclave and its models. One that ends is started anew, with the models that were served last;
//! - `http`: addresses, bounds, errors (RFC 9457), and what Prometheus reads (`metrics`).
#![forbid(unsafe_code)]

mod http;
mod metrics;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use enclos_host::{Enclave, StartError};
use enclos_inference::{ServiceError, Settings};
use enclos_key_broker::client::BrokerClient;

pub use self::http::Server;
pub use self::service::{Event, ModelFile, Service, Unavailable};

/// How an enclave is started: again whenever one has ended.
pub type Start = Box<dyn Fn() -> Result<Enclave, StartError> + Send + Sync>;

/// Where events go.
pub type Events = Box<dyn Fn(&Event) + Send + Sync>;

/// What is served, where and within which bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP is served; port 0: any that is free.
    pub listen: SocketAddr,
    /// What is served. A name may come once.
    pub models: Vec<ModelFile>,
    /// Who releases the keys of encrypted models.
    pub key_broker: Option<Arc<BrokerClient>>,
    /// How often the files are looked at for newer versions; `None`: only when asked to ([`Service::reload`]).
    pub watch: Option<Duration>,
    /// Versions of a model that are served at once, at least 1: clients who verified an older one finish with it.
    pub versions: usize,
    /// What the enclave is told.
    pub settings: Settings,
    /// Where the enclave serves attested TLS, if it is to: an address that its manifest permits.
    pub attested_tls: Option<String>,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds on what clients can ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in the enclave at once, if it has the threads.
    pub parallel: usize,
    /// Requests that wait for others; more are answered 503.
    pub queue: usize,
    /// How long a request may take, its body and its waiting included.
    pub request: Duration,
    /// How long a call into the enclave may take. One that takes longer ends the enclave, which is started anew: its thread
    /// could not be had back otherwise.
    pub call: Duration,
    /// Longest body in bytes.
    pub body: usize,
    /// Bodies at once, in bytes, while they arrive, wait and are worked on; more are answered 503.
    pub memory: usize,
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            parallel: cpus,
            queue: 64,
            request: Duration::from_secs(30),
            call: Duration::from_secs(120),
            body: 16 << 20,
            memory: 256 << 20,
            connections: 1024,
        }
    }
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address.
    #[error("cannot listen at {address}: {source}; choose another port (0: any that is free)")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A model's file.
    #[error("the model {name} cannot be read from {}: {source}", path.display())]
    Read {
        /// The model.
        name: String,
        /// Its file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A model that the enclave does not take.
    #[error("the model {name} ({}) is not served: {source}", path.display())]
    Model {
        /// The model.
        name: String,
        /// Its file.
        path: std::path::PathBuf,
        /// Why.
        source: ServiceError,
    },
    /// Two models of one name.
    #[error("there are two models {name}: give one another name (NAME=FILE)")]
    Twice {
        /// The name.
        name: String,
    },
    /// No model at all.
    #[error("there is no model to serve: name one at least")]
    NoModels,
    /// The enclave refuses.
    #[error(transparent)]
    Refused(#[from] ServiceError),
    /// The enclave does not start or answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The operating system has no threads to spare.
    #[error("cannot start: {0}")]
    Threads(std::io::Error),
}

/// Serves until the process is asked to stop (SIGTERM or interrupt), then lets open requests finish. SIGHUP has the models'
/// files looked at. `ready` is called once it serves.
///
/// # Errors
/// [`ServeError`] when it cannot begin.
pub fn run(
    config: Config,
    start: Start,
    events: Events,
    ready: impl FnOnce(&Server),
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(ServeError::Threads)?.block_on(async {
        // Before it says that it is ready: who hears that may ask it to stop at once.
        let stopped = enclos_http::stopped();
        let server = Server::bind(config, start, events).await?;
        reload_at_hangup(server.service().clone());
        ready(&server);
        server.serve(stopped).await;
        Ok(())
    })
}

fn reload_at_hangup(service: Arc<Service>) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let service = service.clone();
            // What comes of it is told by events.
            let _ = tokio::task::spawn_blocking(move || service.reload()).await;
        }
    });
}
