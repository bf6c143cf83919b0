//! The relying party: evidence, collateral, appraisal and policy.
//!
//! Takes quotes of SGX (v3, v4, v5) and TDX (v4, v5) and AMD SEV-SNP reports, with collateral given offline and a
//! time of the caller's choosing, and says what is true of them ([`Appraisal`]) and whether that meets a [`Policy`]
//! ([`Verdict`]). Nothing is fetched and no clock is read here.
//!
//! Evidence, collateral and policies may come from anybody: nothing in them makes this crate panic.
//!
//! ```no_run
//! use enclos_verifier::{AnyCollateral, Evidence, Policy, Time, appraise};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let quote = std::fs::read("quote.bin")?;
//! let collateral = AnyCollateral::from_json(&std::fs::read("collateral.json")?)?;
//! let policy = Policy::from_toml(&std::fs::read_to_string("policy.toml")?)?;
//! let verdict = appraise(Evidence::detect(&quote), &collateral, Time::now(), &policy)?;
//! println!("{verdict}");
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod appraisal;
mod certificate;
mod collateral;
mod crypto;
mod details;
mod evidence;
mod pki;
mod policy;
pub mod quote;
mod roots;
mod snp;
mod status;
mod types;
mod verify;

pub use appraisal::{
    Appraisal, Check, CheckKind, Identity, Level, Platform, Shortfall, SnpTcb, Tcb, TcbComponent, TcbPart,
};
pub use certificate::{SIGNING_EVIDENCE_OID, SigningEvidence, signing_key_digest};
pub use collateral::{Collateral, CollateralError, TrustedCollateral};
pub use details::{CertificateDetails, CertificateRole, Details, PartVersions, SecurityVersion, Validity};
pub use evidence::{
    AnyCollateral, CollateralKey, CollateralKeyError, CollateralMismatch, Evidence, PckCa, appraise,
};
pub use policy::{
    Acceptance, Bytes, ConditionalAcceptance, IdentityRule, Policy, PolicyError, Reason, TcbPolicy, Verdict,
};
pub use quote::{Quote, QuoteError, Tee};
pub use roots::{AMD_ROOTS, INTEL_SGX_ROOT, NotACertificate, RootOfTrust, Roots, key_id};
pub use snp::{SNP_REPORT_LEN, SnpCollateral, SnpError, SnpReport};
pub use status::{Failure, Status, TcbStatus};
pub use types::{Hex, HexError, Time, TimeError, hexadecimal};
pub use verify::Verifier;
