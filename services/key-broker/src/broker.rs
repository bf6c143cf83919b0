//! The decision: whether a key goes to who asks for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use enclos_verifier::{
    AnyCollateral, CollateralError, CollateralMismatch, Evidence, Hex, Policy, Quote, Time, Verdict, appraise,
};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::audit::{AuditError, AuditLog, Entry, EvidenceEntry, Happened};
use crate::collateral::Sources;
use crate::release::{KeyRelease, KeyRequest, ReleaseError, report_data, seal};
use crate::store::{Store, StoreError};

/// How long a nonce can be used.
pub(crate) const NONCE_LIFETIME: Duration = Duration::from_secs(60);
/// Nonces that are remembered as used. More attempts in a lifetime are told to come later.
const USED_NONCES: usize = 1 << 16;

/// Random bytes of a nonce; when it expires follows (64 bits, seconds since the broker began), then what authenticates both.
const RANDOM: usize = 16;
const AUTHENTICATED: usize = RANDOM + 8;
/// Bytes of a nonce.
const NONCE: usize = AUTHENTICATED + 32;

/// A broker: keys, and who gets them.
#[derive(Debug)]
pub struct Broker {
    store: Store,
    audit: AuditLog,
    sources: Sources,
    nonces: Nonces,
}

/// Why a key is not released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such key, or none can be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is released no more.
    #[error("the key {key_id} was revoked at {since}")]
    Revoked {
        /// Which key.
        key_id: String,
        /// When.
        since: Time,
    },
    /// The nonce is none of this broker's, or too old.
    #[error("the nonce is not of this broker, or older than {} s: ask for another", NONCE_LIFETIME.as_secs())]
    Nonce,
    /// A request with this nonce came before.
    #[error("the nonce was used before: a nonce is good for one request")]
    NonceUsed,
    /// Too many requests.
    #[error("more requests than this broker remembers nonces of came within {} s: try again later", NONCE_LIFETIME.as_secs())]
    Busy,
    /// There is nothing to appraise the evidence by.
    #[error("there is no collateral for the evidence: {reason}")]
    NoCollateral {
        /// Where it was looked for.
        reason: String,
    },
    /// The collateral that came with the request is none.
    #[error(transparent)]
    Collateral(#[from] CollateralError),
    /// The collateral is for another kind of evidence.
    #[error(transparent)]
    Mismatch(#[from] CollateralMismatch),
    /// The evidence does not meet the key's policy.
    #[error("the evidence does not meet the policy of the key: {}", .0.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Evidence(Box<Verdict>),
    /// The public key is none.
    #[error(transparent)]
    PublicKey(#[from] ReleaseError),
    /// What is not recorded does not happen.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

impl Broker {
    /// A broker of the keys in a store.
    ///
    /// # Errors
    /// When the record cannot be opened, or the system gives no random bytes.
    pub fn new(store: Store, sources: Sources) -> Result<Self, Refusal> {
        let audit = AuditLog::open(store.folder())?;
        Ok(Self { store, audit, sources, nonces: Nonces::new()? })
    }

    /// A nonce for one request, good for a minute.
    ///
    /// # Errors
    /// [`Refusal::Random`] when the system gives no random bytes.
    pub fn nonce(&self) -> Result<Vec<u8>, Refusal> {
        self.nonces.make()
    }

    /// Releases a key if the evidence of who asks meets its policy at this time. Records what came of it before it returns;
    /// `from` is who relayed, for the record. Takes as long as fetching collateral takes.
    ///
    /// # Errors
    /// [`Refusal`], with the reasons.
    pub fn release(
        &self,
        key_id: &str,
        request: &KeyRequest,
        from: Option<String>,
    ) -> Result<KeyRelease, Refusal> {
        let mut evidence = None;
        let outcome = self.decide(key_id, request, &mut evidence);
        let (event, reasons) = match &outcome {
            Ok(_) => (Happened::Released, Vec::new()),
            Err(Refusal::Evidence(verdict)) => {
                (Happened::Refused, verdict.reasons.iter().map(ToString::to_string).collect())
            }
            Err(refusal) => (Happened::Refused, vec![refusal.to_string()]),
        };
        let key = key_id.chars().take(crate::MAX_KEY_ID).collect();
        self.audit.record(&Entry { time: Time::now(), event, key, reasons, evidence, from })?;
        outcome
    }

    fn decide(
        &self,
        key_id: &str,
        request: &KeyRequest,
        evidence: &mut Option<EvidenceEntry>,
    ) -> Result<KeyRelease, Refusal> {
        let key = self.store.key(key_id)?;
        if let Some(since) = key.revoked {
            return Err(Refusal::Revoked { key_id: key.key_id, since });
        }
        self.nonces.take(&request.nonce)?;
        let collateral = self.collateral(request, &key.policy)?;
        let bound = report_data(key_id, &request.nonce, &request.public_key);
        let policy = Policy { report_data: Some(Hex(bound)), ..key.policy };
        let verdict = appraise(Evidence::detect(&request.evidence), &collateral, Time::now(), &policy)?;
        *evidence = Some(EvidenceEntry::of(&verdict.appraisal));
        if !verdict.accepted {
            return Err(Refusal::Evidence(Box::new(verdict)));
        }
        Ok(seal(&key.key, &request.public_key, &bound)?)
    }

    /// The broker's own collateral before that of who asks, who may choose an older one that is still in force.
    fn collateral(&self, request: &KeyRequest, policy: &Policy) -> Result<AnyCollateral, Refusal> {
        let mut reasons = Vec::new();
        if let Evidence::Quote(quote) = Evidence::detect(&request.evidence) {
            match Quote::parse(quote) {
                Ok(quote) => match self.sources.collateral(&quote, policy, Time::now()) {
                    Ok(collateral) => {
                        return Ok(AnyCollateral::Dcap(Box::new(Arc::unwrap_or_clone(collateral))));
                    }
                    Err(e) => reasons.extend(e),
                },
                Err(e) => reasons.push(format!("the evidence is no quote: {e}")),
            }
        }
        match &request.collateral {
            Some(given) => Ok(AnyCollateral::from_json(given.to_string().as_bytes())?),
            None => {
                reasons.push("none came with the request".into());
                Err(Refusal::NoCollateral { reason: reasons.join("; ") })
            }
        }
    }
}

/// Nonces that need no memory until they are used: each authenticates itself, so that asking for many costs the broker nothing.
#[derive(Debug)]
struct Nonces {
    random: SystemRandom,
    key: hmac::Key,
    began: Instant,
    /// Random part of those used, and when they expire.
    used: Mutex<HashMap<[u8; RANDOM], u64>>,
}

impl Nonces {
    fn new() -> Result<Self, Refusal> {
        let random = SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random).map_err(|_| Refusal::Random)?;
        Ok(Self { random, key, began: Instant::now(), used: Mutex::default() })
    }

    /// Seconds since the broker began. No clock that anybody sets.
    fn now(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn make(&self) -> Result<Vec<u8>, Refusal> {
        let mut nonce = vec![0; RANDOM];
        self.random.fill(&mut nonce).map_err(|_| Refusal::Random)?;
        nonce.extend((self.now() + NONCE_LIFETIME.as_secs()).to_be_bytes());
        let tag = hmac::sign(&self.key, &nonce);
        nonce.extend(tag.as_ref());
        Ok(nonce)
    }

    /// Uses a nonce up.
    fn take(&self, nonce: &[u8]) -> Result<(), Refusal> {
        if nonce.len() != NONCE {
            return Err(Refusal::Nonce);
        }
        let (authenticated, tag) = nonce.split_at(AUTHENTICATED);
        hmac::verify(&self.key, authenticated, tag).map_err(|_| Refusal::Nonce)?;
        let (mut random, mut expires) = ([0; RANDOM], [0; 8]);
        random.copy_from_slice(&authenticated[..RANDOM]);
        expires.copy_from_slice(&authenticated[RANDOM..]);
        let (expires, now) = (u64::from_be_bytes(expires), self.now());
        if expires <= now {
            return Err(Refusal::Nonce);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= USED_NONCES {
            used.retain(|_, expires| *expires > now);
        }
        if used.len() >= USED_NONCES {
            return Err(Refusal::Busy);
        }
        match used.insert(random, expires) {
            None => Ok(()),
            Some(_) => Err(Refusal::NonceUsed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_and_for_its_broker() {
        let nonces = Nonces::new().unwrap();
        let nonce = nonces.make().unwrap();
        assert!(matches!(Nonces::new().unwrap().take(&nonce), Err(Refusal::Nonce)));
        for place in 0..nonce.len() {
            let mut altered = nonce.clone();
            altered[place] ^= 1;
            assert!(matches!(nonces.take(&altered), Err(Refusal::Nonce)), "byte {place}");
        }
        assert!(matches!(nonces.take(&nonce[1..]), Err(Refusal::Nonce)));
        nonces.take(&nonce).unwrap();
        assert!(matches!(nonces.take(&nonce), Err(Refusal::NonceUsed)));
        nonces.take(&nonces.make().unwrap()).unwrap();
    }

    #[test]
    fn an_old_nonce_is_none() {
        let mut nonces = Nonces::new().unwrap();
        let nonce = nonces.make().unwrap();
        let Some(earlier) = nonces.began.checked_sub(NONCE_LIFETIME) else { return };
        nonces.began = earlier;
        assert!(matches!(nonces.take(&nonce), Err(Refusal::Nonce)));
    }
}
