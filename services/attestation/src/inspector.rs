//! The evidence inspector: whatever somebody pastes, told apart, appraised as attestation would, and answered with all
//! that a picture of it needs.
//!
//! Input is anybody's. Nothing is stored, no token is made, and a verdict given here is the one `/attest` would give
//! before any policy, except where the request brings collateral or a time of its own, which the answer then says.

use der::Decode;
use enclos_verifier::{
    AnyCollateral, CertificateDetails, Collateral, Details, Evidence, Quote, SigningEvidence, SnpCollateral,
    Time, Verdict, key_id,
    quote::{INTEL_QE_VENDOR_ID, without_oe_header},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use x509_cert::Certificate;

use crate::{
    collateral::DEFAULT_BASELINE,
    jws::{self, decode_base64},
    service::{Service, ServiceError, TenantContext},
};

/// Longest evidence, bytes after decoding of the request; quotes have about 5,000.
pub const MAX_EVIDENCE: usize = 128 * 1024;
/// Encodings inside one another that are undone: hexadecimal of base64, say.
const MAX_LAYERS: usize = 3;
/// Where every supported quote has the vendor of Intel's quoting enclaves.
const QE_VENDOR_OFFSET: usize = 12;

/// What to inspect.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectRequest {
    /// Base64 or base64url of what was pasted or dropped, in whatever encoding that is.
    evidence: String,
    /// Collateral to appraise by instead of the service's.
    #[serde(default)]
    collateral: Option<Value>,
    /// Time to appraise at instead of the present.
    #[serde(default)]
    time: Option<Time>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// What it is.
    kind: &'static str,
    /// Encodings undone to find that, outermost first.
    encodings: Vec<&'static str>,
    /// Bytes it has after that.
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<CarryingCertificate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evidence: Option<InspectedEvidence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<InspectedToken>,
}

/// A certificate that should carry evidence.
#[derive(Debug, Serialize)]
struct CarryingCertificate {
    details: CertificateDetails,
    /// Extension the evidence was found in.
    #[serde(skip_serializing_if = "Option::is_none")]
    extension: Option<String>,
    /// Whether the report data begins with the SHA-256 of the certificate's SubjectPublicKeyInfo; in signing certificates
    /// of attestation services, with that of its PEM form.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_bound: Option<bool>,
}

/// Evidence and its appraisal.
#[derive(Debug, Serialize)]
struct InspectedEvidence {
    /// Version of the quote or report.
    version: u32,
    /// Whether an Open Enclave report header stood before it.
    open_enclave: bool,
    /// Bytes after it, which nothing authenticates.
    trailing: usize,
    /// Where the collateral is from: `service`, `request` or `none`.
    collateral: &'static str,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    collateral_missing: Option<String>,
    /// Whether the time was chosen by the request or the configuration instead of being the present.
    time_chosen: bool,
    /// Whether a certificate under it calls itself emulated although the service does not know its root.
    calls_itself_emulated: bool,
    details: Details,
    verdict: Verdict,
}

/// A token and whether it is this service's.
#[derive(Debug, Serialize)]
struct InspectedToken {
    header: Value,
    claims: Map<String, Value>,
    validation: TokenValidation,
    /// Name of the key that its header names.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Cause and cure in words.
    message: String,
    /// Whether it says that the platform attested is emulated.
    emulated: bool,
}

/// What was found about the signature and dates of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum TokenValidation {
    /// Signed by a key of this service, issued by this instance, and in force.
    Validated,
    /// The same, but no longer or not yet in force, or issued by another instance.
    NotInForce,
    /// Names a key of this service that did not sign it.
    InvalidSignature,
    /// Names a key this service does not have.
    NotValidated,
    /// Is not signed.
    Unsigned,
}

/// What some bytes were found to be.
enum Recognized {
    Evidence(Vec<u8>),
    Certificate(Vec<Vec<u8>>),
    Token(String),
}

