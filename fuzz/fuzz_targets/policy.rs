//! Both policy languages: Azure Attestation's, parsed and evaluated, and the relying party's in TOML.
#![no_main]

use enclos_attestation_service::policy::{Claim, Policy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = Policy::parse(text).map(|policy| {
        let incoming = vec![
            Claim::of_service("x-ms-sgx-is-debuggable", false),
            Claim::of_service("x-ms-sgx-mrsigner", "00ff".to_owned()),
            Claim::of_service("x-ms-sgx-svn", 3_i64),
            Claim::of_service("x-ms-sgx-collateral", r#"{"a":{"b":[1,2,"c"]}}"#.to_owned()),
        ];
        let _ = policy.configure(&incoming);
        let _ = policy.evaluate(incoming);
    }) {
        assert!(!error.to_string().is_empty());
    }
    let _ = enclos_verifier::Policy::from_toml(text);
});
