//! Keys and their policies on disk: a folder with a file a key, readable by its owner only.
//!
//! Whoever can read the files has the keys: authority over the broker is authority over this folder. A broker that serves looks
//! at a key's file whenever it is asked for the key, so that what is added or revoked here holds at once.
//!
//! A file comes into its place whole, and only when it is durable: what was acknowledged survives the process being killed and
//! the machine losing power.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use enclos_verifier::{Policy, PolicyError, Time};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::jwe::{ContentKey, JweError};
use crate::{BadKeyId, check_key_id};

/// Folder of the keys in the store.
const KEYS: &str = "keys";
/// Version of the files.
const VERSION: u32 = 1;

/// The keys of a broker.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

/// A key with what its release depends on.
#[derive(Clone, Debug)]
pub struct StoredKey {
    /// Its name.
    pub key_id: String,
    /// The key.
    pub key: ContentKey,
    /// What evidence must meet.
    pub policy: Policy,
    /// The policy as it was given, TOML.
    pub policy_text: String,
    /// When it was added.
    pub added: Time,
    /// When it was revoked: it is released no more.
    pub revoked: Option<Time>,
}

/// Why the store does not do what it is asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system.
    #[error("{} failed: {source}; check the disk, and whose the store is", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} can be read or changed by others (mode {mode:03o}): run `chmod go= {}`; if others may have read it, its keys are known", path.display(), path.display())]
    Permissions {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The name is none.
    #[error(transparent)]
    KeyId(#[from] BadKeyId),
    /// It is there already.
    #[error("there is a key {key_id} already; a key is never replaced: give the new one another name")]
    Exists {
        /// Its name.
        key_id: String,
    },
    /// It is not there.
    #[error("there is no key {key_id} in {}", folder.display())]
    Unknown {
        /// Its name.
        key_id: String,
        /// The store.
        folder: PathBuf,
    },
    /// The policy cannot be used.
    #[error("the policy of the key is not usable: {0}")]
    Policy(#[from] PolicyError),
    /// The policy would be met by anybody, or by nobody.
    #[error("a key cannot have this policy: {reason}")]
    Unsuitable {
        /// Why not.
        reason: &'static str,
    },
    /// It is no JSON Web Key of this use.
    #[error(
        "this is no JSON Web Key (RFC 7517) of 256 bits, such as {{\"kty\":\"oct\",\"k\":\"...\"}}: {reason}"
    )]
    NoJwk {
        /// Why not.
        reason: String,
    },
    /// A file is not what this version writes.
    #[error("{} is not a key of this store ({reason}); restore it from a backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system gives no random bytes.
    #[error(transparent)]
    Random(JweError),
}

/// A JSON Web Key (RFC 7517) of a symmetric key (RFC 7518, section 6.4).
#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    k: Zeroizing<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    jwk: Jwk,
    policy: String,
    added: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<Time>,
}

/// A key from a JSON Web Key.
///
/// # Errors
/// [`StoreError::NoJwk`] when it is none of 256 bits, or for another algorithm.
pub fn key_from_jwk(json: &[u8]) -> Result<ContentKey, StoreError> {
    let none = |reason: String| StoreError::NoJwk { reason };
    key_of(&serde_json::from_slice(json).map_err(|e| none(e.to_string()))?).map_err(none)
}

fn key_of(jwk: &Jwk) -> Result<ContentKey, String> {
    if jwk.kty != "oct" {
        return Err(format!("its kty is {:?}, not oct", jwk.kty));
    }
    if jwk.alg.as_deref().is_some_and(|alg| !matches!(alg, "A256GCM" | "dir")) {
        return Err("it is for another algorithm than A256GCM".into());
    }
    let bytes = Zeroizing::new(BASE64URL.decode(&*jwk.k).map_err(|e| format!("its k: {e}"))?);
    ContentKey::from_slice(&bytes).ok_or_else(|| format!("its k has {} bytes, not 32", bytes.len()))
}

impl StoredKey {
    /// The key as a JSON Web Key, for its owner's other tools.
    pub fn jwk(&self) -> Zeroizing<String> {
        let json = serde_json::to_string(&jwk(&self.key_id, &self.key));
        Zeroizing::new(json.unwrap_or_default())
    }
}

