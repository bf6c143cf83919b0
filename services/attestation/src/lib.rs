//! An attestation service with Azure Attestation's REST interface, policy language and tokens.
#![forbid(unsafe_code)]

pub mod policy;
