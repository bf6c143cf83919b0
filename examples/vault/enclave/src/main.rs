//! The trusted half of the vault: secrets live in this enclave's memory and, sealed to its signer, in a blob that the
//! host keeps.
//!
//! What the host can do is bring back an older blob (there is no trusted counter here), or none. What it cannot do is
//! read a secret it was not given by `fetch`, change one, or make up a blob.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use enclos_enclave::{HostTransport, Policy, SealError, host, random, seal, unseal};
use serde::{Deserialize, Serialize};
use vault::{Entry, Imported, SealedReason, StorageClient, Vault, VaultError, VaultServer};

/// Ties the blob to its purpose and format: nothing else that this signer seals opens as a vault.
const PURPOSE: &[u8] = b"enclos example vault, format 1";

fn main() -> Result<(), enclos_enclave::ServeError> {
    enclos_enclave::serve(VaultServer::new(Keeper::default()))
}

type Secrets = BTreeMap<String, Secret>;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Secret {
    value: String,
    version: u32,
}

/// The secrets; `None` until the stored ones have been opened.
#[derive(Default)]
struct Keeper {
    secrets: Mutex<Option<Secrets>>,
}

impl Vault for Keeper {
    fn import(&self, dotenv: &str) -> Result<Imported, VaultError> {
        // dotenvy reads `$NAME` as another variable; the enclave's own environment is empty.
        let pairs: Vec<(String, String)> = dotenvy::from_read_iter(dotenv.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| VaultError::Dotenv { reason: e.to_string() })?;
        self.change(|secrets| {
            let mut done = Imported { added: 0, changed: 0, unchanged: 0 };
            for (name, value) in pairs {
                match secrets.get_mut(&name) {
                    None => {
                        secrets.insert(name, Secret { value, version: 1 });
                        done.added += 1;
                    }
                    Some(secret) if secret.value == value => done.unchanged += 1,
                    Some(secret) => {
                        *secret = Secret { value, version: secret.version + 1 };
                        done.changed += 1;
                    }
                }
            }
            Ok(done)
        })
    }

    fn list(&self) -> Result<Vec<Entry>, VaultError> {
        let guard = self.open()?;
        Ok(guard.iter().flatten().map(|(name, secret)| entry(name, secret)).collect())
    }

    fn fetch(&self, name: &str) -> Result<String, VaultError> {
        let guard = self.open()?;
        let secret = guard.as_ref().and_then(|s| s.get(name));
        secret.map(|s| s.value.clone()).ok_or_else(|| VaultError::Missing { name: name.to_owned() })
    }

    fn rotate(&self, name: &str) -> Result<Entry, VaultError> {
        self.change(|secrets| {
            let secret =
                secrets.get_mut(name).ok_or_else(|| VaultError::Missing { name: name.to_owned() })?;
            *secret = Secret { value: random_value()?, version: secret.version + 1 };
            Ok(entry(name, secret))
        })
    }
}

impl Keeper {
    /// The secrets, loaded and unsealed if this is the first use.
    fn open(&self) -> Result<MutexGuard<'_, Option<Secrets>>, VaultError> {
        // A panic elsewhere cannot leave them half changed: changes are made on a copy.
        let mut guard = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(match storage()?.load().map_err(storage_failed)? {
                Some(blob) => opened(&blob)?,
                None => Secrets::new(),
            });
        }
        Ok(guard)
    }

    /// Makes a change that holds only if its sealed result has been stored.
    fn change<T>(&self, f: impl FnOnce(&mut Secrets) -> Result<T, VaultError>) -> Result<T, VaultError> {
        let mut guard = self.open()?;
        let mut changed = guard.clone().unwrap_or_default();
        let result = f(&mut changed)?;
        if guard.as_ref() != Some(&changed) {
            storage()?.save(&sealed(&changed)?).map_err(storage_failed)?;
            *guard = Some(changed);
        }
        Ok(result)
    }
}

fn entry(name: &str, secret: &Secret) -> Entry {
    Entry { name: name.to_owned(), version: secret.version, bytes: secret.value.len() as u32 }
}

fn random_value() -> Result<String, VaultError> {
    let mut bytes = [0; 32];
    random(&mut bytes).map_err(|e| VaultError::Enclave { reason: e.to_string() })?;
    Ok(bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    }))
}

fn storage() -> Result<StorageClient<HostTransport>, VaultError> {
    host().map_err(storage_failed)
}

fn storage_failed(e: impl std::fmt::Display) -> VaultError {
    VaultError::Storage { reason: e.to_string() }
}

fn sealed(secrets: &Secrets) -> Result<Vec<u8>, VaultError> {
    let plain = postcard::to_allocvec(secrets).map_err(|e| malformed(e.to_string()))?;
    seal(Policy::Signer, PURPOSE, &plain).map_err(not_opened)
}

fn opened(blob: &[u8]) -> Result<Secrets, VaultError> {
    let plain = unseal(PURPOSE, blob).map_err(not_opened)?;
    postcard::from_bytes(&plain).map_err(|e| malformed(e.to_string()))
}

fn malformed(what: String) -> VaultError {
    VaultError::Sealed { reason: SealedReason::Malformed { what } }
}

fn not_opened(e: SealError) -> VaultError {
    let reason = match e {
        SealError::NotAuthentic => SealedReason::NotAuthentic,
        SealError::FromNewerVersion { sealed, own } => SealedReason::FromNewerVersion { sealed, own },
        other => SealedReason::Malformed { what: other.to_string() },
    };
    VaultError::Sealed { reason }
}
