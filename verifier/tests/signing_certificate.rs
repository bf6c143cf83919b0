//! Signing certificates of attestation services: the evidence in them, and the key it is about.

use enclos_verifier::{
    CertificateDetails, Hex, Quote, SIGNING_EVIDENCE_OID, SigningEvidence, key_id, signing_key_digest,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair, PublicKeyData as _};

const QUOTE: &[u8] = include_bytes!("data/sgx_v3.bin");

fn certificate(key: &KeyPair, report: Option<&[u8]>) -> rcgen::Certificate {
    let mut parameters = CertificateParams::default();
    if let Some(report) = report {
        let oid: Vec<u64> = SIGNING_EVIDENCE_OID.arcs().map(u64::from).collect();
        parameters.custom_extensions.push(CustomExtension::from_oid_content(&oid, report.to_vec()));
    }
    parameters.self_signed(key).unwrap()
}

#[test]
fn evidence_is_found_in_der_and_pem_with_the_key_it_must_be_about() {
    let key = KeyPair::generate().unwrap();
    let report = [&[1, 0, 0, 0, 2, 0, 0, 0], &(QUOTE.len() as u64).to_le_bytes()[..], QUOTE].concat();
    let made = certificate(&key, Some(&report));
    let found = SigningEvidence::of(made.der()).unwrap().expect("there is evidence");
    assert_eq!(found.report, report);
    assert_eq!(found.key, Hex(signing_key_digest(&key.subject_public_key_info())));
    let report_data = Quote::parse(QUOTE).unwrap().report_data().to_vec();
    assert_eq!(found.rest.unwrap().0, report_data[32..]);
    // The quote carries a chain in PEM: it must not be taken for the certificate around it.
    assert_eq!(key_id(made.der()).unwrap(), CertificateDetails::of(made.pem().as_bytes()).unwrap().key);
    assert_eq!(SigningEvidence::of(made.pem().as_bytes()).unwrap(), Some(found));
}

#[test]
fn what_has_none_and_what_is_none_are_told_apart() {
    let key = KeyPair::generate().unwrap();
    assert_eq!(SigningEvidence::of(certificate(&key, None).der()), Ok(None));
    let broken = SigningEvidence::of(certificate(&key, Some(b"no report")).der()).unwrap().unwrap();
    assert_eq!((broken.report.as_slice(), broken.rest), (&b"no report"[..], None));
    assert!(SigningEvidence::of(b"no certificate").is_err());
}
