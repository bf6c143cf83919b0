//! Certificates with evidence, as they come from a peer: which key they are for, and what binds the evidence to it.

use der::{Decode, Encode, asn1::ObjectIdentifier};
use enclos_verifier::{Hex, Quote, QuoteError, SIGNING_EVIDENCE_OID, Time, signing_key_digest};
use x509_cert::Certificate;

use crate::{
    cmw::{self, CMW_OID},
    format::{Claims, EVIDENCE_OID, FormatError, REPORT_DATA, TaggedEvidence, report_data, sha256},
};

/// Gramine's own extension, a bare quote. This is what Gramine writes: tag and length of 1.2.840.113741.1337.6 encoded
/// once more within the identifier.
pub const GRAMINE_QUOTE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("0.6.9.42.840.113741.1337.6");
/// The identifier that was meant, which others write.
pub const INTEL_QUOTE_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1337.6");

/// Open Enclave SDK: a report (a quote behind a header) about the key. [`SIGNING_EVIDENCE_OID`] is its newer identifier.
pub const OPEN_ENCLAVE_REPORT_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113556.10.1.1");
/// Open Enclave SDK: evidence of an attester plugin (a quote, then claims) about the key; the older and the newer identifier.
pub const OPEN_ENCLAVE_EVIDENCE_OIDS: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("1.2.840.113556.10.1.2"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.105.2"),
];
/// Evidence by Intel's attestation service for EPID, which has ended: its reports, their signature and certificates.
const EPID_OIDS: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("1.2.840.113741.1337.2"),
    ObjectIdentifier::new_unwrap("1.2.840.113741.1337.3"),
    ObjectIdentifier::new_unwrap("1.2.840.113741.1337.4"),
    ObjectIdentifier::new_unwrap("1.2.840.113741.1337.5"),
];

/// Evidence that was found in a certificate, and that is for the certificate's key.
///
/// Having one says that the report data in the quote are the hash of claims (or, in the older forms, of the key) that name
/// this certificate's key. It says nothing of whether the quote is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundEvidence {
    /// Where it was found.
    pub form: EvidenceForm,
    /// The SGX or TDX quote.
    pub quote: Vec<u8>,
    /// The claims; in the older forms there are none.
    pub claims: Option<Claims>,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub key: Hex<32>,
    /// From when until when the certificate is valid.
    pub valid: (Time, Time),
}

/// The forms that evidence is found in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvidenceForm {
    /// Interoperable RA-TLS: [`EVIDENCE_OID`], tagged evidence, bare or in a collection of conceptual messages.
    Interoperable,
    /// The same within the extension of draft-ietf-rats-msg-wrap, [`CMW_OID`].
    ConceptualMessage,
    /// A bare quote whose report data are the SHA-256 of the key: [`GRAMINE_QUOTE_OID`] or [`INTEL_QUOTE_OID`].
    Gramine,
    /// A report of the Open Enclave SDK whose report data are the SHA-256 of the key, as PEM text with a zero behind it or
    /// (Edgeless RT, EGo) in DER: [`OPEN_ENCLAVE_REPORT_OID`] or [`SIGNING_EVIDENCE_OID`].
    OpenEnclaveReport,
    /// Evidence of the Open Enclave SDK whose claims are the key as PEM text with a zero behind it, and whose report data
    /// are the claims' SHA-256: [`OPEN_ENCLAVE_EVIDENCE_OIDS`].
    OpenEnclaveEvidence,
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
        let about_key = |form, quote: &[u8]| Self { form, quote: quote.to_vec(), claims: None, key, valid };

        for (oid, form) in
            [(EVIDENCE_OID, EvidenceForm::Interoperable), (CMW_OID, EvidenceForm::ConceptualMessage)]
        {
            let Some(value) = extension(oid)? else { continue };
            let evidence = match form {
                EvidenceForm::ConceptualMessage => cmw::of_pkix_extension(value)?,
                _ => cmw::of_wrapper(value)?,
            };
            let claims = bound_claims(&evidence, &spki)?;
            return Ok(Self { form, quote: evidence.quote, claims: Some(claims), key, valid });
        }
        for oid in [GRAMINE_QUOTE_OID, INTEL_QUOTE_OID] {
            let Some(value) = extension(oid)? else { continue };
            if *Quote::parse(value)?.report_data() != report_data(&spki) {
                return Err(BindingError::OtherKey);
            }
            return Ok(about_key(EvidenceForm::Gramine, value));
        }
        for oid in [OPEN_ENCLAVE_REPORT_OID, SIGNING_EVIDENCE_OID] {
            let Some(value) = extension(oid)? else { continue };
            let found = *Quote::parse(value)?.report_data();
            if found != padded(signing_key_digest(&spki)) && found != report_data(&spki) {
                return Err(BindingError::OtherKey);
            }
            return Ok(about_key(EvidenceForm::OpenEnclaveReport, value));
        }
        for oid in OPEN_ENCLAVE_EVIDENCE_OIDS {
            let Some(value) = extension(oid)? else { continue };
            let (quote, claims) = open_enclave_evidence(value)?;
            if *Quote::parse(quote)?.report_data() != report_data(claims) {
                return Err(BindingError::OtherClaims);
            }
            if sha256(claims) != signing_key_digest(&spki) {
                return Err(BindingError::OtherKey);
            }
            return Ok(about_key(EvidenceForm::OpenEnclaveEvidence, quote));
        }
        for oid in EPID_OIDS {
            if extension(oid)?.is_some() {
                return Err(BindingError::Epid(oid));
            }
        }
        Err(BindingError::NoEvidence)
    }
}

