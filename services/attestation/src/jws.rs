//! JSON Web Signatures as policies and policy management requests carry them (RFC 7515, compact form).
//!
//! Signers name their algorithm wrongly in the wild (`RSA256`), so a signature is verified by the type of the key in the
//! certificate, never by what the header says; the header only tells whether there is a signature at all.

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD},
};
use der::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_cert::Certificate;

/// Certificates a chain may have. More is a mistake.
const MAX_CHAIN: usize = 8;
const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";

/// Why text is not a usable signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    /// It has not the three parts of the compact form.
    #[error("not a JWS in compact form: {0} periods instead of two")]
    Parts(usize),
    /// A part is not base64url.
    #[error("the {part} is not base64url: {reason}")]
    Base64 {
        /// Which part.
        part: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The header is not the JSON it must be.
    #[error("the JWS header is not usable: {0}")]
    Header(String),
    /// The header says that it is signed but carries no certificate.
    #[error("the JWS is signed (alg {0}), but its header has no x5c, nor a jwk with x5c")]
    NoCertificate(String),
    /// A certificate cannot be read.
    #[error("certificate {index} of x5c is not usable: {reason}")]
    Certificate {
        /// Which, from 0.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// The key is of a type that is not supported.
    #[error(
        "the key of the signing certificate is not supported: {0}; use RSA of 2048 to 8192 bits, or EC P-256, P-384"
    )]
    Key(String),
    /// The signature is not by the key of the certificate.
    #[error("the signature of the JWS is not by the key of its certificate")]
    Signature,
    /// It says that it is not signed, and has a signature.
    #[error("the JWS has alg none, but a signature")]
    UnexpectedSignature,
}

/// A JWS whose signature, if it has one, was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jws {
    /// The bytes signed over.
    pub payload: Vec<u8>,
    /// Who signed; `None` when nobody did.
    pub signer: Option<Signer>,
}

/// The certificates of who signed, as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// DER, the signer's first. Not validated as a chain.
    pub certificates: Vec<Vec<u8>>,
    /// Algorithm the signature was verified by, in the standard's name.
    pub algorithm: &'static str,
}

impl Jws {
    /// Parses a JWS, and verifies its signature by the certificate it carries.
    ///
    /// # Errors
    /// [`JwsError`] when it is malformed or its signature does not hold.
    pub fn verify(text: &str) -> Result<Self, JwsError> {
        let text = text.trim();
        let parts: Vec<_> = text.split('.').collect();
        let [header, payload, signature] = parts[..] else { return Err(JwsError::Parts(parts.len() - 1)) };
        let decode = |part, text| decode_base64(text).map_err(|reason| JwsError::Base64 { part, reason });
        let header_bytes = decode("header", header)?;
        let signed = &text[..header.len() + 1 + payload.len()];
        let (payload, signature) = (decode("payload", payload)?, decode("signature", signature)?);
        let header: Header =
            serde_json::from_slice(&header_bytes).map_err(|error| JwsError::Header(error.to_string()))?;
        if header.alg.eq_ignore_ascii_case("none") {
            return if signature.is_empty() {
                Ok(Self { payload, signer: None })
            } else {
                Err(JwsError::UnexpectedSignature)
            };
        }
        let chain = header.x5c.or(header.jwk.and_then(|jwk| jwk.x5c)).filter(|chain| !chain.is_empty());
        let certificates = certificates(&chain.ok_or(JwsError::NoCertificate(header.alg))?)?;
        let algorithm = verify_by(&certificates[0], signed.as_bytes(), &signature)?;
        Ok(Self { payload, signer: Some(Signer { certificates, algorithm }) })
    }
}

impl Signer {
    /// The key as a JSON Web Key with its certificates.
    #[must_use]
    pub fn jwk(&self) -> Jwk {
        jwk_of(&self.certificates)
            .unwrap_or_else(|_| Jwk { alg: Some(self.algorithm.into()), ..Jwk::default() })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    x5c: Option<Vec<String>>,
    jwk: Option<HeaderJwk>,
}

#[derive(Deserialize)]
struct HeaderJwk {
    x5c: Option<Vec<String>>,
}

/// A JSON Web Key by its certificates (RFC 7517).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// Algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// Name of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// Key type.
    #[serde(default)]
    pub kty: String,
    /// Use.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// Certificates, base64 of DER, the key's first.
    #[serde(default)]
    pub x5c: Vec<String>,
}

