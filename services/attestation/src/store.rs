//! What the service must not forget: policies, policy management certificates and signing keys.
//!
//! An embedded database in one file. A write returns once it is on the disk, so what was acknowledged survives the
//! process being killed and the machine losing power.

use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

/// (tenant, attestation type) to the JWS of the policy as it was set.
const POLICIES: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("policies");
/// (tenant, thumbprint) to the chain of a policy management certificate, JSON.
const CERTIFICATES: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("policy-certificates");
/// Tenants whose initial certificates were stored, so that a removed one does not come back.
const TENANTS: TableDefinition<'_, &str, u64> = TableDefinition::new("tenants");
/// When made (milliseconds since 1970) to a signing key.
const KEYS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("signing-keys");

/// The database failed.
#[derive(Debug, thiserror::Error)]
#[error("the store {} failed: {source}; check the disk, its permissions and that no other process uses it", .path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What the database says.
    #[source]
    pub source: Box<redb::Error>,
}

/// A signing key with its certificate.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredKey {
    /// When it was made, milliseconds since 1970.
    pub made: u64,
    /// The private key, PKCS #8.
    #[serde(with = "hex::serde")]
    pub private_key: Vec<u8>,
    /// Its certificate, DER.
    #[serde(with = "hex::serde")]
    pub certificate: Vec<u8>,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: PathBuf,
}

impl Store {
    /// Opens the store in a folder, making both when they are not there; only the owner may read it.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened or is in use.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("attestation.redb");
        let open = || -> Result<Database, redb::Error> {
            std::fs::create_dir_all(folder)?;
            let mut options = std::fs::OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let file = options.open(&path)?;
            let database = Database::builder().create_file(file)?;
            // Made at once, so that reading never meets a missing table.
            let write = database.begin_write()?;
            write.open_table(POLICIES)?;
            write.open_table(CERTIFICATES)?;
            write.open_table(TENANTS)?;
            write.open_table(KEYS)?;
            write.commit()?;
            Ok(database)
        };
        match open() {
            Ok(database) => Ok(Self { database, path }),
            Err(source) => Err(StoreError { path, source: Box::new(source) }),
        }
    }

    /// The policy set for a tenant and attestation type, if one is.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn policy(&self, tenant: &str, kind: &str) -> Result<Option<String>, StoreError> {
        self.run(|database| {
            let policies = database.begin_read()?.open_table(POLICIES)?;
            Ok(policies.get((tenant, kind))?.map(|policy| policy.value().to_owned()))
        })
    }

    /// Sets a policy, or removes it.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails; then the policy is what it was.
    pub fn set_policy(&self, tenant: &str, kind: &str, jws: Option<&str>) -> Result<(), StoreError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let mut policies = write.open_table(POLICIES)?;
                match jws {
                    Some(jws) => policies.insert((tenant, kind), jws)?.map(|_| ()),
                    None => policies.remove((tenant, kind))?.map(|_| ()),
                };
            }
            Ok(write.commit()?)
        })
    }

    /// The policy management certificates of a tenant: chains of certificates in base64 of DER.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn certificates(&self, tenant: &str) -> Result<Vec<Vec<String>>, StoreError> {
        self.run(|database| {
            let certificates = database.begin_read()?.open_table(CERTIFICATES)?;
            let mut chains = Vec::new();
            for entry in certificates.range((tenant, "")..)? {
                let (key, chain) = entry?;
                if key.value().0 != tenant {
                    break;
                }
                chains.extend(serde_json::from_str::<Vec<String>>(chain.value()));
            }
            Ok(chains)
        })
    }

    /// Adds a policy management certificate, or one that is there already.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn add_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        chain: &[String],
    ) -> Result<(), StoreError> {
        self.run(|database| {
            let write = database.begin_write()?;
            write.open_table(CERTIFICATES)?.insert((tenant, thumbprint), json(chain).as_str())?;
            Ok(write.commit()?)
        })
    }

    /// Removes a policy management certificate, or one that is not there; says `false`, and removes nothing, when it is
    /// the last.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn remove_certificate(&self, tenant: &str, thumbprint: &str) -> Result<bool, StoreError> {
        self.run(|database| {
            let write = database.begin_write()?;
            let mut others = 0;
            let mut found = false;
            {
                let mut certificates = write.open_table(CERTIFICATES)?;
                for entry in certificates.range((tenant, "")..)? {
                    let (key, _) = entry?;
                    match key.value() {
                        (owner, _) if owner != tenant => break,
                        (_, this) if this == thumbprint => found = true,
                        _ => others += 1,
                    }
                }
                if found && others > 0 {
                    certificates.remove((tenant, thumbprint))?;
                }
            }
            write.commit()?;
            Ok(!found || others > 0)
        })
    }

    /// Stores the initial policy management certificates of a tenant, once in the life of the store.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn seed_certificates(
        &self,
        tenant: &str,
        now: u64,
        certificates: &[(String, Vec<String>)],
    ) -> Result<(), StoreError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let mut tenants = write.open_table(TENANTS)?;
                if tenants.insert(tenant, now)?.is_none() {
                    let mut table = write.open_table(CERTIFICATES)?;
                    for (thumbprint, chain) in certificates {
                        table.insert((tenant, thumbprint.as_str()), json(chain).as_str())?;
                    }
                }
            }
            Ok(write.commit()?)
        })
    }

    /// All signing keys, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        self.run(|database| {
            let keys = database.begin_read()?.open_table(KEYS)?;
            let mut stored = Vec::new();
            for entry in keys.iter()? {
                stored.extend(serde_json::from_slice::<StoredKey>(entry?.1.value()));
            }
            Ok(stored)
        })
    }

    /// Adds a signing key and removes others, at once.
    ///
    /// # Errors
    /// [`StoreError`] when the database fails.
    pub fn replace_keys(&self, add: Option<&StoredKey>, remove: &[u64]) -> Result<(), StoreError> {
        self.run(|database| {
            let write = database.begin_write()?;
            {
                let mut keys = write.open_table(KEYS)?;
                if let Some(key) = add {
                    keys.insert(key.made, json(key).as_bytes())?;
                }
                for made in remove {
                    keys.remove(made)?;
                }
            }
            Ok(write.commit()?)
        })
    }

    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        work(&self.database)
            .map_err(|source| StoreError { path: self.path.clone(), source: Box::new(source) })
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and numbers are serializable")
}
