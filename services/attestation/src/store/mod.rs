//! What the service must not forget: policies, policy management certificates and signing keys.
//!
//! [`Store`] says what a store promises; [`EmbeddedStore`] is one file of one process, [`PostgresStore`] a database that
//! several replicas share. In both, a write returns once it is durable: what was acknowledged survives the process being
//! killed and the machine losing power.
//!
//! Who may change a policy is decided by certificates that another replica may be changing meanwhile. So each tenant has
//! a [`Revision`], new with every change of its certificates, and a write names the one it was authorized under: when
//! that is no longer the present one, nothing is written and the caller decides again.

#[cfg(feature = "server")]
mod embedded;
#[cfg(feature = "server")]
mod postgres;
#[cfg(feature = "server")]
mod records;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[cfg(feature = "server")]
pub use self::{embedded::EmbeddedStore, postgres::PostgresStore, records::RecordFile};

/// Which state of a tenant's certificates a decision was made under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Revision(pub u64);

/// Certificates whose keys may sign policies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signers {
    /// Of when this is.
    pub revision: Revision,
    /// Chains of certificates, base64 of DER.
    pub chains: Vec<Vec<String>>,
}

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// It is done, and durable.
    Done,
    /// Nothing was written: the state it was decided under has been changed since.
    Stale,
    /// Nothing was written: the tenant's last certificate would be gone.
    LastCertificate,
}

/// A signing key with its certificate.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredKey {
    /// When it was made, milliseconds since 1970.
    pub made: u64,
    /// The private key, PKCS #8. `None` when only its certificate is left, by which tokens are still validated.
    #[serde(default, with = "private_key", skip_serializing_if = "Option::is_none")]
    pub private_key: Option<Vec<u8>>,
    /// Its certificate, DER.
    #[serde(with = "hex::serde")]
    pub certificate: Vec<u8>,
}

/// A private key as hexadecimal digits.
mod private_key {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(key: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        hex::serde::serialize(key.as_deref().unwrap_or_default(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        let digits = String::deserialize(deserializer)?;
        hex::decode(digits).map(Some).map_err(|_| D::Error::custom("a private key is not hexadecimal digits"))
    }
}

/// The store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The embedded database.
    #[error("the store {} failed: {source}; check the disk, its permissions and that no other process uses it", .path.display())]
    Embedded {
        /// The file.
        path: PathBuf,
        /// What the database says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// PostgreSQL.
    #[error(
        "the PostgreSQL store failed: {reason}; check that the server runs, and the table [postgres] of the configuration"
    )]
    Postgres {
        /// What the client or the server says.
        reason: String,
    },
    /// The host of the enclave that the service runs in.
    #[error("the host of the enclave failed to keep records: {reason}")]
    Host {
        /// What it says.
        reason: String,
    },
    /// There is no room for more.
    #[error(
        "policies and certificates would have more than {limit} bytes altogether; remove some, or make them shorter"
    )]
    Full {
        /// How much there may be.
        limit: usize,
    },
    /// A record is not what this service writes.
    #[error("{what} in the store is damaged: {reason}; restore the store from a backup")]
    Damaged {
        /// Which record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a store does. Each call is one transaction, and the calls of all replicas are as if made one after another.
///
/// # Errors
/// All calls give [`StoreError`] when the database fails. Then a write was done wholly or not at all, and reading tells.
pub trait Store: std::fmt::Debug + Send + Sync {
    /// The policy set for a tenant and attestation type, if one is.
    fn policy(&self, tenant: &str, kind: &str) -> Result<Option<String>, StoreError>;

    /// Sets a policy, or removes it, when the tenant's certificates are still of a revision.
    fn set_policy(
        &self,
        tenant: &str,
        kind: &str,
        jws: Option<&str>,
        decided: Revision,
    ) -> Result<Written, StoreError>;

    /// The policy management certificates of a tenant.
    fn signers(&self, tenant: &str) -> Result<Signers, StoreError>;

    /// Adds a policy management certificate, or one that is there already.
    fn add_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        chain: &[String],
        decided: Revision,
    ) -> Result<Written, StoreError>;

    /// Removes a policy management certificate, or one that is not there; never the last.
    fn remove_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        decided: Revision,
    ) -> Result<Written, StoreError>;

    /// Stores the initial policy management certificates of a tenant (thumbprint and chain), once in the life of the
    /// store, so that a removed one does not come back.
    fn seed_certificates(
        &self,
        tenant: &str,
        certificates: &[(String, Vec<String>)],
    ) -> Result<(), StoreError>;

    /// All signing keys, oldest first.
    fn keys(&self) -> Result<Vec<StoredKey>, StoreError>;

    /// Adds a signing key and removes others at once, when the newest key is still the one made at `newest`.
    fn replace_keys(
        &self,
        newest: Option<u64>,
        add: Option<&StoredKey>,
        remove: &[u64],
    ) -> Result<Written, StoreError>;
}

#[cfg(feature = "server")]
fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and numbers are serializable")
}

#[cfg(feature = "server")]
fn chain_of(thumbprint: &str, text: &str) -> Result<Vec<String>, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged {
        what: format!("policy management certificate {thumbprint}"),
        reason: error.to_string(),
    })
}

#[cfg(feature = "server")]
fn key_of(made: u64, text: &[u8]) -> Result<StoredKey, StoreError> {
    // Not what it has: a message must not carry parts of a key.
    serde_json::from_slice(text).map_err(|error| StoreError::Damaged {
        what: format!("the signing key made at {made} ms"),
        reason: format!("at column {}", error.column()),
    })
}
