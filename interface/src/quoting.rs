//! Contracts for evidence: what an enclave asks of its host so that it can attest, and how one is asked to attest.
//!
//! A quote is a REPORT that a quoting enclave has signed (Intel SDM vol. 3D, "EREPORT"; "SGX ECDSA QuoteGenReference").
//! The quoting enclave is reached through the host, so whatever comes back is the host's word until it is checked.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

/// Bytes of a TARGETINFO.
pub const TARGETINFO: usize = 512;
/// Bytes of a REPORT.
pub const REPORT: usize = 432;
/// Bytes of a REPORT that its MAC is over, and that a quote carries: everything but KEYID and MAC.
pub const REPORT_BODY: usize = 384;
/// Bytes of report data.
pub const REPORT_DATA: usize = 64;

/// Host service: quotes. An image that attests lists `Quoting` under `services` in `enclos.toml`.
#[crate::interface(crate = crate)]
pub trait Quoting {
    /// TARGETINFO of the quoting enclave.
    fn target_info(&self) -> Result<[u8; TARGETINFO], NoQuote>;

    /// The quote of a REPORT for that target.
    fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, NoQuote>;
}

/// An enclave that gives evidence of itself to whoever calls it (an Attester, RFC 9334, section 4).
///
/// **The caller chooses the report data.** Serve this only where relying parties take report data for a nonce and
/// nothing else: a host can have the hash of its own key attested. Enclaves that attest to keys call `attest` themselves.
#[crate::interface(crate = crate)]
pub trait Attester {
    /// A quote with this report data.
    fn evidence(&self, report_data: &[u8; REPORT_DATA]) -> Result<Vec<u8>, NoQuote>;
}

/// Why there is no quote: cause and cure, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct NoQuote {
    /// The reason.
    pub reason: String,
}
