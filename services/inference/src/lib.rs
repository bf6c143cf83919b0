//! Confidential inference: what the host asks of the enclave, and (feature `client`) the client.
//!
//! The enclave makes HPKE keys and keeps them inside. [`Offer`] is what a client needs: the key configuration in use (RFC 9458,
//! section 3), the models served, and a quote whose report data bind the two ([`report_data`]). The client verifies before it
//! sends; then requests and replies are Oblivious HTTP (RFC 9458) around binary HTTP (RFC 9292), of which the host sees lengths
//! and times. Inside is the Open Inference Protocol, version 2.
#![forbid(unsafe_code)]

// Not below src: all that is there counts towards the contract's hash, and so towards the enclave's measurement.
#[cfg(feature = "client")]
#[path = "../client/mod.rs"]
pub mod client;
#[cfg(feature = "json")]
mod document;

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "json")]
pub use self::document::{DocumentError, OFFER_PATH};

/// Smallest length of a padded message, in bytes: see [`padded`].
pub const SMALLEST_BUCKET: usize = 1024;
/// Longest encapsulated request that the enclave takes, in bytes.
pub const MAX_REQUEST: usize = 64 << 20;
/// Versions of models that the enclave serves at once, all names together.
pub const MAX_MODELS: usize = 64;
/// Most rows that a model may be run on in one go: see [`Settings::max_batch_size`].
pub const MAX_BATCH_SIZE: u32 = 256;
/// How long a request waits for others at most, and by default, in microseconds: see [`Settings::max_queue_delay`].
pub const MAX_QUEUE_DELAY: u64 = 1_000_000;
/// See [`MAX_QUEUE_DELAY`].
pub const QUEUE_DELAY: u64 = 500;
/// Longest name of a model, in bytes.
pub const MAX_NAME: usize = 128;

/// What the host may ask of the enclave. All arguments are the host's; results are public.
#[enclos::interface]
pub trait Inference {
    /// Sets what is to be stricter than the enclave has it by itself.
    fn configure(&self, settings: Settings) -> Result<(), ServiceError>;

    /// Serves this ONNX file under this name, from now on as the newest version of it. Versions before it are served until
    /// they are unloaded. The next offer names it.
    fn load(&self, name: &str, model: &[u8]) -> Result<Loaded, ServiceError>;

    /// A request for the key of this name, made for a nonce of the key broker's: JSON for the broker, to be passed on as it is.
    fn key_request(&self, key_id: &str, nonce: &[u8]) -> Result<Vec<u8>, ServiceError>;

    /// As [`Inference::load`], of an encrypted ONNX file (JWE, RFC 7516). `release` is the broker's answer to the last of
    /// [`Inference::key_request`] for its key, as it came.
    fn load_encrypted(&self, name: &str, jwe: &[u8], release: &[u8]) -> Result<Loaded, ServiceError>;

    /// No longer serves this version. Requests being answered by it go on.
    fn unload(&self, name: &str, sha256: [u8; 32]) -> Result<(), ServiceError>;

    /// What clients need to verify this enclave and to encrypt for it. The same as before while neither the key nor the models
    /// change.
    fn offer(&self) -> Result<Offer, ServiceError>;

    /// Makes another key now. The one before answers until the time that its offers named.
    fn rotate(&self) -> Result<Offer, ServiceError>;

    /// An encapsulated request (`message/ohttp-req`), answered by an encapsulated response (`message/ohttp-res`). What is
    /// wrong with the request inside, only the response inside says.
    fn infer(&self, request: &[u8]) -> Result<Vec<u8>, ServiceError>;

    /// Serves attested TLS at this address, once: one of those that the manifest permits to listen at. Says where; port 0 is one
    /// of the host's choice.
    fn listen(&self, address: &str) -> Result<String, ServiceError>;

    /// How things are, for the host's records.
    fn status(&self) -> Status;
}

/// What the host may choose. Nothing here can weaken what the measurement stands for: of a key's lifetime and of the padding the
/// enclave refuses less than its own values, and requests are only run together where it has proven that no client's result
/// depends on another's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How long a key takes requests, in seconds; it is offered for the first half. At most a day, which is the default.
    pub key_lifetime: Option<u64>,
    /// Smallest length that replies are padded to, in bytes before encryption; at least [`SMALLEST_BUCKET`], which is the
    /// default.
    pub smallest_bucket: Option<u64>,
    /// Most rows, of requests that come at about the same time, that a model is run on in one go, if its rows are proven to be
    /// independent of each other: 1, which is off and the default, to [`MAX_BATCH_SIZE`]. For models that are loaded afterwards.
    pub max_batch_size: Option<u32>,
    /// How long a request waits for others, in microseconds: at most [`MAX_QUEUE_DELAY`]; [`QUEUE_DELAY`] by default. For models that
    /// are loaded afterwards.
    pub max_queue_delay: Option<u64>,
}

/// A model, as the enclave found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// SHA-256 of the ONNX file: the model's version.
    pub sha256: [u8; 32],
    /// The engine that runs it.
    pub engine: String,
    /// Why it is this one: how fast each engine is with it, or why it does not run it; and if requests are to be run together,
    /// whether they are. Of an encrypted model nothing of what is in it.
    pub reason: String,
}

