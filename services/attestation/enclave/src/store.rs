//! Policies, certificates and signing keys as sealed records that the host keeps.
//!
//! | record | sealed for | contents |
//! |---|---|---|
//! | `tenant/NAME` | signer and product | policies, policy management certificates, their revision |
//! | `key/TIME` | signer and product | a signing key's certificate, and its private key sealed for this very image |
//! | `root` | signer and product | the version of the whole, and the version each record was written at |
//!
//! A new image of the signer goes on with tenants and published certificates; private keys stay with the image that their
//! certificates name, so it makes a key of its own.
//!
//! # What the host can do
//! It cannot read or change a record, nor give one the name of another, nor bring back an older one beside newer ones: each
//! names its version, which must be the one in `root`. All are read once, at the start; after that this memory is the
//! truth, and the host's copy is written only.
//!
//! It can bring back, at a start, *all* records of an earlier moment, or none of them, and it can run two enclaves over two
//! copies: SGX has no counter that would tell (platform services with one are gone from servers). Then an old policy is in
//! force again. Tokens name the hash of the policy they were made under, and who signed it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use enclos_attestation_service::{
    engine::{Change, Record, RecordsClient},
    store::{Revision, Signers, Store, StoreError, StoredKey, Written},
};
use enclos_enclave::{HostTransport, Policy, host, seal, unseal};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest policies and certificates altogether, bytes: they are kept in the enclave's heap.
const MAX_CONTENTS: usize = 12 << 20;
/// Name of the record that names all others.
const ROOT: &str = "root";
/// Ties private keys to their purpose.
const PRIVATE_KEY: &[u8] = b"enclos attestation service, private key, format 1";

/// What the record `root` says.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Root {
    version: u64,
    records: BTreeMap<String, u64>,
}

/// A record as it is sealed.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u64,
    contents: T,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tenant {
    revision: u64,
    seeded: bool,
    /// Attestation type to the JWS that set its policy.
    policies: BTreeMap<String, String>,
    /// Thumbprint to chain.
    certificates: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    #[serde(with = "hex::serde")]
    certificate: Vec<u8>,
    /// The private key, sealed for the image that made it.
    #[serde(with = "hex::serde")]
    sealed: Vec<u8>,
}

#[derive(Clone, Default)]
struct Contents {
    tenants: BTreeMap<String, Tenant>,
    keys: BTreeMap<u64, Key>,
}

#[derive(Default)]
struct State {
    root: Root,
    contents: Contents,
    /// Records of a write that the host says has failed: it may have been done all the same.
    unsure: BTreeSet<String>,
}

/// The store inside.
pub(crate) struct SealedStore {
    host: RecordsClient<HostTransport>,
    state: Mutex<State>,
}

impl std::fmt::Debug for SealedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedStore").finish_non_exhaustive()
    }
}

