//! An attestation service with Azure Attestation's REST interface, policy language and tokens.
//!
//! Evidence of SGX enclaves, TDX trust domains and SEV-SNP guests is appraised by `enclos-verifier`, judged by the
//! tenant's policy ([`policy`]) and answered with a token ([`tokens`]) that the SDKs written for Azure Attestation
//! validate. Everything it needs is local: collateral from a folder, policies and keys in a [`store`].
//!
//! ```no_run
//! # async fn start() -> Result<(), enclos_attestation_service::StartError> {
//! use enclos_attestation_service::{Config, run};
//! run(Config::read(std::path::Path::new("attestation.toml"))?).await
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod authentication;
mod claims;
pub mod collateral;
mod config;
mod ear;
mod http;
mod inspector;
pub mod jws;
pub mod policy;
mod service;
pub mod store;
mod tls;
pub mod tokens;

pub use config::{Authentication, Config, ConfigError, Limits, Postgres, Tenant, Tls};
pub use http::Server;
pub use inspector::{InspectRequest, Inspection, MAX_EVIDENCE};
pub use service::{
    AttestRequest, AttestationType, Service, ServiceError, StartError, TenantContext, TokenFormat,
};

use tracing_subscriber::EnvFilter;

/// Serves until the process is asked to stop (SIGTERM or interrupt), then lets open requests finish.
///
/// # Errors
/// [`StartError`] when something the configuration names is not usable.
pub async fn run(config: Config) -> Result<(), StartError> {
    // Before the service says that it is ready: who hears that may ask it to stop at once.
    let stopped = stopped();
    Server::bind(config).await?.serve(stopped).await;
    Ok(())
}

/// What a command that starts the service does: reads the configuration file, writes logs as JSON lines to standard
/// error (`ENCLOS_LOG` sets what is logged; otherwise `level`), and serves until the process is asked to stop.
///
/// # Errors
/// [`StartError`] when the configuration, or something it names, is not usable.
pub fn serve_file(path: &std::path::Path, level: &str) -> Result<(), StartError> {
    let config = Config::read(path)?;
    let filter = EnvFilter::try_from_env("ENCLOS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // Whoever embeds the service may have a subscriber already; then its choice holds.
    let _ = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| StartError::Threads { source })?;
    runtime.block_on(run(config))
}

/// Done when the process is asked to stop, from now on.
fn stopped() -> impl Future<Output = ()> + Send + 'static {
    use tokio::signal::unix::{Signal, SignalKind, signal};
    // A signal that cannot be caught ends the process at once, as it would any other.
    let [mut terminate, mut interrupt] =
        [SignalKind::terminate(), SignalKind::interrupt()].map(|kind| signal(kind).ok());
    async fn came(signal: Option<&mut Signal>) {
        match signal {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
    async move {
        tokio::select! { () = came(terminate.as_mut()) => {}, () = came(interrupt.as_mut()) => {} }
    }
}
