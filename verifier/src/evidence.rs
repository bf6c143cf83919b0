//! Evidence of any supported kind, told apart by its bytes, and appraised in one call.

use serde::{Deserialize, Serialize};

use crate::{
    appraisal::Appraisal,
    collateral::{Collateral, CollateralError},
    policy::{Policy, Verdict},
    quote::without_oe_header,
    snp::{SNP_REPORT_LEN, SnpCollateral},
    types::Time,
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
