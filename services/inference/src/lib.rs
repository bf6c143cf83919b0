//! Confidential inference: what the host asks of the enclave, and (feature `client`) the client.
//!
//! The enclave makes an HPKE key when it starts and keeps it inside. [`Offer`] is what a client needs: the key configuration
//! (RFC 9458, section 3), the model's hash, and a quote whose report data bind the two ([`report_data`]). The client verifies
//! before it sends; then requests and replies are Oblivious HTTP (RFC 9458) around binary HTTP (RFC 9292), of which the host
//! sees lengths and times. Inside is the Open Inference Protocol, version 2.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Smallest length of a body, in bytes: see [`padded`].
pub const SMALLEST_BUCKET: usize = 1024;

/// What the host may ask of the enclave. All arguments are the host's; results are public.
#[enclos::interface]
pub trait Inference {
    /// Loads the model, once: what the enclave serves does not change while it runs.
    fn load(&self, name: &str, model: &[u8]) -> Result<Loaded, ServiceError>;

    /// What clients need to verify this enclave and to encrypt for it. Another call gives the same, unless the key has
    /// been used up.
    fn offer(&self) -> Result<Offer, ServiceError>;

    /// An encapsulated request (`message/ohttp-req`), answered by an encapsulated response (`message/ohttp-res`). What is
    /// wrong with the request inside, only the response inside says.
    fn infer(&self, request: &[u8]) -> Result<Vec<u8>, ServiceError>;
}

/// A model, as the enclave found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// SHA-256 of the file.
    pub model: [u8; 32],
    /// The engine that runs it.
    pub engine: String,
}

/// What a client verifies before it sends anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Key configuration (RFC 9458, section 3.1).
    #[serde(with = "serde_bytes")]
    pub key_config: Vec<u8>,
    /// SHA-256 of the model's file.
    pub model: [u8; 32],
    /// A quote whose report data are [`report_data`] of the two above.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
}

/// Why the enclave does not do what the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ServiceError {
    /// There is a model already.
    #[error("a model is loaded already; start another enclave for another model")]
    AlreadyLoaded,
    /// There is no model yet.
    #[error("no model is loaded")]
    NoModel,
    /// The model cannot be used.
    #[error("the model cannot be loaded: {reason}")]
    Model {
        /// Which node, and why.
        reason: String,
    },
    /// The enclave cannot attest.
    #[error("no evidence: {reason}")]
    Evidence {
        /// Cause and cure.
        reason: String,
    },
    /// It is not encrypted for the current key, or was altered.
    #[error(
        "the request cannot be decrypted: it was altered, or is for another key; ask for the offer again"
    )]
    Undecryptable,
    /// The same request came before.
    #[error("this request was answered before: a request is answered once")]
    Replayed,
    /// The key has been used for as many requests as the enclave remembers.
    #[error("the key is used up; ask for the offer again")]
    KeyUsedUp,
    /// Encryption itself failed.
    #[error("cryptography failed: {reason}")]
    Cryptography {
        /// The library's words.
        reason: String,
    },
}

/// Report data that bind a key configuration and a model: SHA-256 of a label, the configuration's length (64 bits, big-endian),
/// the configuration and the model's hash; 32 zeros follow.
pub fn report_data(key_config: &[u8], model: &[u8; 32]) -> [u8; 64] {
    let mut hash = Sha256::new();
    hash.update(b"enclos inference 1\0");
    hash.update((key_config.len() as u64).to_be_bytes());
    hash.update(key_config);
    hash.update(model);
    let mut data = [0; 64];
    data[..32].copy_from_slice(&hash.finalize());
    data
}

/// JSON with spaces behind it, up to the next power of two, and at least [`SMALLEST_BUCKET`]: lengths tell less, and
/// everybody's parser skips them.
pub fn padded(mut json: Vec<u8>) -> Vec<u8> {
    let bucket = json.len().max(SMALLEST_BUCKET).checked_next_power_of_two();
    json.resize(bucket.unwrap_or(json.len()), b' ');
    json
}
