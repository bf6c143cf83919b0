//! The store of one process: an embedded database in one file.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Revision, Signers, Store, StoreError, StoredKey, Written, chain_of, json, key_of};

/// (tenant, attestation type) to the JWS of the policy as it was set.
const POLICIES: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("policies");
/// (tenant, thumbprint) to the chain of a policy management certificate, JSON.
const CERTIFICATES: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("policy-certificates");
/// Tenants whose initial certificates were stored, so that a removed one does not come back.
const TENANTS: TableDefinition<'_, &str, u64> = TableDefinition::new("tenants");
/// How often the certificates of a tenant were changed.
const REVISIONS: TableDefinition<'_, &str, u64> = TableDefinition::new("revisions");
/// When made (milliseconds since 1970) to a signing key.
const KEYS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("signing-keys");

/// A store in a file that only this process may use.
#[derive(Debug)]
pub struct EmbeddedStore {
    database: Database,
    path: PathBuf,
    /// What the table of policies has, because every attestation asks; `None` once a write has failed, for then only the file
    /// tells what was written.
    policies: RwLock<Option<Policies>>,
    /// Held from a write of a policy until it stands in `policies`, so that these follow one another as the writes do.
    writing: Mutex<()>,
}

/// Policies by tenant and attestation type.
type Policies = HashMap<String, HashMap<String, String>>;

/// Of a transaction: the database's own failures, or ours.
enum Failure {
    Database(Box<redb::Error>),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

impl EmbeddedStore {
    /// Opens the store in a folder, making both when they are not there; only the owner may read it.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened or is in use.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join("attestation.redb");
        let open = || -> Result<(Database, Policies), redb::Error> {
            let database = create(folder, &path)?;
            // Made at once, so that reading never meets a missing table.
            let write = database.begin_write()?;
            write.open_table(POLICIES)?;
            write.open_table(CERTIFICATES)?;
            write.open_table(TENANTS)?;
            write.open_table(REVISIONS)?;
            write.open_table(KEYS)?;
            write.commit()?;
            let mut policies = Policies::new();
            for entry in database.begin_read()?.open_table(POLICIES)?.iter()? {
                let (key, policy) = entry?;
                let (tenant, kind) = key.value();
                policies.entry(tenant.into()).or_default().insert(kind.into(), policy.value().into());
            }
            Ok((database, policies))
        };
        match open() {
            Ok((database, policies)) => {
                Ok(Self { database, path, policies: RwLock::new(Some(policies)), writing: Mutex::default() })
            }
            Err(source) => Err(StoreError::Embedded { path, source: source.into() }),
        }
    }

    fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, Failure>) -> Result<T, StoreError> {
        let outcome = self.database.begin_read().map_err(Failure::from).and_then(|read| work(&read));
        outcome.map_err(|failure| self.error(failure))
    }

    /// Commits when the work is done; otherwise nothing is changed.
    fn write(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<Written, Failure>,
    ) -> Result<Written, StoreError> {
        let transaction = || {
            let write = self.database.begin_write()?;
            let written = work(&write)?;
            match written {
                Written::Done => write.commit()?,
                Written::Stale | Written::LastCertificate => write.abort()?,
            }
            Ok(written)
        };
        transaction().map_err(|failure| self.error(failure))
    }

    fn error(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Database(source) => {
                StoreError::Embedded { path: self.path.clone(), source: source.into() }
            }
            Failure::Store(error) => error,
        }
    }
}

/// Opens the database in a file, making it and its folder when they are not there; only the owner may read it.
pub(super) fn create(folder: &Path, path: &Path) -> Result<Database, redb::Error> {
    std::fs::create_dir_all(folder)?;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    Ok(Database::builder().create_file(options.open(path)?)?)
}

/// Whether a tenant's certificates are still of a revision; with `change`, they are of the next from now on.
fn is_current(
    write: &WriteTransaction,
    tenant: &str,
    decided: Revision,
    change: bool,
) -> Result<bool, Failure> {
    let mut revisions = write.open_table(REVISIONS)?;
    let current = revisions.get(tenant)?.map_or(0, |revision| revision.value());
    if change {
        revisions.insert(tenant, current + 1)?;
    }
    Ok(current == decided.0)
}

