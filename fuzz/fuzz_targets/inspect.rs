//! The evidence inspector: certificates with evidence, tokens and quotes in every encoding.
#![no_main]

use std::{path::Path, sync::LazyLock};

use enclos_attestation_service::{Config, InspectRequest, Service, TenantContext, jws::base64url};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder for the store").keep();
    let collateral = folder.join("collateral");
    std::fs::create_dir(&collateral).expect("a folder for collateral");
    let good = include_bytes!("../../verifier/tests/data/sgx_v3.json");
    std::fs::write(collateral.join("sgx_v3.json"), good).expect("collateral");
    let path: &Path = &folder.join("service.toml");
    let text = "listen = \"127.0.0.1:0\"\ndata = \"data\"\ncollateral = \"collateral\"\n[[tenant]]\nhost = \"localhost\"\n";
    std::fs::write(path, text).expect("a configuration");
    Service::open(&Config::read(path).expect("a configuration of ours")).expect("a service")
});

fuzz_target!(|bytes: &[u8]| {
    let tenant =
        TenantContext { name: "localhost".into(), issuer: "https://localhost".into(), isolated: false };
    let request: InspectRequest =
        serde_json::from_value(json!({ "evidence": base64url(bytes) })).expect("a request of ours");
    match SERVICE.inspect(&tenant, &request) {
        Ok(inspection) => drop(serde_json::to_string(&inspection).expect("inspections are serializable")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
