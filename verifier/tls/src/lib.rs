//! TLS whose certificates carry evidence: rustls on both sides, in the interoperable RA-TLS format.
#![forbid(unsafe_code)]

mod attester;
mod certificate;
mod cmw;
mod collateral;
mod format;
mod peer;

pub use attester::{AttestedIdentity, Attester, CertificateOptions, IssueError, Renewal};
pub use certificate::{
    BindingError, BoundEvidence, EvidenceForm, GRAMINE_QUOTE_OID, INTEL_QUOTE_OID,
    OPEN_ENCLAVE_EVIDENCE_OIDS, OPEN_ENCLAVE_REPORT_OID,
};
pub use cmw::CMW_OID;
pub use collateral::{CachedCollateral, CollateralSource, CollateralUnavailable, OfflineCollateral};
pub use format::{
    Claims, EVIDENCE_OID, FormatError, HashAlgorithm, HashEntry, INTEL_QUOTE_TAG, REPORT_DATA,
    TaggedEvidence, report_data,
};
pub use peer::{Peer, PeerVerifier, Refusal};