impl Store for EmbeddedStore {
    fn policy(&self, tenant: &str, kind: &str) -> Result<Option<String>, StoreError> {
        if let Some(policies) = &*self.policies.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(policies.get(tenant).and_then(|policies| policies.get(kind)).cloned());
        }
        self.read(|read| {
            let policies = read.open_table(POLICIES)?;
            Ok(policies.get((tenant, kind))?.map(|policy| policy.value().to_owned()))
        })
    }

    fn set_policy(
        &self,
        tenant: &str,
        kind: &str,
        jws: Option<&str>,
        decided: Revision,
    ) -> Result<Written, StoreError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write(|write| {
            if !is_current(write, tenant, decided, false)? {
                return Ok(Written::Stale);
            }
            let mut policies = write.open_table(POLICIES)?;
            match jws {
                Some(jws) => policies.insert((tenant, kind), jws)?.map(|_| ()),
                None => policies.remove((tenant, kind))?.map(|_| ()),
            };
            Ok(Written::Done)
        });
        // After it is durable: nobody is to see what a crash could take back.
        let mut policies = self.policies.write().unwrap_or_else(PoisonError::into_inner);
        match (&written, policies.as_mut()) {
            (Ok(Written::Done), Some(policies)) => {
                let policies = policies.entry(tenant.into()).or_default();
                match jws {
                    Some(jws) => policies.insert(kind.into(), jws.into()),
                    None => policies.remove(kind),
                };
            }
            (Err(_), _) => *policies = None,
            _ => {}
        }
        written
    }

    fn signers(&self, tenant: &str) -> Result<Signers, StoreError> {
        self.read(|read| {
            let revision = read.open_table(REVISIONS)?.get(tenant)?.map_or(0, |revision| revision.value());
            let certificates = read.open_table(CERTIFICATES)?;
            let mut chains = Vec::new();
            for entry in certificates.range((tenant, "")..)? {
                let (key, chain) = entry?;
                let (owner, thumbprint) = key.value();
                if owner != tenant {
                    break;
                }
                chains.push(chain_of(thumbprint, chain.value()).map_err(Failure::Store)?);
            }
            Ok(Signers { revision: Revision(revision), chains })
        })
    }

    fn add_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        chain: &[String],
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.write(|write| {
            if !is_current(write, tenant, decided, true)? {
                return Ok(Written::Stale);
            }
            write.open_table(CERTIFICATES)?.insert((tenant, thumbprint), json(chain).as_str())?;
            Ok(Written::Done)
        })
    }

    fn remove_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.write(|write| {
            if !is_current(write, tenant, decided, true)? {
                return Ok(Written::Stale);
            }
            let mut certificates = write.open_table(CERTIFICATES)?;
            if certificates.remove((tenant, thumbprint))?.is_none() {
                return Ok(Written::Done);
            }
            let next = certificates.range((tenant, "")..)?.next().transpose()?;
            let others = next.is_some_and(|(key, _)| key.value().0 == tenant);
            Ok(if others { Written::Done } else { Written::LastCertificate })
        })
    }

    fn seed_certificates(
        &self,
        tenant: &str,
        certificates: &[(String, Vec<String>)],
    ) -> Result<(), StoreError> {
        self.write(|write| {
            if write.open_table(TENANTS)?.insert(tenant, 1)?.is_none() {
                let mut table = write.open_table(CERTIFICATES)?;
                for (thumbprint, chain) in certificates {
                    table.insert((tenant, thumbprint.as_str()), json(chain).as_str())?;
                }
            }
            Ok(Written::Done)
        })
        .map(|_| ())
    }

    fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        self.read(|read| {
            let mut stored = Vec::new();
            for entry in read.open_table(KEYS)?.iter()? {
                let (made, key) = entry?;
                stored.push(key_of(made.value(), key.value()).map_err(Failure::Store)?);
            }
            Ok(stored)
        })
    }

    fn replace_keys(
        &self,
        newest: Option<u64>,
        add: Option<&StoredKey>,
        remove: &[u64],
    ) -> Result<Written, StoreError> {
        self.write(|write| {
            let mut keys = write.open_table(KEYS)?;
            if keys.last()?.map(|(made, _)| made.value()) != newest {
                return Ok(Written::Stale);
            }
            if let Some(key) = add {
                keys.insert(key.made, json(key).as_bytes())?;
            }
            for made in remove {
                keys.remove(made)?;
            }
            Ok(Written::Done)
        })
    }
}
