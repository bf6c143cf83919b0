//! The enclave of the inference service: holds keys and models, decrypts, runs, encrypts.
//!
//! Everything that comes in is from the host or from any client at all: lengths are checked before memory is asked for, and
//! whatever is wrong with a decrypted request is said inside the encrypted reply.
#![forbid(unsafe_code)]

mod keys;
mod models;
mod protocol;
mod release;
mod tls;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use enclos_enclave::{ServeError, Server, attest};
use enclos_inference::{
    Inference, InferenceServer, Loaded, MAX_BATCH_SIZE, MAX_QUEUE_DELAY, Offer, SMALLEST_BUCKET,
    ServiceError, Settings, Status, padded, report_data,
};

use crate::keys::{Keys, LIFETIME, cryptography};
use crate::models::{Batching, Models};
use crate::release::Releases;

/// Calls that can be inside at once. Of the threads that the manifest grants, the rest is for the program's own.
const CALLS: usize = 8;
/// Stack of each in bytes.
const STACK: usize = 1 << 20;

struct Service {
    models: Models,
    keys: Keys,
    releases: Releases,
    /// The last one. Locked while another is made, so that one is made at a time; requests do not wait for that.
    offer: Mutex<Option<Offer>>,
    key_lifetime: AtomicU64,
    smallest_bucket: AtomicUsize,
    /// For models that are loaded from now on.
    batching: Mutex<Batching>,
    is_listening: AtomicBool,
}

/// What the host calls.
struct Calls(Arc<Service>);

impl Service {
    fn batching(&self) -> Batching {
        *lock(&self.batching)
    }

    /// The last offer while it is true, otherwise another.
    fn current_offer(&self, another_key: bool) -> Result<Offer, ServiceError> {
        let mut last = lock(&self.offer);
        let models = self.models.offered();
        if models.is_empty() {
            return Err(ServiceError::NoModel);
        }
        let now = now();
        let in_use = self.keys.offered(now).filter(|_| !another_key);
        if let (Some(key), Some(last)) = (&in_use, &*last)
            && (&last.key_config, &last.models) == (&key.config, &models)
        {
            return Ok(last.clone());
        }
        let key = match &in_use {
            Some(key) => key.clone(),
            None => Arc::new(self.keys.make(now, self.key_lifetime.load(Ordering::Relaxed))?),
        };
        let evidence = attest(&report_data(&key.config, &models));
        let evidence = evidence.map_err(|e| ServiceError::Evidence { reason: e.to_string() })?.into_quote();
        let offer = Offer { key_config: key.config.clone(), models, evidence, not_after: key.not_after };
        if in_use.is_none() {
            self.keys.admit(key, now);
        }
        *last = Some(offer.clone());
        Ok(offer)
    }
}

impl Inference for Calls {
    fn configure(&self, settings: Settings) -> Result<(), ServiceError> {
        let Settings { key_lifetime, smallest_bucket, max_batch_size, max_queue_delay } = settings;
        if key_lifetime.is_some_and(|seconds| !(2..=LIFETIME).contains(&seconds)) {
            return Err(ServiceError::Setting { reason: format!("keys live for 2 to {LIFETIME} seconds") });
        }
        if smallest_bucket.is_some_and(|bytes| bytes < SMALLEST_BUCKET as u64 || bytes > 1 << 24) {
            return Err(ServiceError::Setting {
                reason: format!("the smallest bucket is of {SMALLEST_BUCKET} to {} bytes", 1 << 24),
            });
        }
        if max_batch_size.is_some_and(|rows| !(1..=MAX_BATCH_SIZE).contains(&rows)) {
            return Err(ServiceError::Setting {
                reason: format!("a batch is of 1 to {MAX_BATCH_SIZE} rows"),
            });
        }
        if max_queue_delay.is_some_and(|microseconds| microseconds > MAX_QUEUE_DELAY) {
            return Err(ServiceError::Setting {
                reason: format!("requests wait for others for {MAX_QUEUE_DELAY} microseconds at most"),
            });
        }
        {
            let mut batching = lock(&self.0.batching);
            batching.max_size = max_batch_size.map_or(batching.max_size, |rows| rows as usize);
            batching.max_delay = max_queue_delay.map_or(batching.max_delay, Duration::from_micros);
        }
        if let Some(seconds) = key_lifetime {
            self.0.key_lifetime.store(seconds, Ordering::Relaxed);
        }
        if let Some(bytes) = smallest_bucket {
            self.0.smallest_bucket.store(bytes as usize, Ordering::Relaxed);
        }
        Ok(())
    }

    fn load(&self, name: &str, model: &[u8]) -> Result<Loaded, ServiceError> {
        self.0.models.serve(name, model, false, self.0.batching())
    }

    fn key_request(&self, key_id: &str, nonce: &[u8]) -> Result<Vec<u8>, ServiceError> {
        self.0.releases.request(key_id, nonce)
    }

    fn load_encrypted(&self, name: &str, jwe: &[u8], release: &[u8]) -> Result<Loaded, ServiceError> {
        let model = self.0.releases.decrypt(jwe, release)?;
        self.0.models.serve(name, &model, true, self.0.batching())
    }

    fn unload(&self, name: &str, sha256: [u8; 32]) -> Result<(), ServiceError> {
        self.0.models.unload(name, &sha256)
    }

    fn offer(&self) -> Result<Offer, ServiceError> {
        self.0.current_offer(false)
    }

    fn rotate(&self) -> Result<Offer, ServiceError> {
        self.0.current_offer(true)
    }

    fn infer(&self, request: &[u8]) -> Result<Vec<u8>, ServiceError> {
        let (plain, reply) = self.0.keys.open(request, now())?;
        let answer = protocol::answer(&self.0.models, &plain);
        let bucket = self.0.smallest_bucket.load(Ordering::Relaxed);
        reply.encapsulate(&padded(answer, bucket)).map_err(cryptography)
    }

    fn listen(&self, address: &str) -> Result<String, ServiceError> {
        if self.0.is_listening.swap(true, Ordering::SeqCst) {
            return Err(ServiceError::Listen { reason: "it listens already".into() });
        }
        let bound = tls::serve(self.0.clone(), address);
        self.0.is_listening.store(bound.is_ok(), Ordering::SeqCst);
        bound.map(|address| address.to_string())
    }

    fn status(&self) -> Status {
        Status { threads: CALLS as u32, models: self.0.models.offered(), keys: self.0.keys.status(now()) }
    }
}

/// Seconds since 1970, as the host alleges.
fn now() -> u64 {
    enclos_enclave::time().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// What a panicking call left behind is whole: every change under these locks is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> Result<(), ServeError> {
    ohttp::init();
    let service = Service {
        models: Models::default(),
        keys: Keys::default(),
        releases: Releases::default(),
        offer: Mutex::default(),
        key_lifetime: AtomicU64::new(LIFETIME),
        smallest_bucket: AtomicUsize::new(SMALLEST_BUCKET),
        batching: Mutex::default(),
        is_listening: AtomicBool::new(false),
    };
    Server::new()
        .contract(InferenceServer::new(Calls(Arc::new(service))))
        .threads(CALLS)
        .stack_size(STACK)
        .run()
}
