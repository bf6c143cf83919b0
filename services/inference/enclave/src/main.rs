//! The enclave of the inference service: holds the key and the model, decrypts, runs, encrypts.
//!
//! Everything that comes in is from the host or from any client at all: lengths are checked before memory is asked for, and
//! whatever is wrong with a decrypted request is said inside the encrypted reply.
#![forbid(unsafe_code)]

mod protocol;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use enclos_enclave::{ServeError, attest, serve};
use enclos_inference::{Inference, InferenceServer, Loaded, Offer, ServiceError, report_data};
use enclos_inference_engine::load;
use ohttp::hpke::{Aead, Kdf, Kem};
use ohttp::{KeyConfig, Server, SymmetricSuite};
use sha2::{Digest as _, Sha256};

use crate::protocol::Model;

/// Requests that a key is for. The hash of each is remembered while the key is: 8 MiB.
const REQUESTS_PER_KEY: usize = 1 << 18;

#[derive(Default)]
struct Service {
    model: Mutex<Option<Arc<Model>>>,
    key: Mutex<Option<Arc<Key>>>,
}

/// A key of this enclave's, and what was decrypted with it.
struct Key {
    server: Server,
    offer: Offer,
    /// SHA-256 of the requests answered: replays are refused (RFC 9458, section 6.5).
    seen: Mutex<HashSet<[u8; 32]>>,
}

impl Key {
    fn is_used_up(&self) -> bool {
        lock(&self.seen).len() >= REQUESTS_PER_KEY
    }

    fn make(id: u8, model: &[u8; 32]) -> Result<Self, ServiceError> {
        let suite = |aead| SymmetricSuite::new(Kdf::HkdfSha256, aead);
        let suites = vec![suite(Aead::Aes128Gcm), suite(Aead::ChaCha20Poly1305)];
        let config = KeyConfig::new(id, Kem::X25519Sha256, suites).map_err(cryptography)?;
        let server = Server::new(config).map_err(cryptography)?;
        let key_config = server.config().encode().map_err(cryptography)?;
        let evidence = attest(&report_data(&key_config, model));
        let evidence = evidence.map_err(|e| ServiceError::Evidence { reason: e.to_string() })?.into_quote();
        let offer = Offer { key_config, model: *model, evidence };
        Ok(Self { server, offer, seen: Mutex::default() })
    }
}

impl Inference for Service {
    fn load(&self, name: &str, model: &[u8]) -> Result<Loaded, ServiceError> {
        let mut slot = lock(&self.model);
        if slot.is_some() {
            return Err(ServiceError::AlreadyLoaded);
        }
        let engine = load(model).map_err(|e| ServiceError::Model { reason: e.to_string() })?;
        let hash = Sha256::digest(model).into();
        let loaded = Loaded { model: hash, engine: engine.name().to_owned() };
        *slot = Some(Arc::new(Model { name: name.to_owned(), hash, engine }));
        Ok(loaded)
    }

    fn offer(&self) -> Result<Offer, ServiceError> {
        let model = lock(&self.model).clone().ok_or(ServiceError::NoModel)?;
        let mut slot = lock(&self.key);
        let id = match &*slot {
            Some(key) if !key.is_used_up() => return Ok(key.offer.clone()),
            Some(key) => key.offer.key_config[0].wrapping_add(1),
            None => 0,
        };
        let key = slot.insert(Arc::new(Key::make(id, &model.hash)?));
        Ok(key.offer.clone())
    }

    fn infer(&self, request: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let model = lock(&self.model).clone().ok_or(ServiceError::NoModel)?;
        // Nobody can have encrypted for a key that was not offered.
        let key = lock(&self.key).clone().ok_or(ServiceError::Undecryptable)?;
        let (plain, reply) = key.server.decapsulate(request).map_err(|_| ServiceError::Undecryptable)?;
        {
            let mut seen = lock(&key.seen);
            if seen.len() >= REQUESTS_PER_KEY {
                return Err(ServiceError::KeyUsedUp);
            }
            // Only what decrypts is remembered, so nobody but clients can fill this up.
            if !seen.insert(Sha256::digest(request).into()) {
                return Err(ServiceError::Replayed);
            }
        }
        reply.encapsulate(&protocol::answer(&model, &plain)).map_err(cryptography)
    }
}

fn cryptography(e: ohttp::Error) -> ServiceError {
    ServiceError::Cryptography { reason: e.to_string() }
}

/// What a panicking call left behind is whole: every change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> Result<(), ServeError> {
    ohttp::init();
    serve(InferenceServer::new(Service::default()))
}