impl Service {
    /// Tells what the evidence of a request is, and appraises or validates it.
    ///
    /// # Errors
    /// [`ServiceError::InvalidParameter`] when it cannot be told, with what would be accepted.
    pub fn inspect(
        &self,
        tenant: &TenantContext,
        request: &InspectRequest,
    ) -> Result<Inspection, ServiceError> {
        let invalid = |reason: String| ServiceError::InvalidParameter(reason);
        if request.evidence.len() > MAX_EVIDENCE / 3 * 4 + 4 {
            return Err(invalid(format!("the evidence is longer than {MAX_EVIDENCE} bytes")));
        }
        let bytes = decode_base64(request.evidence.trim())
            .map_err(|error| invalid(format!("\"evidence\" is not base64: {error}")))?;
        let collateral = request
            .collateral
            .as_ref()
            .map(|value| AnyCollateral::from_json(value.to_string().as_bytes()))
            .transpose()
            .map_err(|error| invalid(error.to_string()))?;
        let mut encodings = Vec::new();
        let recognized = recognize(bytes, &mut encodings, MAX_LAYERS).map_err(invalid)?;
        let mut inspection =
            Inspection { kind: "token", encodings, bytes: 0, certificate: None, evidence: None, token: None };
        match recognized {
            Recognized::Token(token) => {
                inspection.bytes = token.len();
                inspection.token = Some(self.inspect_token(tenant, &token).map_err(invalid)?);
            }
            Recognized::Evidence(bytes) => {
                inspection.kind = "evidence";
                inspection.bytes = bytes.len();
                inspection.evidence =
                    Some(self.inspect_evidence(&bytes, collateral, request.time).map_err(invalid)?);
            }
            Recognized::Certificate(chain) => {
                inspection.kind = "certificate";
                inspection.bytes = chain.iter().map(Vec::len).sum();
                let found = chain.iter().find_map(|der| Some((der, evidence_in(der)?)));
                let carrying = found.as_ref().map_or(&chain[0], |(der, _)| der);
                let details = CertificateDetails::of(carrying).map_err(|error| invalid(error.to_string()))?;
                let mut certificate = CarryingCertificate { details, extension: None, key_bound: None };
                if let Some((der, (extension, quote))) = found {
                    certificate.extension = Some(extension);
                    let not = |error: enclos_verifier::NotACertificate| invalid(error.to_string());
                    let key = match SigningEvidence::of(der).map_err(not)? {
                        Some(of_signing_key) => of_signing_key.key,
                        None => key_id(der).map_err(not)?,
                    };
                    certificate.key_bound =
                        Quote::parse(&quote).ok().map(|quote| quote.report_data().starts_with(&key.0));
                    inspection.evidence =
                        Some(self.inspect_evidence(&quote, collateral, request.time).map_err(invalid)?);
                }
                inspection.certificate = Some(certificate);
            }
        }
        Ok(inspection)
    }

    fn inspect_evidence(
        &self,
        bytes: &[u8],
        given: Option<AnyCollateral>,
        chosen: Option<Time>,
    ) -> Result<InspectedEvidence, String> {
        let time = chosen.or(self.evidence_time).unwrap_or_else(Time::now);
        let time_chosen = chosen.or(self.evidence_time).is_some();
        let mut inspected = InspectedEvidence {
            version: 0,
            open_enclave: false,
            trailing: 0,
            collateral: "request",
            collateral_missing: None,
            time_chosen,
            calls_itself_emulated: false,
            details: Details::default(),
            verdict: self.demands.judge(self.verifier.verify_snp(&[], &no_snp_collateral(), time)),
        };
        match Evidence::detect(bytes) {
            Evidence::SnpReport(report) => {
                let collateral = match given {
                    Some(AnyCollateral::Snp(collateral)) => collateral,
                    Some(AnyCollateral::Dcap(_)) => {
                        return Err("the collateral is of an SGX or TDX platform, the evidence is an SEV-SNP report; give {\"certificate_chain\": PEM}".into());
                    }
                    None => {
                        inspected.collateral = "none";
                        inspected.collateral_missing = Some(
                            "the endorsement chain (VCEK, ASK, ARK) of an SEV-SNP report comes with it; give it as collateral: {\"certificate_chain\": PEM}".into(),
                        );
                        no_snp_collateral()
                    }
                };
                inspected.version = report.first_chunk().map_or(0, |version| u32::from_le_bytes(*version));
                inspected.verdict = self.demands.judge(self.verifier.verify_snp(report, &collateral, time));
                for der in CertificateDer::pem_slice_iter(collateral.certificate_chain.as_bytes()).take(8) {
                    let details = der.ok().and_then(|der| CertificateDetails::of(&der).ok());
                    inspected.details.certificates.extend(details);
                }
                inspected.details.certificates.sort_by_key(|certificate| certificate.role);
            }
            Evidence::Quote(quote_bytes) => {
                let quote = Quote::parse(bytes).map_err(|error| error.to_string())?;
                inspected.version = quote.version.into();
                inspected.open_enclave = quote_bytes.len() != bytes.len();
                inspected.trailing = quote.trailing;
                let (own, entry);
                let trusted = match given {
                    Some(AnyCollateral::Dcap(collateral)) => {
                        own = self.verifier.trust(&collateral);
                        &own
                    }
                    Some(AnyCollateral::Snp(_)) => {
                        return Err(
                            "the collateral is of an SEV-SNP platform, the evidence is a quote".into()
                        );
                    }
                    None => match self.collateral.of(&quote, time, DEFAULT_BASELINE) {
                        Ok(found) => {
                            inspected.collateral = "service";
                            entry = found;
                            &entry.trusted
                        }
                        Err(missing) => {
                            inspected.collateral = "none";
                            inspected.collateral_missing = Some(missing.to_string());
                            own = self.verifier.trust(&no_collateral());
                            &own
                        }
                    },
                };
                inspected.verdict = self.demands.judge(self.verifier.verify_quote(bytes, trusted, time));
                inspected.details = self.verifier.details(bytes, trusted);
            }
        }
        inspected.calls_itself_emulated = inspected
            .details
            .certificates
            .iter()
            .any(|certificate| certificate.subject.to_lowercase().contains("emulated"));
        Ok(inspected)
    }

