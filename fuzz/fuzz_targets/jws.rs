//! JSON Web Signatures with their certificates, as policies come.
#![no_main]

use enclos_attestation_service::jws::{Jws, decode_base64};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(jws) = Jws::verify(text)
        && let Some(signer) = &jws.signer
    {
        assert!(!signer.certificates.is_empty());
        let _ = signer.jwk();
    }
    let _ = decode_base64(text);
});
