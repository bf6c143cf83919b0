//! Certificates with evidence, as they come from a peer: which key they are for, and what binds the evidence to it.

use der::{Decode, Encode, asn1::ObjectIdentifier};
use enclos_verifier::{Hex, Quote, QuoteError, Time};
use x509_cert::Certificate;

use crate::format::{Claims, EVIDENCE_OID, FormatError, TaggedEvidence, report_data, sha256};

/// Gramine's own extension, a bare quote. This is what Gramine writes: tag and length of 1.2.840.113741.1337.6 encoded
/// once more within the identifier.
pub const GRAMINE_QUOTE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("0.6.9.42.840.113741.1337.6");

/// Evidence that was found in a certificate, and that is for the certificate's key.
///
/// Having one says that the report data in the quote are the hash of claims (or, in the older form, of the key) that name
/// this certificate's key. It says nothing of whether the quote is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundEvidence {
    /// Where it was found.
    pub form: EvidenceForm,
    /// The SGX or TDX quote.
    pub quote: Vec<u8>,
    /// The claims; in the older form there are none.
    pub claims: Option<Claims>,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub key: Hex<32>,
    /// From when until when the certificate is valid.
    pub valid: (Time, Time),
}

/// The extensions that evidence is found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvidenceForm {
    /// Interoperable RA-TLS, [`EVIDENCE_OID`].
    Interoperable,
    /// A bare quote whose report data are the SHA-256 of the key, [`GRAMINE_QUOTE_OID`].
    Gramine,
}

impl BoundEvidence {
    /// Finds evidence in a DER certificate, and checks what binds it to the certificate's key. The interoperable form
    /// is preferred; where it is there and wrong, no other is looked at.
    ///
    /// # Errors
    /// [`BindingError`] when there is none, or it is for another key.
    pub fn of_certificate(certificate: &[u8]) -> Result<Self, BindingError> {
        let parsed =
            Certificate::from_der(certificate).map_err(|e| BindingError::Certificate(e.to_string()))?;
        let certificate = parsed.tbs_certificate();
        let spki = certificate
            .subject_public_key_info()
            .to_der()
            .map_err(|e| BindingError::Certificate(e.to_string()))?;
        let extension = |oid: ObjectIdentifier| {
            let mut all = certificate.extensions().into_iter().flatten().filter(|e| e.extn_id == oid);
            match (all.next(), all.next()) {
                (_, Some(_)) => Err(BindingError::Twice(oid)),
                (found, None) => Ok(found.map(|e| e.extn_value.as_bytes())),
            }
        };
        let key = Hex(sha256(&spki));
        let validity = certificate.validity();
        let valid =
            [validity.not_before, validity.not_after].map(|time| Time(time.to_unix_duration().as_secs()));
        let valid = (valid[0], valid[1]);
        if let Some(value) = extension(EVIDENCE_OID)? {
            let evidence = TaggedEvidence::decode(value)?;
            let claims = Claims::decode(&evidence.claims)?;
            if *Quote::parse(&evidence.quote)?.report_data() != report_data(&evidence.claims) {
                return Err(BindingError::OtherClaims);
            }
            if !claims.public_key.is_of(&spki) {
                return Err(BindingError::OtherKey);
            }
            let form = EvidenceForm::Interoperable;
            return Ok(Self { form, quote: evidence.quote, claims: Some(claims), key, valid });
        }
        if let Some(value) = extension(GRAMINE_QUOTE_OID)? {
            if *Quote::parse(value)?.report_data() != report_data(&spki) {
                return Err(BindingError::OtherKey);
            }
            return Ok(Self { form: EvidenceForm::Gramine, quote: value.to_vec(), claims: None, key, valid });
        }
        Err(BindingError::NoEvidence)
    }
}

/// Why a certificate has no evidence for its key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindingError {
    /// Not a certificate.
    #[error("the peer's certificate cannot be read: {0}")]
    Certificate(String),
    /// There is no extension with evidence.
    #[error(
        "the peer's certificate carries no evidence (no extension {EVIDENCE_OID} or {GRAMINE_QUOTE_OID}): it is an \
         ordinary TLS server or client, not an attested one"
    )]
    NoEvidence,
    /// An extension is there twice.
    #[error("the peer's certificate has the extension {0} twice")]
    Twice(ObjectIdentifier),
    /// The extension's content is wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The quote's form is wrong.
    #[error("the evidence in the peer's certificate is no quote: {0}")]
    Quote(#[from] QuoteError),
    /// The quote is for other claims.
    #[error("the claims in the peer's certificate are not those that the quote is for: they were changed")]
    OtherClaims,
    /// The evidence is for another key.
    #[error("the evidence is for another key than the certificate's: it was taken from somewhere else")]
    OtherKey,
}
