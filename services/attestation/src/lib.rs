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

#[cfg(feature = "server")]
pub mod authentication;
mod claims;
pub mod collateral;
#[cfg(feature = "server")]
mod config;
mod ear;
pub mod engine;
mod inspector;
pub mod jws;
pub mod policy;
#[cfg(feature = "server")]
mod server;
mod service;
pub mod store;
#[cfg(feature = "server")]
mod tls;
pub mod tokens;

pub use inspector::{InspectRequest, Inspection, MAX_EVIDENCE};
pub use service::{
    AttestRequest, AttestationType, OpenError, Service, ServiceError, TenantContext, TokenFormat,
};

#[cfg(feature = "server")]
pub use self::{
    config::{Authentication, Config, ConfigError, Limits, Pccs, Postgres, StartError, Tenant, Tls},
    process::{run, serve_file, serve_file_with},
    server::{Server, SharedEngine},
};

/// The service as a process.
#[cfg(feature = "server")]
mod process {
    use tracing_subscriber::EnvFilter;

    use crate::{Config, Server, SharedEngine, StartError, engine::Settings};

    /// Serves until the process is asked to stop (SIGTERM or interrupt), then lets open requests finish.
    ///
    /// # Errors
    /// [`StartError`] when something the configuration names is not usable.
    pub async fn run(config: Config) -> Result<(), StartError> {
        // Before the service says that it is ready: who hears that may ask it to stop at once.
        let stopped = enclos_http::stopped();
        Server::bind(config).await?.serve(stopped).await;
        Ok(())
    }

    /// What a command that starts the service does: reads the configuration file, writes logs as JSON lines to standard
    /// error (`ENCLOS_LOG` sets what is logged; otherwise `level`), and serves until the process is asked to stop.
    ///
    /// # Errors
    /// [`StartError`] when the configuration, or something it names, is not usable.
    pub fn serve_file(path: &std::path::Path, level: &str) -> Result<(), StartError> {
        serve(path, level, Server::bind)
    }

    /// As [`serve_file`], with the engine that `start` gives for a configuration, such as one in an enclave.
    ///
    /// # Errors
    /// [`StartError`] when the configuration, or something it names, is not usable, or `start` gives no engine.
    pub fn serve_file_with(
        path: &std::path::Path,
        level: &str,
        start: impl FnOnce(&Config, Settings) -> Result<SharedEngine, StartError> + Send + 'static,
    ) -> Result<(), StartError> {
        serve(path, level, |config| Server::bind_with(config, start))
    }

    fn serve<F: Future<Output = Result<Server, StartError>>>(
        path: &std::path::Path,
        level: &str,
        bind: impl FnOnce(Config) -> F,
    ) -> Result<(), StartError> {
        let config = Config::read(path)?;
        let filter = EnvFilter::try_from_env("ENCLOS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
        // Whoever embeds the service may have a subscriber already; then its choice holds.
        let _ =
            tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|source| StartError::Threads { source })?;
        runtime.block_on(async {
            // Before the service says that it is ready: who hears that may ask it to stop at once.
            let stopped = enclos_http::stopped();
            bind(config).await?.serve(stopped).await;
            Ok(())
        })
    }
}