fn jwk(key_id: &str, key: &ContentKey) -> Jwk {
    Jwk {
        kty: "oct".into(),
        k: Zeroizing::new(BASE64URL.encode(key.as_bytes())),
        kid: Some(key_id.to_owned()),
        alg: Some("A256GCM".into()),
    }
}

impl Store {
    /// Opens the store in a folder, making it when it is not there.
    ///
    /// # Errors
    /// When it cannot be made, or others than its owner may look into it.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let keys = folder.join(KEYS);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys);
        made.map_err(|source| StoreError::Io { path: keys.clone(), source })?;
        check_mode(folder)?;
        check_mode(&keys)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds a key, `None`: a new random one, with its policy in TOML. When this returns the key is durable.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one of this name; otherwise when the policy is not suitable, or it cannot be written.
    pub fn add(
        &self,
        key_id: &str,
        key: Option<ContentKey>,
        policy_text: &str,
    ) -> Result<StoredKey, StoreError> {
        check_key_id(key_id)?;
        let policy = policy_of(policy_text)?;
        let key = key.map_or_else(ContentKey::generate, Ok).map_err(StoreError::Random)?;
        let added = Time::now();
        let record = Record {
            version: VERSION,
            jwk: jwk(key_id, &key),
            policy: policy_text.to_owned(),
            added,
            revoked: None,
        };
        let path = self.path(key_id);
        let partial = self.write_partial(key_id, &record)?;
        // Unlike renaming, linking never replaces another's.
        let linked = fs::hard_link(&partial, &path);
        let _ = fs::remove_file(&partial);
        linked.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists { key_id: key_id.to_owned() },
            _ => StoreError::Io { path, source },
        })?;
        self.sync()?;
        Ok(StoredKey {
            key_id: key_id.to_owned(),
            key,
            policy,
            policy_text: policy_text.to_owned(),
            added,
            revoked: None,
        })
    }

    /// Has a key released no more. When this returns that is durable. Revoking again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when there is none of this name, or it cannot be written.
    pub fn revoke(&self, key_id: &str) -> Result<Time, StoreError> {
        let key = self.key(key_id)?;
        if let Some(revoked) = key.revoked {
            return Ok(revoked);
        }
        let now = Time::now();
        let record = Record {
            version: VERSION,
            jwk: jwk(key_id, &key.key),
            policy: key.policy_text,
            added: key.added,
            revoked: Some(now),
        };
        let partial = self.write_partial(key_id, &record)?;
        let path = self.path(key_id);
        fs::rename(&partial, &path).map_err(|source| StoreError::Io { path, source })?;
        self.sync()?;
        Ok(now)
    }

    /// A key, as it is at this moment.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when there is none of this name, or it cannot be read.
    pub fn key(&self, key_id: &str) -> Result<StoredKey, StoreError> {
        check_key_id(key_id)?;
        let path = self.path(key_id);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => {
                StoreError::Unknown { key_id: key_id.to_owned(), folder: self.folder.clone() }
            }
            _ => StoreError::Io { path: path.clone(), source },
        };
        let bytes = Zeroizing::new(fs::read(&path).map_err(failed)?);
        check_mode(&path)?;
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if record.version != VERSION {
            return Err(damaged(format!("it is of version {}, this is {VERSION}", record.version)));
        }
        if record.jwk.kid.as_deref() != Some(key_id) {
            return Err(damaged("it is of another key".into()));
        }
        Ok(StoredKey {
            key_id: key_id.to_owned(),
            key: key_of(&record.jwk).map_err(damaged)?,
            policy: policy_of(&record.policy)?,
            policy_text: record.policy,
            added: record.added,
            revoked: record.revoked,
        })
    }

    /// The names of all keys, sorted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn key_ids(&self) -> Result<Vec<String>, StoreError> {
        let path = self.folder.join(KEYS);
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // What a killed process left half-written begins with a period.
            let key_id = name.to_str().and_then(|n| n.strip_suffix(".json"));
            names.extend(key_id.filter(|n| check_key_id(n).is_ok()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    fn path(&self, key_id: &str) -> PathBuf {
        self.folder.join(KEYS).join(format!("{key_id}.json"))
    }

    /// Writes a record beside its place, durably.
    fn write_partial(&self, key_id: &str, record: &Record) -> Result<PathBuf, StoreError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|e| StoreError::Random(JweError::Random { reason: e.to_string() }))?;
        let path = self.folder.join(KEYS).join(format!(".{key_id}.{}.partial", hex::encode(random)));
        let failed = |source| StoreError::Io { path: path.clone(), source };
        let json = Zeroizing::new(serde_json::to_vec_pretty(record).map_err(|e| failed(e.into()))?);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&json)?;
            file.sync_all()
        };
        write().map_err(failed)?;
        Ok(path)
    }

    /// Makes the names durable.
    fn sync(&self) -> Result<(), StoreError> {
        let path = self.folder.join(KEYS);
        let synced = File::open(&path).and_then(|folder| folder.sync_all());
        synced.map_err(|source| StoreError::Io { path, source })
    }
}

