//! Evidence of any supported kind, told apart by its bytes, and appraised in one call.

use serde::{Deserialize, Serialize};

use crate::{
    appraisal::Appraisal,
    collateral::{Collateral, CollateralError},
    pki::PckChain,
    policy::{Policy, Verdict},
    quote::{Quote, Tee, without_oe_header},
    snp::{SNP_REPORT_LEN, SnpCollateral},
    status::Failure,
    types::{Hex, Time},
    verify::Verifier,
};

/// Evidence, told apart but not yet parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence<'a> {
    /// An SGX or TDX quote, without any Open Enclave report header.
    Quote(&'a [u8]),
    /// An SEV-SNP attestation report.
    SnpReport(&'a [u8]),
}

impl<'a> Evidence<'a> {
    /// Tells what kind of evidence `bytes` are; what is not an SEV-SNP report is taken for a quote.
    #[must_use]
    pub fn detect(bytes: &'a [u8]) -> Self {
        let quote = without_oe_header(bytes);
        // A quote has 16-bit version and key type where a report has a 32-bit version; the key type is never 0.
        if bytes.len() == SNP_REPORT_LEN && matches!(bytes, [2..=5, 0, 0, 0, ..]) {
            Self::SnpReport(bytes)
        } else {
            Self::Quote(quote)
        }
    }
}

/// Collateral of any supported kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AnyCollateral {
    /// Of an SGX or TDX platform.
    Dcap(Box<Collateral>),
    /// Of an SEV-SNP platform.
    Snp(SnpCollateral),
}

impl AnyCollateral {
    /// Parses the JSON form of either.
    ///
    /// # Errors
    /// [`CollateralError`] when it is neither.
    pub fn from_json(json: &[u8]) -> Result<Self, CollateralError> {
        #[derive(Deserialize)]
        struct Kind {
            certificate_chain: Option<serde::de::IgnoredAny>,
        }
        // Decided by a member first, so that an error names what is wrong instead of "no variant matched".
        let kind: Kind = serde_json::from_slice(json)?;
        Ok(match kind.certificate_chain {
            Some(_) => Self::Snp(serde_json::from_slice(json)?),
            None => Self::Dcap(Box::new(serde_json::from_slice(json)?)),
        })
    }
}

/// What names the collateral of a platform to a provisioning service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct CollateralKey {
    /// Whose TCB info and QE identity are needed.
    pub tee: Tee,
    /// Family of platforms the TCB info is for.
    pub fmspc: Hex<6>,
    /// Which CA's CRL is needed.
    pub ca: PckCa,
}

/// The CAs that issue PCK certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PckCa {
    /// For platforms registered as a whole (scalable processors).
    Platform,
    /// For single processors.
    Processor,
}

impl CollateralKey {
    /// The key for a quote, by the certificates in it; under which root is not asked.
    ///
    /// # Errors
    /// [`CollateralKeyError`] when the quote carries no usable PCK certificate chain.
    pub fn of(quote: &Quote<'_>) -> Result<Self, CollateralKeyError> {
        let chain =
            quote.certification.pck_chain().ok_or(CollateralKeyError::NoChain(quote.certification.kind))?;
        Self::of_chain(chain, quote.tee)
    }

    /// The key for a quote without certificates, by the chain of its PCK certificate in PEM; under which root is not asked.
    ///
    /// # Errors
    /// [`CollateralKeyError`] when the chain is not usable.
    pub fn of_chain(chain: &[u8], tee: Tee) -> Result<Self, CollateralKeyError> {
        // A verifier without roots remembers nothing and trusts nobody; only what the certificates say is wanted.
        let chain = PckChain::verify(chain, &Verifier::default()).map_err(CollateralKeyError::Chain)?;
        let ca = match &chain.intermediate.common_name {
            name if name.contains("Platform") => PckCa::Platform,
            name if name.contains("Processor") => PckCa::Processor,
            name => return Err(CollateralKeyError::UnknownCa(name.clone())),
        };
        Ok(Self { tee, fmspc: chain.pck.fmspc, ca })
    }
}

/// Why a quote does not say what collateral it needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralKeyError {
    /// The quote carries identifiers of a PCK certificate only.
    #[error(
        "the quote has certification data of type {0}, no certificate chain; fetch the PCK certificate by its identifiers"
    )]
    NoChain(u16),
    /// The chain is not usable.
    #[error("the quote's certificate chain is not usable: {0}")]
    Chain(Failure),
    /// The CA is neither of those there are.
    #[error("the PCK certificate is from {0:?}, neither a Platform nor a Processor CA")]
    UnknownCa(String),
}

/// Evidence and collateral are of different vendors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the evidence is {evidence}, the collateral is for {collateral}; give the collateral of that platform"
)]
pub struct CollateralMismatch {
    /// What the evidence is.
    pub evidence: &'static str,
    /// What the collateral is for.
    pub collateral: &'static str,
}

/// Verifies evidence as of `time` and judges it by `policy`.
///
/// For one piece of evidence. For many, keep a [`Verifier`] and [`crate::TrustedCollateral`], and call
/// [`Policy::judge`].
///
/// # Errors
/// [`CollateralMismatch`] when the collateral is not for this kind of evidence. Everything else that is wrong is a
/// reason in the verdict.
pub fn appraise(
    evidence: Evidence<'_>,
    collateral: &AnyCollateral,
    time: Time,
    policy: &Policy,
) -> Result<Verdict, CollateralMismatch> {
    let verifier = Verifier::new(policy.roots());
    Ok(policy.judge(verify(&verifier, evidence, collateral, time)?))
}

fn verify(
    verifier: &Verifier,
    evidence: Evidence<'_>,
    collateral: &AnyCollateral,
    time: Time,
) -> Result<Appraisal, CollateralMismatch> {
    match (evidence, collateral) {
        (Evidence::Quote(quote), AnyCollateral::Dcap(collateral)) => {
            Ok(verifier.verify_quote(quote, &verifier.trust(collateral), time))
        }
        (Evidence::SnpReport(report), AnyCollateral::Snp(collateral)) => {
            Ok(verifier.verify_snp(report, collateral, time))
        }
        (Evidence::Quote(_), AnyCollateral::Snp(_)) => {
            Err(CollateralMismatch { evidence: "an SGX or TDX quote", collateral: "SEV-SNP" })
        }
        (Evidence::SnpReport(_), AnyCollateral::Dcap(_)) => {
            Err(CollateralMismatch { evidence: "an SEV-SNP report", collateral: "SGX or TDX" })
        }
    }
}
