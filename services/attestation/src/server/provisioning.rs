//! Collateral that the service was not started with: fetched from a provisioning service when evidence of its platform comes,
//! and again before it expires. The engine gets only what is genuine under the roots demanded of platforms.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use enclos_pccs::{Options, ProvisioningService};
use enclos_verifier::{CollateralKey, Quote, Roots, Time, Verifier};
use serde::Deserialize;

use super::SharedEngine;
use crate::{
    config::{Config, ConfigError, Pccs},
    engine::{CollateralDocument, Refused},
    inspector::no_collateral,
    jws::decode_base64,
};

/// How long nothing is asked about a platform that the service has nothing for.
const PAUSE: Duration = Duration::from_secs(60);
/// Platforms that are remembered.
const PLATFORMS: usize = 1024;

/// A provisioning service, and what it gave.
pub(super) struct Provisioning {
    service: ProvisioningService,
    verifier: Verifier,
    /// When evidence is judged, if not at present.
    evidence_time: Option<Time>,
    /// Held while fetching: one at a time, so that a slow service does not hold up evidence that there is collateral for.
    fetching: Mutex<()>,
    /// What was fetched, and until when it is in force.
    fetched: Mutex<HashMap<CollateralKey, Time>>,
    /// What could not be fetched, and when.
    missing: Mutex<HashMap<CollateralKey, Instant>>,
}

impl Provisioning {
    pub(super) fn new(pccs: &Pccs, config: &Config) -> Result<Self, ConfigError> {
        let roots = match &pccs.ca {
            None => None,
            Some(path) => {
                Some(std::fs::read(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?)
            }
        };
        let options = Options { cache: pccs.cache.clone(), roots, ..Options::default() };
        Ok(Self {
            service: ProvisioningService::new(&pccs.url, options)?,
            verifier: Verifier::new(Roots::with_emulated(config.emulated_roots.iter().copied())),
            evidence_time: config.evidence_time,
            fetching: Mutex::default(),
            fetched: Mutex::default(),
            missing: Mutex::default(),
        })
    }

    /// Gives the engine the collateral for the evidence in an attestation request.
    ///
    /// # Errors
    /// Why there is none, for whoever asked.
    pub(super) fn provide(&self, engine: &SharedEngine, request: &[u8]) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Request {
            quote: Option<String>,
            report: Option<String>,
        }
        let request: Request = serde_json::from_slice(request).map_err(|error| error.to_string())?;
        let evidence = request.quote.or(request.report).unwrap_or_default();
        let evidence = decode_base64(&evidence)?;
        let quote = Quote::parse(&evidence).map_err(|error| error.to_string())?;
        let key = CollateralKey::of(&quote).map_err(|error| error.to_string())?;
        // Platforms that nobody vouches for are not worth a question: anybody can make up a certificate.
        let appraisal =
            self.verifier.verify_quote(&evidence, &self.verifier.trust(&no_collateral()), self.time());
        if !appraisal.root_of_trust.is_some_and(|root| root.is_trusted()) {
            return Err("its root is not trusted, so none is fetched".into());
        }
        if lock(&self.missing).get(&key).is_some_and(|at| at.elapsed() < PAUSE) {
            return Err("the provisioning service had none a moment ago".into());
        }
        let Ok(_fetching) = self.fetching.try_lock() else {
            return Err("another platform's is being fetched; try again in a second".into());
        };
        self.fetch(engine, key)
    }

    /// Fetches anew what is about to expire.
    pub(super) fn renew(&self, engine: &SharedEngine) {
        let soon = self.time().0.saturating_add(Options::default().renew_before.as_secs());
        let due: Vec<_> =
            lock(&self.fetched).iter().filter(|(_, until)| until.0 <= soon).map(|(key, _)| *key).collect();
        for key in due {
            let _fetching = lock(&self.fetching);
            if let Err(reason) = self.fetch(engine, key) {
                tracing::warn!(fmspc = %key.fmspc, reason, "collateral could not be renewed");
            }
        }
    }

    fn time(&self) -> Time {
        self.evidence_time.unwrap_or_else(Time::now)
    }

    fn fetch(&self, engine: &SharedEngine, key: CollateralKey) -> Result<(), String> {
        let now = self.time();
        let outcome =
            self.service.collateral_of(&key, &self.verifier, now).map_err(|error| error.to_string());
        let outcome = outcome.and_then(|collateral| {
            let until = self
                .verifier
                .check_collateral(&collateral, now)
                .map_err(|failure| format!("what the provisioning service gives is refused: {failure}"))?;
            let text = serde_json::to_string(&collateral).map_err(|error| error.to_string())?;
            let name = format!("fetched collateral of FMSPC {}", key.fmspc);
            let document = CollateralDocument { name, text };
            engine.take_collateral(&[document]).map_err(|refused: Refused| refused.message)?;
            Ok(until)
        });
        match outcome {
            Ok(until) => {
                tracing::info!(fmspc = %key.fmspc, tee = %key.tee, %until, "collateral fetched");
                remember(&mut lock(&self.fetched), key, until);
                lock(&self.missing).remove(&key);
                Ok(())
            }
            Err(reason) => {
                tracing::warn!(fmspc = %key.fmspc, reason, "no collateral from the provisioning service");
                remember(&mut lock(&self.missing), key, Instant::now());
                // Addresses are for the log: callers are told that there is none.
                Err("the provisioning service gives none; the log says why".into())
            }
        }
    }
}

/// Whoever panicked left a map of what is known: as good as before.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remember<T>(known: &mut HashMap<CollateralKey, T>, key: CollateralKey, value: T) {
    if known.len() >= PLATFORMS && !known.contains_key(&key) {
        known.clear();
    }
    known.insert(key, value);
}