impl SealedStore {
    /// Reads and opens everything that the host has kept.
    ///
    /// # Errors
    /// [`StoreError`] when the host fails, or what it brings is not the whole of what was written at one moment.
    pub(crate) fn open() -> Result<Self, StoreError> {
        let host = host::<RecordsClient<HostTransport>>().map_err(|error| by_host(&error))?;
        let records = host.load().map_err(|error| by_host(&error))?;
        Ok(Self { host, state: Mutex::new(State::open(records)?) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave it half changed: changes are made on a copy.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change to a tenant that was decided on certificates of a revision.
    fn change(
        &self,
        tenant: &str,
        decided: Revision,
        change: impl FnOnce(&mut Tenant) -> Written,
    ) -> Result<Written, StoreError> {
        self.write(|contents| {
            let tenant = contents.tenants.entry(tenant.to_owned()).or_default();
            if tenant.revision == decided.0 { change(tenant) } else { Written::Stale }
        })
    }

    /// Makes a change that holds only if the host says that it is durable.
    fn write(&self, change: impl FnOnce(&mut Contents) -> Written) -> Result<Written, StoreError> {
        let mut state = self.state();
        let mut next = state.contents.clone();
        let written = change(&mut next);
        if written != Written::Done {
            return Ok(written);
        }
        if next.size() > MAX_CONTENTS {
            return Err(StoreError::Full { limit: MAX_CONTENTS });
        }
        let mut names = state.contents.differences(&next);
        if names.is_empty() {
            return Ok(Written::Done);
        }
        names.extend(state.unsure.iter().cloned());
        let mut root = state.root.clone();
        root.version += 1;
        let mut changes = Vec::new();
        for name in &names {
            let blob = next.sealed(name, root.version)?;
            match &blob {
                Some(_) => root.records.insert(name.clone(), root.version),
                None => root.records.remove(name),
            };
            changes.push(Change { name: name.clone(), blob });
        }
        changes.push(Change { name: ROOT.into(), blob: Some(sealed_record(ROOT, &root)?) });
        if let Err(error) = self.host.commit(&changes) {
            state.unsure = names;
            return Err(by_host(&error));
        }
        *state = State { root, contents: next, unsure: BTreeSet::new() };
        Ok(Written::Done)
    }
}

impl State {
    fn open(records: Vec<Record>) -> Result<Self, StoreError> {
        let mut records: BTreeMap<String, Vec<u8>> =
            records.into_iter().map(|record| (record.name, record.blob)).collect();
        let Some(root) = records.remove(ROOT) else {
            return match records.keys().next() {
                None => Ok(Self::default()),
                Some(name) => Err(damaged(ROOT, &format!("it is missing, although there is {name:?}"))),
            };
        };
        let root: Root = opened_record(ROOT, &root)?;
        let mut contents = Contents::default();
        for (name, blob) in &records {
            let Some(expected) = root.records.get(name) else {
                return Err(damaged(name, "it was removed, and has been brought back"));
            };
            contents.insert(name, blob, *expected)?;
        }
        if let Some(missing) = root.records.keys().find(|name| !records.contains_key(*name)) {
            return Err(damaged(missing, "it is missing"));
        }
        Ok(Self { root, contents, unsure: BTreeSet::new() })
    }
}

impl Contents {
    /// The record of a name, sealed; `None` when it is to go.
    fn sealed(&self, name: &str, version: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match kind_of(name)? {
            Kind::Tenant(tenant) => self.tenants.get(tenant).map(|t| versioned(name, version, t)).transpose(),
            Kind::Key(made) => self.keys.get(&made).map(|key| versioned(name, version, key)).transpose(),
        }
    }

    fn insert(&mut self, name: &str, blob: &[u8], expected: u64) -> Result<(), StoreError> {
        match kind_of(name)? {
            Kind::Tenant(tenant) => {
                drop(self.tenants.insert(tenant.to_owned(), opened(name, blob, expected)?))
            }
            Kind::Key(made) => drop(self.keys.insert(made, opened(name, blob, expected)?)),
        }
        Ok(())
    }

    /// Names of the records in which another state differs.
    fn differences(&self, other: &Self) -> BTreeSet<String> {
        let tenants = self.tenants.keys().chain(other.tenants.keys());
        let tenants = tenants.filter(|name| self.tenants.get(*name) != other.tenants.get(*name));
        let keys = self.keys.keys().chain(other.keys.keys());
        let keys = keys.filter(|made| self.keys.get(made) != other.keys.get(made));
        tenants.map(|name| tenant_record(name)).chain(keys.map(|made| key_record(*made))).collect()
    }

    fn size(&self) -> usize {
        let tenant = |tenant: &Tenant| {
            let policies = tenant.policies.values().map(String::len).sum::<usize>();
            policies + tenant.certificates.values().flatten().map(String::len).sum::<usize>()
        };
        self.tenants.values().map(tenant).sum()
    }
}

impl Store for SealedStore {
    fn policy(&self, tenant: &str, kind: &str) -> Result<Option<String>, StoreError> {
        Ok(self.state().contents.tenants.get(tenant).and_then(|tenant| tenant.policies.get(kind).cloned()))
    }

    fn set_policy(
        &self,
        tenant: &str,
        kind: &str,
        jws: Option<&str>,
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.change(tenant, decided, |tenant| {
            match jws {
                Some(jws) => tenant.policies.insert(kind.to_owned(), jws.to_owned()),
                None => tenant.policies.remove(kind),
            };
            Written::Done
        })
    }

    fn signers(&self, tenant: &str) -> Result<Signers, StoreError> {
        let state = self.state();
        Ok(state.contents.tenants.get(tenant).map_or_else(Signers::default, |tenant| Signers {
            revision: Revision(tenant.revision),
            chains: tenant.certificates.values().cloned().collect(),
        }))
    }

    fn add_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        chain: &[String],
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.change(tenant, decided, |tenant| {
            tenant.revision += 1;
            tenant.certificates.insert(thumbprint.to_owned(), chain.to_vec());
            Written::Done
        })
    }

    fn remove_certificate(
        &self,
        tenant: &str,
        thumbprint: &str,
        decided: Revision,
    ) -> Result<Written, StoreError> {
        self.change(tenant, decided, |tenant| {
            tenant.revision += 1;
            let removed = tenant.certificates.remove(thumbprint).is_some();
            if removed && tenant.certificates.is_empty() { Written::LastCertificate } else { Written::Done }
        })
    }

    fn seed_certificates(
        &self,
        tenant: &str,
        certificates: &[(String, Vec<String>)],
    ) -> Result<(), StoreError> {
        self.write(|contents| {
            let tenant = contents.tenants.entry(tenant.to_owned()).or_default();
            if !std::mem::replace(&mut tenant.seeded, true) {
                tenant.certificates.extend(certificates.iter().cloned());
            }
            Written::Done
        })
        .map(drop)
    }

    fn keys(&self) -> Result<Vec<StoredKey>, StoreError> {
        let state = self.state();
        let stored = state.contents.keys.iter().map(|(made, key)| StoredKey {
            made: *made,
            // What another image made does not open, and is not wanted: certificates name the image that has the key.
            private_key: unseal(PRIVATE_KEY, &key.sealed).ok(),
            certificate: key.certificate.clone(),
        });
        Ok(stored.collect())
    }

    fn replace_keys(
        &self,
        newest: Option<u64>,
        add: Option<&StoredKey>,
        remove: &[u64],
    ) -> Result<Written, StoreError> {
        let add = match add {
            None => None,
            Some(key) => {
                let private_key = key.private_key.as_deref().unwrap_or_default();
                let sealed = seal(Policy::Image, PRIVATE_KEY, private_key)
                    .map_err(|error| damaged("a new signing key", &error.to_string()))?;
                Some((key.made, Key { certificate: key.certificate.clone(), sealed }))
            }
        };
        self.write(|contents| {
            if contents.keys.keys().next_back().copied() != newest {
                return Written::Stale;
            }
            contents.keys.extend(add);
            remove.iter().for_each(|made| drop(contents.keys.remove(made)));
            Written::Done
        })
    }
}

/// What a record is about, by its name.
enum Kind<'a> {
    Tenant(&'a str),
    Key(u64),
}

fn tenant_record(name: &str) -> String {
    format!("tenant/{name}")
}

fn key_record(made: u64) -> String {
    format!("key/{made}")
}

fn kind_of(name: &str) -> Result<Kind<'_>, StoreError> {
    let kind = match name.split_once('/') {
        Some(("tenant", tenant)) => Some(Kind::Tenant(tenant)),
        Some(("key", made)) => made.parse().ok().map(Kind::Key),
        _ => None,
    };
    kind.ok_or_else(|| damaged(name, "no record of this program is called so"))
}

fn versioned<T: Serialize>(name: &str, version: u64, contents: T) -> Result<Vec<u8>, StoreError> {
    sealed_record(name, &Versioned { version, contents })
}

fn opened<T: DeserializeOwned>(name: &str, blob: &[u8], expected: u64) -> Result<T, StoreError> {
    let Versioned { version, contents } = opened_record(name, blob)?;
    if version != expected {
        return Err(damaged(
            name,
            &format!(
                "it is of version {version}, the last one written is {expected}: an old one was brought back"
            ),
        ));
    }
    Ok(contents)
}

/// The name is bound to the contents, so that no record can stand for another.
fn associated(name: &str) -> Vec<u8> {
    [b"enclos attestation service, record, format 1: ", name.as_bytes()].concat()
}

fn sealed_record<T: Serialize>(name: &str, contents: &T) -> Result<Vec<u8>, StoreError> {
    let text = serde_json::to_vec(contents).map_err(|error| damaged(name, &error.to_string()))?;
    seal(Policy::Signer, &associated(name), &text).map_err(|error| damaged(name, &error.to_string()))
}

fn opened_record<T: DeserializeOwned>(name: &str, blob: &[u8]) -> Result<T, StoreError> {
    let text = unseal(&associated(name), blob).map_err(|error| damaged(name, &error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| damaged(name, &format!("at column {}", error.column())))
}

fn damaged(name: &str, reason: &str) -> StoreError {
    StoreError::Damaged { what: format!("the record {name:?}"), reason: reason.to_owned() }
}

fn by_host(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Host { reason: error.to_string() }
}