/// The certificates of an `x5c` array, each parsed once to know that it is one.
///
/// # Errors
/// [`JwsError::Certificate`] naming the one that is not usable.
pub fn certificates(x5c: &[String]) -> Result<Vec<Vec<u8>>, JwsError> {
    if x5c.is_empty() || x5c.len() > MAX_CHAIN {
        let reason = format!("{} certificates, expected 1 to {MAX_CHAIN}", x5c.len());
        return Err(JwsError::Certificate { index: 0, reason });
    }
    x5c.iter()
        .enumerate()
        .map(|(index, text)| {
            let bad = |reason| JwsError::Certificate { index, reason };
            let der = decode_base64(text).map_err(bad)?;
            Certificate::from_der(&der).map_err(|error| bad(error.to_string()))?;
            Ok(der)
        })
        .collect()
}

/// The JSON Web Key of certificates in DER.
///
/// # Errors
/// [`JwsError`] when the first is not a certificate of a supported key.
pub fn jwk_of(certificates: &[Vec<u8>]) -> Result<Jwk, JwsError> {
    let first = certificates.first().ok_or(JwsError::Key("there is no certificate".into()))?;
    let key = PublicKey::of(first)?;
    Ok(Jwk {
        alg: Some(key.algorithm.into()),
        kid: None,
        kty: key.kind.into(),
        usage: Some("sig".into()),
        x5c: certificates.iter().map(|der| base64::prelude::BASE64_STANDARD.encode(der)).collect(),
    })
}

/// SHA-1 of a certificate in upper-case hexadecimal, as certificate stores show it.
#[must_use]
pub fn thumbprint(certificate: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, certificate);
    hex::encode_upper(digest)
}

/// An unsigned JWS over a payload.
#[must_use]
pub fn unsigned(payload: &[u8]) -> String {
    format!("{}.{}.", base64url(br#"{"alg":"none"}"#), base64url(payload))
}

/// Base64url without padding.
#[must_use]
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// SHA-256 in base64url, as token claims carry hashes.
#[must_use]
pub fn sha256_base64url(bytes: &[u8]) -> String {
    base64url(&Sha256::digest(bytes))
}

/// Decodes base64 of either alphabet, with or without padding.
///
/// # Errors
/// What is wrong with it.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
    URL_SAFE
        .decode(text)
        .or_else(|error| match text.contains(['+', '/']) {
            true => STANDARD.decode(text),
            false => Err(error),
        })
        .map_err(|error| error.to_string())
}

struct PublicKey {
    kind: &'static str,
    algorithm: &'static str,
    verification: &'static dyn signature::VerificationAlgorithm,
    bytes: Vec<u8>,
}

impl PublicKey {
    fn of(certificate: &[u8]) -> Result<Self, JwsError> {
        let bad = |error: der::Error| JwsError::Certificate { index: 0, reason: error.to_string() };
        let certificate = Certificate::from_der(certificate).map_err(bad)?;
        let info = certificate.tbs_certificate().subject_public_key_info();
        let bytes = info.subject_public_key.raw_bytes().to_vec();
        let (kind, algorithm, verification): (_, _, &'static dyn signature::VerificationAlgorithm) =
            match info.algorithm.oid.to_string().as_str() {
                RSA_ENCRYPTION => ("RSA", "RS256", &signature::RSA_PKCS1_2048_8192_SHA256),
                EC_PUBLIC_KEY => {
                    let curve = info.algorithm.parameters.to_der().map_err(bad)?;
                    let curve: der::asn1::ObjectIdentifier = Decode::from_der(&curve).map_err(bad)?;
                    match curve.to_string().as_str() {
                        "1.2.840.10045.3.1.7" => ("EC", "ES256", &signature::ECDSA_P256_SHA256_FIXED),
                        "1.3.132.0.34" => ("EC", "ES384", &signature::ECDSA_P384_SHA384_FIXED),
                        other => return Err(JwsError::Key(format!("EC on curve {other}"))),
                    }
                }
                other => return Err(JwsError::Key(format!("algorithm {other}"))),
            };
        Ok(Self { kind, algorithm, verification, bytes })
    }
}

/// Verifies a signature by the key of a certificate, and names the algorithm.
pub(crate) fn verify_by(
    certificate: &[u8],
    signed: &[u8],
    signature: &[u8],
) -> Result<&'static str, JwsError> {
    let key = PublicKey::of(certificate)?;
    UnparsedPublicKey::new(key.verification, &key.bytes)
        .verify(signed, signature)
        .map_err(|_| JwsError::Signature)?;
    Ok(key.algorithm)
}