/// A version of a model that is served.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedModel {
    /// Its name, in paths of the Open Inference Protocol.
    pub name: String,
    /// SHA-256 of the ONNX file.
    pub sha256: [u8; 32],
}

impl OfferedModel {
    /// Its version in the Open Inference Protocol: the hash in hexadecimal digits.
    pub fn version(&self) -> String {
        version(&self.sha256)
    }

    /// Where the Open Inference Protocol has this very version.
    pub fn path(&self) -> String {
        format!("/v2/models/{}/versions/{}", self.name, self.version())
    }
}

impl fmt::Debug for OfferedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version())
    }
}

/// A model's version in the Open Inference Protocol: the SHA-256 of its file in lower-case hexadecimal digits.
pub fn version(sha256: &[u8; 32]) -> String {
    sha256.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a client verifies before it sends anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Key configuration (RFC 9458, section 3.1).
    #[serde(with = "serde_bytes")]
    pub key_config: Vec<u8>,
    /// Every version served; of a name, the newest last.
    pub models: Vec<OfferedModel>,
    /// A quote whose report data are [`report_data`] of the two above.
    #[serde(with = "serde_bytes")]
    pub evidence: Vec<u8>,
    /// Until then the key takes requests: seconds since 1970, by the enclave's clock, which is the host's allegation. Nothing
    /// vouches for it; it only tells clients when to ask again.
    pub not_after: u64,
}

/// How an enclave is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Calls that can be in the enclave at once.
    pub threads: u32,
    /// Every version served; of a name, the newest last.
    pub models: Vec<OfferedModel>,
    /// Keys that take requests, the one offered first.
    pub keys: Vec<KeyStatus>,
}

/// What can be told of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// Its identifier in the key configuration.
    pub id: u8,
    /// When it was made, seconds since 1970.
    pub made: u64,
    /// As in [`Offer::not_after`].
    pub not_after: u64,
    /// Requests decrypted with it.
    pub requests: u64,
}

/// Why the enclave does not do what the host asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ServiceError {
    /// The host asks for less than the enclave grants.
    #[error("the setting is not possible: {reason}")]
    Setting {
        /// What is.
        reason: String,
    },
    /// There is no model yet.
    #[error("no model is loaded")]
    NoModel,
    /// The name cannot be in a path.
    #[error(
        "a model cannot be called {name:?}: use 1 to {MAX_NAME} letters, digits, `.`, `_` and `-`, with a letter, digit or `_` first"
    )]
    Name {
        /// The name, or its beginning.
        name: String,
    },
    /// The model cannot be used.
    #[error("the model cannot be loaded: {reason}")]
    Model {
        /// Which node, and why.
        reason: String,
    },
    /// The model is encrypted, and its key is not to be had or another one.
    #[error("the encrypted model cannot be decrypted: {reason}")]
    Encrypted {
        /// Cause and cure.
        reason: String,
    },
    /// As many as there may be.
    #[error("{MAX_MODELS} versions of models are served already: unload some")]
    TooManyModels,
    /// No such version is served.
    #[error("this version of the model is not served")]
    UnknownModel,
    /// There is no attested TLS.
    #[error("attested TLS cannot be served: {reason}; the manifest lists addresses that may be listened at")]
    Listen {
        /// Where, and why not.
        reason: String,
    },
    /// The enclave cannot attest.
    #[error("no evidence: {reason}")]
    Evidence {
        /// Cause and cure.
        reason: String,
    },
    /// It is longer than [`MAX_REQUEST`].
    #[error("the request is longer than {MAX_REQUEST} bytes")]
    TooLarge,
    /// It is for a key that this enclave does not have, or no longer.
    #[error("the request is for a key that is not, or no longer, in use; ask for the offer again")]
    UnknownKey,
    /// It is not encrypted for the key that it names, or was altered.
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

/// Report data that bind a key configuration and models: SHA-256 of a label and, each number of 64 bits and big-endian, the
/// configuration's length, the configuration, how many models there are, and for each the length of its name, the name and the
/// hash; 32 zeros follow.
pub fn report_data(key_config: &[u8], models: &[OfferedModel]) -> [u8; 64] {
    let mut hash = Sha256::new();
    hash.update(b"enclos inference 2\0");
    hash.update((key_config.len() as u64).to_be_bytes());
    hash.update(key_config);
    hash.update((models.len() as u64).to_be_bytes());
    for model in models {
        hash.update((model.name.len() as u64).to_be_bytes());
        hash.update(&model.name);
        hash.update(model.sha256);
    }
    let mut data = [0; 64];
    data[..32].copy_from_slice(&hash.finalize());
    data
}

/// Binary HTTP with zeros behind it (RFC 9292, section 3.8), up to the next power of two, and at least `smallest` bytes: lengths
/// tell less.
pub fn padded(mut message: Vec<u8>, smallest: usize) -> Vec<u8> {
    let bucket = message.len().max(smallest).checked_next_power_of_two();
    message.resize(bucket.unwrap_or(message.len()), 0);
    message
}
