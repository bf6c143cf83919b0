//! The relying party: evidence, collateral, appraisal and policy.
#![forbid(unsafe_code)]

mod appraisal;
mod collateral;
mod crypto;
mod pki;
pub mod quote;
mod roots;
mod status;
mod types;
mod verify;

pub use appraisal::{
    Appraisal, Check, CheckKind, Identity, Level, Platform, Shortfall, SnpTcb, Tcb, TcbComponent, TcbPart,
};
pub use collateral::{Collateral, CollateralError, TrustedCollateral};
pub use quote::{Quote, QuoteError, Tee};
pub use roots::{AMD_ROOTS, INTEL_SGX_ROOT, NotACertificate, RootOfTrust, Roots, key_id};
pub use status::{Failure, Status, TcbStatus};
pub use types::{Hex, HexError, Time, TimeError};
pub use verify::Verifier;