    fn inspect_token(&self, tenant: &TenantContext, token: &str) -> Result<InspectedToken, String> {
        let mut parts = token.split('.');
        let mut next = |what: &str| {
            let text = parts.next().unwrap_or_default();
            decode_base64(text).map_err(|error| format!("the token's {what} is not base64url: {error}"))
        };
        let (header, claims, signature) = (next("header")?, next("claims")?, next("signature")?);
        let header: Value = serde_json::from_slice(&header)
            .map_err(|error| format!("the token's header is not JSON: {error}"))?;
        let claims: Map<String, Value> = serde_json::from_slice(&claims)
            .map_err(|error| format!("the token's claims are not a JSON object: {error}"))?;
        let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
        let key = header["kid"].as_str().map(str::to_owned);
        let known = self.keys.published().into_iter().find(|known| known.kid.is_some() && known.kid == key);
        let (validation, message) = if header["alg"]
            .as_str()
            .is_none_or(|alg| alg.eq_ignore_ascii_case("none"))
        {
            (TokenValidation::Unsigned, "It is not signed: anybody could have written it.".to_owned())
        } else if let Some(known) = known {
            let certificate = known.x5c.first().map(|text| decode_base64(text)).transpose()?;
            let holds = header["alg"] == "RS256"
                && certificate.is_some_and(|certificate| {
                    jws::verify_by(&certificate, signed.as_bytes(), &signature).is_ok()
                });
            if holds {
                validity(&claims, tenant, Time::now())
            } else {
                (
                    TokenValidation::InvalidSignature,
                    "It names a key of this service, but that key did not sign it: it was changed or made up.".into(),
                )
            }
        } else {
            (
                TokenValidation::NotValidated,
                "It names no key of this service, so its signature is not checked here. Validate it by the keys of its issuer.".into(),
            )
        };
        let emulated = emulated(&claims);
        Ok(InspectedToken { header, claims, validation, key, message, emulated })
    }
}

/// What a token with a valid signature is worth now.
fn validity(claims: &Map<String, Value>, tenant: &TenantContext, now: Time) -> (TokenValidation, String) {
    let at = |name: &str| claims.get(name).and_then(Value::as_u64).map(Time);
    let not_in_force = |message: String| (TokenValidation::NotInForce, message);
    if claims.get("iss").and_then(Value::as_str) != Some(&tenant.issuer) {
        return not_in_force(format!("This service signed it, but not as {}.", tenant.issuer));
    }
    match (at("nbf"), at("exp")) {
        (Some(from), _) if now < from => not_in_force(format!("It is in force only from {from}.")),
        (_, Some(until)) if now > until => not_in_force(format!("It expired at {until}.")),
        (_, None) => not_in_force("It does not say when it expires.".into()),
        (_, Some(until)) => {
            (TokenValidation::Validated, format!("This service signed it, and it is in force until {until}."))
        }
    }
}

/// Whether the claims, or those of an EAR's submodules, say that the platform is emulated.
fn emulated(claims: &Map<String, Value>) -> bool {
    let says = |claims: &Map<String, Value>| claims.get("enclos-emulated").is_some_and(|claim| claim == true);
    let submodules = claims.get("submods").and_then(Value::as_object);
    says(claims) || submodules.is_some_and(|all| all.values().filter_map(Value::as_object).any(says))
}

