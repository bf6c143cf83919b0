//! Protection of models at rest, and the broker that releases their keys.
//!
//! The owner of a model encrypts it ([`jwe`]) and gives its key to a broker of their own, with a policy. Whoever runs the model
//! has the encrypted file and an enclave. The enclave makes a key pair and evidence about it, the broker appraises that by the
//! policy and answers with the content key encrypted for the enclave ([`release`]); what passes between them may be relayed by
//! anybody. The broker records every release and refusal before it answers.
//!
//! - always: [`jwe`] and both halves of [`release`], which is what an enclave links;
//! - feature `client`: [`client`], who relays;
//! - feature `server`: the keys on disk ([`store`]), the record ([`audit`]), the decision ([`Broker`]) and HTTP ([`http`]).
#![forbid(unsafe_code)]

#[cfg(feature = "server")]
pub mod audit;
#[cfg(feature = "server")]
mod broker;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod collateral;
#[cfg(feature = "server")]
pub mod http;
pub mod jwe;
pub mod release;
#[cfg(feature = "server")]
pub mod store;

#[cfg(feature = "server")]
pub use broker::{Broker, Refusal};

/// Longest name of a key, in bytes.
pub const MAX_KEY_ID: usize = 128;

/// A name that cannot be a key's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key cannot be called {name:?}: use 1 to {MAX_KEY_ID} letters, digits, `.`, `_` and `-`, with a letter, digit or `_` first"
)]
pub struct BadKeyId {
    /// The name, or its beginning.
    pub name: String,
}

/// Checks the name of a key (`kid`, RFC 7517 section 4.5), which stands in paths and file names.
///
/// # Errors
/// [`BadKeyId`] when it cannot.
pub fn check_key_id(name: &str) -> Result<(), BadKeyId> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_good = name.len() <= MAX_KEY_ID
        && name.starts_with(fits)
        && name.chars().all(|c| fits(c) || c == '.' || c == '-');
    match is_good {
        true => Ok(()),
        false => Err(BadKeyId { name: name.chars().take(MAX_KEY_ID).collect() }),
    }
}
