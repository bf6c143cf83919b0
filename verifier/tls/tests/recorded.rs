//! Certificates that Gramine and Intel's SGX SDK made: evidence is found, and bound to the key.
//!
//! They lie beside the project (`../shared/quotes/ra-tls`, or under `$ENCLOS_SHARED`); without them the tests say that they
//! were skipped.

use std::path::PathBuf;

use enclos_attested_tls::{BindingError, BoundEvidence, EVIDENCE_OID, EvidenceForm, TaggedEvidence};
use enclos_verifier::Quote;
use rustls::pki_types::{CertificateDer, pem::PemObject};

fn recorded(name: &str) -> Option<Vec<u8>> {
    let shared = std::env::var_os("ENCLOS_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")),
        PathBuf::from,
    );
    let path = shared.join("quotes/ra-tls").join(name);
    if !path.is_file() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(CertificateDer::from_pem_file(path).unwrap().to_vec())
}

fn position(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).position(|window| window == needle).unwrap()
}

#[test]
fn evidence_of_others_is_bound_to_their_keys() {
    for name in ["gramine-cert.pem", "intel-sgxsdk-cert.pem"] {
        let Some(certificate) = recorded(name) else { return };
        let evidence = BoundEvidence::of_certificate(&certificate).unwrap();
        assert_eq!(evidence.form, EvidenceForm::Interoperable);
        assert_eq!(evidence.claims.unwrap().public_key.value, evidence.key.0, "{name}");
        assert_eq!(Quote::parse(&evidence.quote).unwrap().version, 3);
        // Another key of the same kind: the point's last byte.
        let mut other = certificate.clone();
        let key = position(&certificate, &[0x03, 0x62, 0x00, 0x04]);
        other[key + 0x62] ^= 1;
        assert_eq!(BoundEvidence::of_certificate(&other), Err(BindingError::OtherKey), "{name}");
    }
}

#[test]
fn gramines_own_extension_is_bound_to_the_key_too() {
    let Some(mut certificate) = recorded("gramine-cert.pem") else { return };
    // The interoperable extension gets an identifier that nobody knows.
    let oid = position(&certificate, EVIDENCE_OID.as_bytes());
    certificate[oid + EVIDENCE_OID.as_bytes().len() - 1] = 99;
    let evidence = BoundEvidence::of_certificate(&certificate).unwrap();
    assert_eq!((evidence.form, evidence.claims), (EvidenceForm::Gramine, None));
    let key = position(&certificate, &[0x03, 0x62, 0x00, 0x04]);
    certificate[key + 0x62] ^= 1;
    assert_eq!(BoundEvidence::of_certificate(&certificate), Err(BindingError::OtherKey));
}

#[test]
fn no_changed_byte_makes_reading_panic() {
    for name in ["gramine-cert.pem", "intel-sgxsdk-cert.pem"] {
        let Some(certificate) = recorded(name) else { return };
        for at in 0..certificate.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = certificate.clone();
                changed[at] ^= change;
                let _ = BoundEvidence::of_certificate(&changed);
            }
            let _ = BoundEvidence::of_certificate(&certificate[..at]);
        }
        // Everything is bound but the quote's signature, which is for the appraisal: so no changed claim is taken.
        let value = position(&certificate, EVIDENCE_OID.as_bytes()) + EVIDENCE_OID.as_bytes().len() + 4;
        let evidence =
            TaggedEvidence::decode(&certificate[value..value + extension_len(&certificate, value)]).unwrap();
        let claims = position(&certificate, &evidence.claims);
        for at in claims..claims + evidence.claims.len() {
            let mut changed = certificate.clone();
            changed[at] ^= 0x40;
            assert!(BoundEvidence::of_certificate(&changed).is_err(), "{name}: byte {at}");
        }
    }
}

/// The length in the two bytes before the value of an OCTET STRING.
fn extension_len(certificate: &[u8], value: usize) -> usize {
    usize::from(certificate[value - 2]) << 8 | usize::from(certificate[value - 1])
}