/// Tells what bytes are, undoing textual encodings.
fn recognize(bytes: Vec<u8>, encodings: &mut Vec<&'static str>, layers: usize) -> Result<Recognized, String> {
    if bytes.is_empty() {
        return Err(format!("there is nothing to inspect; {ACCEPTED}"));
    }
    let quote = without_oe_header(&bytes);
    let is_quote = quote.get(QE_VENDOR_OFFSET..).is_some_and(|rest| rest.starts_with(&INTEL_QE_VENDOR_ID));
    if is_quote || quote.len() != bytes.len() || matches!(Evidence::detect(&bytes), Evidence::SnpReport(_)) {
        encodings.push("binary");
        return Ok(Recognized::Evidence(bytes));
    }
    if bytes.starts_with(&[0x30]) && Certificate::from_der(&bytes).is_ok() {
        encodings.push("DER");
        return Ok(Recognized::Certificate(vec![bytes]));
    }
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return Err(match Quote::parse(&bytes) {
            // What begins like a quote and is none: say what is wrong with it.
            Err(error) if matches!(bytes[..], [3..=5, 0, ..]) => {
                format!("it begins like a quote, but: {error}")
            }
            _ => format!(
                "these {} bytes are nothing known (they begin with {}); {ACCEPTED}",
                bytes.len(),
                hex::encode(&bytes[..bytes.len().min(8)])
            ),
        });
    };
    let text = text.trim().trim_start_matches('\u{feff}');
    if text.contains("-----BEGIN CERTIFICATE-----") {
        encodings.push("PEM");
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes())
            .take(8)
            .map(|der| der.map(|der| der.to_vec()))
            .collect();
        let chain = chain.map_err(|error| format!("it is not valid PEM: {error}"))?;
        return if chain.is_empty() {
            Err("it is not valid PEM: there is no whole certificate in it".into())
        } else {
            Ok(Recognized::Certificate(chain))
        };
    }
    if text.contains("-----BEGIN") {
        return Err(format!("it is PEM, but of no certificate. Never paste private keys. {ACCEPTED}"));
    }
    if text.starts_with(['{', '"']) {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("it looks like JSON, but: {error}"))?;
        let inner = value
            .as_str()
            .or_else(|| ["token", "quote", "report"].iter().find_map(|name| value[*name].as_str()));
        return match inner {
            Some(inner) if layers > 0 => {
                encodings.push("JSON");
                recognize(inner.as_bytes().to_vec(), encodings, layers - 1)
            }
            _ => Err(format!("it is JSON without \"token\", \"quote\" or \"report\"; {ACCEPTED}")),
        };
    }
    let compact: String = text.chars().filter(|character| !character.is_whitespace()).collect();
    if compact.matches('.').count() == 2 && compact.starts_with("ey") {
        encodings.push("JWT");
        return Ok(Recognized::Token(compact));
    }
    let digits: String =
        compact.trim_start_matches("0x").chars().filter(|character| *character != ':').collect();
    let decoded = if digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        hex::decode(&digits)
            .map(|bytes| ("hexadecimal", bytes))
            .map_err(|error| format!("it looks like hexadecimal, but: {error}"))
    } else {
        let name = if compact.contains(['-', '_']) { "base64url" } else { "base64" };
        decode_base64(&compact).map(|bytes| (name, bytes)).map_err(|error| {
            format!("it is neither binary, hexadecimal, base64 ({error}), PEM nor a token; {ACCEPTED}")
        })
    }?;
    if layers == 0 {
        return Err(format!("it is text encoded {MAX_LAYERS} times over; {ACCEPTED}"));
    }
    encodings.push(decoded.0);
    recognize(decoded.1, encodings, layers - 1).map_err(|error| format!("read as {}: {error}", decoded.0))
}

const ACCEPTED: &str = "give an SGX or TDX quote, an SEV-SNP report (binary, hexadecimal, base64 or base64url), an attestation token (JWT), or a certificate with evidence in it (PEM or DER)";

/// The first quote in an extension of a certificate, and the extension's identifier.
///
/// Found by the vendor identifier rather than by the extension: RA-TLS implementations use several, and wrap quotes in
/// CBOR (2.23.133.5.4.9) or not at all.
fn evidence_in(der: &[u8]) -> Option<(String, Vec<u8>)> {
    let certificate = Certificate::from_der(der).ok()?;
    certificate.tbs_certificate().extensions()?.iter().find_map(|extension| {
        let value = extension.extn_value.as_bytes();
        let mut starts = value
            .windows(INTEL_QE_VENDOR_ID.len())
            .enumerate()
            .filter(|(_, window)| *window == INTEL_QE_VENDOR_ID)
            .filter_map(|(offset, _)| offset.checked_sub(QE_VENDOR_OFFSET));
        starts
            .find(|start| Quote::parse(&value[*start..]).is_ok())
            .map(|start| (extension.extn_id.to_string(), value[start..].to_vec()))
    })
}

fn no_snp_collateral() -> SnpCollateral {
    SnpCollateral { certificate_chain: String::new(), crl: None }
}

/// Collateral without anything in it: with it only what a quote says by itself is found.
pub(crate) fn no_collateral() -> Collateral {
    Collateral {
        pck_crl_issuer_chain: String::new(),
        root_ca_crl: Vec::new(),
        pck_crl: Vec::new(),
        tcb_info_issuer_chain: String::new(),
        tcb_info: String::new(),
        tcb_info_signature: Vec::new(),
        qe_identity_issuer_chain: String::new(),
        qe_identity: String::new(),
        qe_identity_signature: Vec::new(),
        pck_certificate_chain: None,
    }
}
