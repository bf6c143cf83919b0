//! What crosses the boundary of the vault: calls into the enclave ([`Vault`]), and what the enclave asks of the host
//! ([`Storage`]).
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Keeps secrets, sealed, over restarts.
#[enclos::interface]
pub trait Vault {
    /// Adds the variables of a `.env` file; those of names that exist are replaced. All of them or, on an error, none.
    fn import(&self, dotenv: &str) -> Result<Imported, VaultError>;

    /// What there is, without the values.
    fn list(&self) -> Result<Vec<Entry>, VaultError>;

    /// A secret's value.
    fn fetch(&self, name: &str) -> Result<String, VaultError>;

    /// Replaces a secret by 32 random bytes of the CPU, in hexadecimal.
    fn rotate(&self, name: &str) -> Result<Entry, VaultError>;
}

/// Keeps one blob for the enclave. The host can lose it, change it or bring back an older one; the first two the
/// enclave notices.
#[enclos::interface]
pub trait Storage {
    /// The blob saved last, if any.
    fn load(&self) -> Result<Option<Vec<u8>>, StorageError>;

    /// Replaces the blob: after a crash at any moment either the old or the new one is there.
    fn save(&self, blob: &[u8]) -> Result<(), StorageError>;
}

/// What there is to know about a secret without seeing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// 1 at first, then one more with each change.
    pub version: u32,
    /// Length of the value in bytes.
    pub bytes: u32,
}

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Secrets that are new.
    pub added: u32,
    /// Secrets that existed with another value.
    pub changed: u32,
    /// Secrets that existed with this value.
    pub unchanged: u32,
}

/// Why the vault refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// No such secret.
    #[error("there is no secret {name:?}: `list` names those there are")]
    Missing {
        /// The name asked for.
        name: String,
    },
    /// The text is not a `.env` file.
    #[error("the .env file is not usable: {reason}")]
    Dotenv {
        /// What is wrong with it.
        reason: String,
    },
    /// What the host brought back does not open.
    #[error("the stored vault does not open: {reason}")]
    Sealed {
        /// Why.
        reason: SealedReason,
    },
    /// The program runs outside an enclave, or the CPU failed it.
    #[error("the enclave failed: {reason}")]
    Enclave {
        /// What went wrong.
        reason: String,
    },
    /// The host could not keep or bring back the blob. The change was not made.
    #[error("the host's storage failed: {reason}")]
    Storage {
        /// What it said.
        reason: String,
    },
}

/// Why a sealed vault does not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum SealedReason {
    /// Altered, or of another signer, product or machine.
    #[error("it was altered, or sealed by another signer or on another machine; restore the right file")]
    NotAuthentic,
    /// Of a newer security version.
    #[error("it was sealed by security version {sealed}, this image is {own}: run the newer image")]
    FromNewerVersion {
        /// Security version it was sealed by.
        sealed: u16,
        /// Security version of this image.
        own: u16,
    },
    /// Not a sealed vault at all, or cut short.
    #[error("it is not a sealed vault ({what}); restore the right file")]
    Malformed {
        /// What is wrong.
        what: String,
    },
}

/// Why the host could not keep or bring back the blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct StorageError {
    /// The file.
    pub file: String,
    /// What the operating system said.
    pub reason: String,
}
