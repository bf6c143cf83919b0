//! Signing certificates of attestation services that run in an enclave, as Azure Attestation makes them: self-signed, with
//! an Open Enclave report in an extension whose report data is for the certificate's key.

use der::{
    Decode, Encode,
    asn1::ObjectIdentifier,
    pem::{LineEnding, encode_string},
};
use x509_cert::Certificate;

use crate::{
    crypto::sha256,
    quote::Quote,
    roots::{NotACertificate, der_of},
    types::Hex,
};

/// The extension that holds the report (Microsoft's arc; Open Enclave SDK, `X509_OID_FOR_QUOTE_STRING`).
pub const SIGNING_EVIDENCE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.105.1");

/// Evidence about the holder of a signing key, out of the key's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningEvidence {
    /// The report: a quote behind an Open Enclave header. Not verified.
    pub report: Vec<u8>,
    /// What the report data must begin with, so that it is about this key: [`signing_key_digest`].
    pub key: Hex<32>,
    /// What the report data has behind that; `None` when the report cannot be read.
    pub rest: Option<Hex<32>>,
}

impl SigningEvidence {
    /// The evidence in a certificate, DER or PEM; `None` when it has no such extension.
    ///
    /// # Errors
    /// [`NotACertificate`] when it is neither.
    pub fn of(certificate: &[u8]) -> Result<Option<Self>, NotACertificate> {
        let no = |error: der::Error| NotACertificate(error.to_string());
        let der = der_of(certificate).map_err(|error| NotACertificate(error.to_string()))?;
        let parsed = Certificate::from_der(&der).map_err(no)?;
        let tbs = parsed.tbs_certificate();
        let Some(extension) =
            tbs.extensions().and_then(|all| all.iter().find(|one| one.extn_id == SIGNING_EVIDENCE_OID))
        else {
            return Ok(None);
        };
        let report = extension.extn_value.as_bytes().to_vec();
        let rest =
            Quote::parse(&report).ok().and_then(|quote| quote.report_data().last_chunk().map(Hex::from));
        let key = Hex(signing_key_digest(&tbs.subject_public_key_info().to_der().map_err(no)?));
        Ok(Some(Self { report, key, rest }))
    }
}

/// SHA-256 of a DER SubjectPublicKeyInfo as Azure Attestation hashes it for key names and report data: over its PEM text
/// with the last newline, and a zero byte behind that.
#[must_use]
pub fn signing_key_digest(public_key: &[u8]) -> [u8; 32] {
    let mut text = encode_string("PUBLIC KEY", LineEnding::LF, public_key).expect("the label is a valid one");
    text.push('\0');
    sha256(text.as_bytes())
}