/// Reads a policy, and refuses those with which no release can be meant.
fn policy_of(text: &str) -> Result<Policy, StoreError> {
    let policy = Policy::from_toml(text)?;
    let reason = if policy.any_identity {
        "any_identity releases the key to every enclave there is; name what may have it ([[identity]])"
    } else if policy.identity.is_empty() {
        "it names no identity, so that nothing can meet it; add [[identity]], with mr_enclave"
    } else if policy.report_data.is_some() || policy.report_data_prefix.is_some() {
        "it demands report data itself; those of a release are given by the broker's nonce"
    } else {
        return Ok(policy);
    };
    Err(StoreError::Unsuitable { reason })
}

pub(crate) fn check_mode(path: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(|source| StoreError::Io { path: path.into(), source })?;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(StoreError::Permissions { path: path.into(), mode }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "[[identity]]\nkind = \"sgx\"\nmr_enclave = \"1111111111111111111111111111111111111111111111111111111111111111\"\n";

    #[test]
    fn keys_come_back_as_they_were_added() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let added = store.add("digits", None, POLICY).unwrap();
        let found = store.key("digits").unwrap();
        assert_eq!(found.key.as_bytes(), added.key.as_bytes());
        assert_eq!((found.policy_text.as_str(), found.revoked), (POLICY, None));
        assert_eq!(key_from_jwk(found.jwk().as_bytes()).unwrap().as_bytes(), added.key.as_bytes());
        assert!(matches!(store.add("digits", None, POLICY), Err(StoreError::Exists { .. })));
        assert_eq!(store.key("digits").unwrap().key.as_bytes(), added.key.as_bytes());
        store.add("another", Some(added.key.clone()), POLICY).unwrap();
        assert_eq!(store.key_ids().unwrap(), ["another", "digits"]);
        let revoked = store.revoke("digits").unwrap();
        assert_eq!(store.revoke("digits").unwrap(), revoked);
        assert_eq!(store.key("digits").unwrap().revoked, Some(revoked));
        assert_eq!(store.key("digits").unwrap().key.as_bytes(), added.key.as_bytes());
        assert!(matches!(store.key("third"), Err(StoreError::Unknown { .. })));
        for name in ["", "../digits", ".hidden", "a/b", &"x".repeat(129)] {
            assert!(matches!(store.key(name), Err(StoreError::KeyId(_))), "{name}");
        }
    }

    #[test]
    fn what_others_can_read_or_is_damaged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Store::open(&path).unwrap();
        store.add("digits", None, POLICY).unwrap();
        let file = store.path("digits");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(store.key("digits"), Err(StoreError::Permissions { mode: 0o640, .. })));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let good = fs::read(&file).unwrap();
        fs::write(&file, &good[..good.len() / 2]).unwrap();
        assert!(matches!(store.key("digits"), Err(StoreError::Damaged { .. })));
        // One key's file in another one's place.
        fs::write(&file, &good).unwrap();
        fs::copy(&file, store.path("other")).unwrap();
        assert!(matches!(store.key("other"), Err(StoreError::Damaged { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Permissions { .. })));
    }

    #[test]
    fn policies_that_anybody_or_nobody_meets_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        for policy in ["", "any_identity = true\n", &format!("report_data_prefix = \"00\"\n{POLICY}")] {
            assert!(
                matches!(store.add("digits", None, policy), Err(StoreError::Unsuitable { .. })),
                "{policy}"
            );
        }
        assert!(matches!(store.add("digits", None, "no policy"), Err(StoreError::Policy(_))));
        assert!(store.key_ids().unwrap().is_empty());
    }
}
