//! `enclos-attestation-service CONFIG.toml`
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use enclos_attestation_service::Config;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: enclos-attestation-service CONFIG.toml");
        return ExitCode::from(2);
    };
    let filter = EnvFilter::try_from_env("ENCLOS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match start(PathBuf::from(path)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn start(path: PathBuf) -> Result<(), enclos_attestation_service::StartError> {
    enclos_attestation_service::run(Config::read(&path)?).await
}
