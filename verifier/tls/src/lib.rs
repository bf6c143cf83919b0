//! TLS whose certificates carry evidence: rustls on both sides, in the interoperable RA-TLS format.
#![forbid(unsafe_code)]

mod certificate;
mod format;

pub use certificate::{BindingError, BoundEvidence, EvidenceForm, GRAMINE_QUOTE_OID};
pub use format::{
    Claims, EVIDENCE_OID, FormatError, HashAlgorithm, HashEntry, INTEL_QUOTE_TAG, REPORT_DATA,
    TaggedEvidence, report_data,
};