/// The claims that the quote is for, when they name the key.
fn bound_claims(evidence: &TaggedEvidence, public_key: &[u8]) -> Result<Claims, BindingError> {
    let claims = Claims::decode(&evidence.claims)?;
    if *Quote::parse(&evidence.quote)?.report_data() != report_data(&evidence.claims) {
        return Err(BindingError::OtherClaims);
    }
    match claims.public_key.is_of(public_key) {
        true => Ok(claims),
        false => Err(BindingError::OtherKey),
    }
}

/// Splits evidence of an Open Enclave attester plugin into quote and claims (`oe_attestation_header_t`: version 3, format,
/// length; then, in the format for SGX quotes, the quote and the claims).
fn open_enclave_evidence(value: &[u8]) -> Result<(&[u8], &[u8]), BindingError> {
    const VERSION: u32 = 3;
    /// a3a21e87-1b4d-4014-b70a-a125d2fbcd8c: OE_FORMAT_UUID_SGX_ECDSA.
    const SGX_ECDSA: [u8; 16] =
        [0xa3, 0xa2, 0x1e, 0x87, 0x1b, 0x4d, 0x40, 0x14, 0xb7, 0x0a, 0xa1, 0x25, 0xd2, 0xfb, 0xcd, 0x8c];
    let malformed = |cause: String| FormatError::Malformed { what: "Open Enclave evidence", cause };
    let short = || malformed(format!("it ends within its header of 28 bytes, after {}", value.len()));
    let (version, rest) = value.split_first_chunk::<4>().ok_or_else(short)?;
    let (format, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
    let (len, data) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (version, len) = (u32::from_le_bytes(*version), u64::from_le_bytes(*len));
    if version != VERSION {
        return Err(malformed(format!("its header has version {version} instead of {VERSION}")).into());
    }
    if *format != SGX_ECDSA {
        return Err(BindingError::OpenEnclaveFormat(Hex(*format)));
    }
    if len != data.len() as u64 {
        return Err(malformed(format!("its header says {len} bytes, it has {}", data.len())).into());
    }
    let trailing = Quote::parse(data)?.trailing;
    Ok(data.split_at(data.len() - trailing))
}

/// A hash as report data: zeros follow.
fn padded(hash: [u8; 32]) -> [u8; REPORT_DATA] {
    let mut data = [0; REPORT_DATA];
    data[..32].copy_from_slice(&hash);
    data
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
        "the peer's certificate carries no evidence (no extension {EVIDENCE_OID}, nor one of the others in which evidence \
         is found): it is an ordinary TLS server or client, not an attested one"
    )]
    NoEvidence,
    /// Evidence that nobody can appraise any more.
    #[error(
        "the evidence in the peer's certificate is an EPID attestation report (extension {0}); Intel's service for these has \
         ended, and they are not accepted"
    )]
    Epid(ObjectIdentifier),
    /// Evidence of a plugin that is not known.
    #[error(
        "the Open Enclave evidence in the peer's certificate has format {0}; only that of SGX quotes is known"
    )]
    OpenEnclaveFormat(Hex<16>),
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
