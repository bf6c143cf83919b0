//! The evidence inspector: certificates with evidence, tokens and quotes in every encoding.
#![no_main]

use std::sync::{LazyLock, Mutex};

use enclos_attestation_service::{
    InspectRequest, Service, TenantContext,
    engine::{CollateralDocument, PlatformDemands, Settings, TenantSettings},
    jws::base64url,
    store::{Revision, Signers, Store, StoreError, StoredKey, Written},
};
use enclos_verifier::TcbPolicy;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Keys in memory, and nothing else: what is inspected changes nothing. The databases belong to the service's HTTP side, which
/// would be most of the build of every target.
#[derive(Debug, Default)]
struct KeysOnly(Mutex<Vec<StoredKey>>);

impl Store for KeysOnly {
    fn policy(&self, _: &str, _: &str) -> Result<Option<String>, StoreError> {
        Ok(None)
    }

    fn set_policy(&self, _: &str, _: &str, _: Option<&str>, _: Revision) -> Result<Written, StoreError> {
        Ok(Written::Stale)
    }

    fn signers(&self, _: &str) -> Result<Signers, StoreError> {
        Ok(Signers::default())
    }

    fn add_certificate(&self, _: &str, _: &str, _: &[String], _: Revision) -> Result<Written, StoreError> {
        Ok(Written::Stale)
    }

    fn remove_certificate(&self, _: &str, _: &str, _: Revision) -> Result<Written, StoreError> {
        Ok(Written::Stale)
    }

    fn seed_certificates(&self, _: &str, _: &[(String, Vec<String>)]) -> Result<(), StoreError> {
        Ok(())
    }

    fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        Ok(self.0.lock().expect("no other use panics").clone())
    }

    fn replace_keys(&self, _: Option<u64>, add: Option<&StoredKey>, _: &[u64]) -> Result<Written, StoreError> {
        self.0.lock().expect("no other use panics").extend(add.cloned());
        Ok(Written::Done)
    }
}

static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let collateral = include_str!("../../verifier/tests/data/sgx_v3.json");
    let settings = Settings {
        demands: PlatformDemands { tcb: TcbPolicy::default(), emulated_roots: vec![], evidence_time: None },
        tenants: vec![TenantSettings {
            name: "localhost".into(),
            issuer: "https://localhost".into(),
            policy_signers: None,
        }],
        collateral: vec![CollateralDocument { name: "sgx_v3.json".into(), text: collateral.into() }],
        key_rotation_days: 90,
    };
    Service::start(settings, Box::new(KeysOnly::default()), None).expect("a service")
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
