//! An attestation service with Azure Attestation's REST interface, policy language and tokens.
//!
//! Evidence of SGX enclaves, TDX trust domains and SEV-SNP guests is appraised by `enclos-verifier`, judged by the
//! tenant's policy ([`policy`]) and answered with a token ([`tokens`]) that the SDKs written for Azure Attestation
//! validate. Everything it needs is local: collateral from a folder, policies and keys in an embedded store.
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
pub mod tokens;

pub use config::{Authentication, Config, ConfigError, Limits, Tenant, Tls};
pub use http::Server;
pub use inspector::{InspectRequest, Inspection, MAX_EVIDENCE};
pub use service::{
    AttestRequest, AttestationType, Service, ServiceError, StartError, TenantContext, TokenFormat,
};

/// Serves until the process is asked to stop (SIGTERM or interrupt), then lets open requests finish.
///
/// # Errors
/// [`StartError`] when something the configuration names is not usable.
pub async fn run(config: Config) -> Result<(), StartError> {
    Server::bind(config).await?.serve(stopped()).await;
    Ok(())
}

/// Done when the process is asked to stop.
async fn stopped() {
    let interrupt = async {
        // Without a handler the process ends at an interrupt anyway.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! { () = interrupt => {}, _ = terminate.recv() => {} }
            return;
        }
    }
    interrupt.await;
}
