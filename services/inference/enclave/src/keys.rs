//! The enclave's keys, and the requests that were decrypted with them.
//!
//! A key is offered for the first half of its lifetime, or until most of its requests are used up; then the next one is, and
//! this one answers clients who verified it before, until its time is over. Time is the host's word (it can stop the clock or
//! put it forward), so the number of requests bounds a key too.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use enclos_inference::{KeyStatus, MAX_REQUEST, ServiceError};
use ohttp::hpke::{Aead, Kdf, Kem};
use ohttp::{KeyConfig, Server, ServerResponse, SymmetricSuite};
use sha2::{Digest as _, Sha256};

use crate::lock;

/// Longest lifetime of a key in seconds. Measured, as all of the program is: the host can only ask for less.
pub(crate) const LIFETIME: u64 = 24 * 60 * 60;
/// Requests that a key is for. The hash of each is remembered while the key is: 16 MiB at most.
const REQUESTS: usize = 1 << 18;
/// After so many requests the next key is offered.
const OFFERED_REQUESTS: usize = REQUESTS / 4 * 3;
/// Keys kept at once. A host that makes more in a hurry takes the time of the oldest.
const KEPT: usize = 4;

/// A key of this enclave's, and what was decrypted with it.
pub(crate) struct Key {
    server: Server,
    /// RFC 9458, section 3.1; the first byte is the key's identifier.
    pub(crate) config: Vec<u8>,
    made: u64,
    offered_until: u64,
    pub(crate) not_after: u64,
    /// SHA-256 of the requests answered: replays are refused (RFC 9458, section 6.5).
    seen: Mutex<HashSet<[u8; 32]>>,
}

impl Key {
    fn id(&self) -> u8 {
        self.config[0]
    }

    fn status(&self) -> KeyStatus {
        let requests = lock(&self.seen).len() as u64;
        KeyStatus { id: self.id(), made: self.made, not_after: self.not_after, requests }
    }

    /// Accepts a request once. Only what decrypts is remembered, so nobody but clients can fill this up.
    fn remember(&self, request: &[u8]) -> Result<(), ServiceError> {
        let hash = Sha256::digest(request).into();
        let mut seen = lock(&self.seen);
        if seen.contains(&hash) {
            return Err(ServiceError::Replayed);
        }
        if seen.len() >= REQUESTS {
            return Err(ServiceError::KeyUsedUp);
        }
        seen.insert(hash);
        Ok(())
    }
}

/// The keys that take requests, the newest last.
#[derive(Default)]
pub(crate) struct Keys(RwLock<Vec<Arc<Key>>>);

impl Keys {
    /// The key to offer, if there is one.
    pub(crate) fn offered(&self, now: u64) -> Option<Arc<Key>> {
        let newest = self.all().last().cloned()?;
        (now < newest.offered_until && lock(&newest.seen).len() < OFFERED_REQUESTS).then_some(newest)
    }

    /// Makes a key, which is not in use yet.
    pub(crate) fn make(&self, now: u64, lifetime: u64) -> Result<Key, ServiceError> {
        let id = match self.all().last() {
            Some(newest) => newest.id().wrapping_add(1),
            // So that requests for an enclave before this one are, mostly, told apart by their key's identifier.
            None => {
                let mut id = [0];
                enclos_enclave::random(&mut id)
                    .map_err(|e| ServiceError::Cryptography { reason: e.to_string() })?;
                id[0]
            }
        };
        let suite = |aead| SymmetricSuite::new(Kdf::HkdfSha256, aead);
        let suites = vec![suite(Aead::Aes128Gcm), suite(Aead::ChaCha20Poly1305)];
        let server =
            KeyConfig::new(id, Kem::X25519Sha256, suites).and_then(Server::new).map_err(cryptography)?;
        let config = server.config().encode().map_err(cryptography)?;
        let until = |seconds| now.saturating_add(seconds);
        let (offered_until, not_after) = (until(lifetime / 2), until(lifetime));
        Ok(Key { server, config, made: now, offered_until, not_after, seen: Mutex::default() })
    }

    /// Takes a key into use.
    pub(crate) fn admit(&self, key: Arc<Key>, now: u64) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.retain(|k| now <= k.not_after);
        let surplus = (keys.len() + 1).saturating_sub(KEPT);
        keys.drain(..surplus);
        keys.push(key);
    }

    /// Decrypts a request, once.
    pub(crate) fn open(&self, request: &[u8], now: u64) -> Result<(Vec<u8>, ServerResponse), ServiceError> {
        if request.len() > MAX_REQUEST {
            return Err(ServiceError::TooLarge);
        }
        let id = request.first().ok_or(ServiceError::Undecryptable)?;
        let key = self.all().iter().rfind(|k| k.id() == *id && now <= k.not_after).cloned();
        let key = key.ok_or(ServiceError::UnknownKey)?;
        let opened = key.server.decapsulate(request).map_err(|_| ServiceError::Undecryptable)?;
        key.remember(request)?;
        Ok(opened)
    }

    /// Those that take requests now, the newest first.
    pub(crate) fn status(&self, now: u64) -> Vec<KeyStatus> {
        self.all().iter().rev().filter(|k| now <= k.not_after).map(|k| k.status()).collect()
    }

    fn all(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Key>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn cryptography(e: ohttp::Error) -> ServiceError {
    ServiceError::Cryptography { reason: e.to_string() }
}
