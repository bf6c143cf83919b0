//! The attestation service's engine inside an enclave: it appraises, judges by policy, and holds the keys that sign tokens.
//!
//! Who checks a signing key's certificate knows that tokens it validates were made by this program, under the demands on
//! platforms whose digest is in the certificate's evidence: see `enclos_attestation_service::engine` for what the host
//! decides, and [`store`] for what becomes of keys and policies on its disk.
#![forbid(unsafe_code)]

mod store;

use std::process::ExitCode;

use enclos_attestation_service::{
    Service,
    engine::{ConfigurationClient, EngineServer, Settings},
    tokens::Attester,
};
use enclos_enclave::{HostTransport, attest, host, serve};

use crate::store::SealedStore;

/// Evidence by the host's quoting service.
struct Quotes;

impl Attester for Quotes {
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String> {
        attest(report_data).map(enclos_enclave::Evidence::into_quote).map_err(|error| error.to_string())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the attestation service does not start inside: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let settings = host::<ConfigurationClient<HostTransport>>()?.settings()?;
    let settings: Settings = serde_json::from_slice(&settings)?;
    let service = Service::start(settings, Box::new(SealedStore::open()?), Some(Box::new(Quotes)))?;
    Ok(serve(EngineServer::new(service))?)
}
