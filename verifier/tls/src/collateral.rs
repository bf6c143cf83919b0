//! Where a relying party gets collateral from while a peer waits: files, or a provisioning service behind a cache.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use enclos_verifier::{Collateral, CollateralKey, CollateralKeyError, Quote, Time, Verifier};

/// Gives the collateral to judge quotes by. What it gives is verified by whoever asked; what it cannot give is an error,
/// and the peer is refused.
pub trait CollateralSource: fmt::Debug + Send + Sync {
    /// The collateral for a quote's platform, to be used at `time`. May take as long as a handshake may take.
    ///
    /// # Errors
    /// [`CollateralUnavailable`], with the reason.
    fn collateral(&self, quote: &Quote<'_>, time: Time) -> Result<Arc<Collateral>, CollateralUnavailable>;
}

impl<S: CollateralSource + ?Sized> CollateralSource for Arc<S> {
    fn collateral(&self, quote: &Quote<'_>, time: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        (**self).collateral(quote, time)
    }
}

/// There is no collateral for a quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no collateral to judge the peer's evidence by: {reason}")]
pub struct CollateralUnavailable {
    /// Cause and cure, for people.
    pub reason: String,
}

impl From<CollateralKeyError> for CollateralUnavailable {
    fn from(error: CollateralKeyError) -> Self {
        Self { reason: error.to_string() }
    }
}

/// One document of collateral, given beforehand. It is used for every quote: if it is another platform's, the appraisal
/// says so.
#[derive(Debug, Clone)]
pub struct OfflineCollateral(pub Arc<Collateral>);

impl CollateralSource for OfflineCollateral {
    fn collateral(&self, _: &Quote<'_>, _: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        Ok(Arc::clone(&self.0))
    }
}

/// Keeps what another source gave until it is about to expire.
///
/// Within `renew_before` of the expiry the source is asked anew. When it fails, what is kept is used for as long as it is
/// valid, and the source asked again a minute later; after that the source's error is the answer.
#[derive(Debug)]
pub struct CachedCollateral<S> {
    source: S,
    renew_before: Duration,
    kept: Mutex<HashMap<CollateralKey, Kept>>,
}

#[derive(Debug, Clone)]
struct Kept {
    collateral: Arc<Collateral>,
    valid_until: Time,
    /// The source is not asked before.
    ask_again: Time,
}

/// Platforms whose collateral is kept. Which there are is for peers to say, so there must be an end.
const PLATFORMS: usize = 64;
/// Between attempts to renew, seconds.
const RETRY: u64 = 60;

impl<S: CollateralSource> CachedCollateral<S> {
    /// A cache that asks its source again `renew_before` the collateral expires.
    pub fn new(source: S, renew_before: Duration) -> Self {
        Self { source, renew_before, kept: Mutex::default() }
    }

    fn keep(&self, key: CollateralKey, kept: Kept) {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= PLATFORMS && !all.contains_key(&key) {
            let first = all.iter().min_by_key(|(_, kept)| kept.valid_until).map(|(key, _)| *key);
            first.map(|key| all.remove(&key));
        }
        all.insert(key, kept);
    }
}

impl<S: CollateralSource> CollateralSource for CachedCollateral<S> {
    fn collateral(&self, quote: &Quote<'_>, time: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        let key = CollateralKey::of(quote)?;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(kept) = &kept
            && time < kept.ask_again
            && time <= kept.valid_until
        {
            return Ok(Arc::clone(&kept.collateral));
        }
        // Asked without the lock, so that other peers do not wait for this one's collateral.
        match self.source.collateral(quote, time) {
            Ok(collateral) => {
                // Only dates are read here. Collateral with none is not kept.
                if let Some(valid_until) = Verifier::default().trust(&collateral).valid_until() {
                    let renew = Time(valid_until.0.saturating_sub(self.renew_before.as_secs()));
                    let ask_again = renew.max(Time(time.0.saturating_add(RETRY)));
                    self.keep(key, Kept { collateral: Arc::clone(&collateral), valid_until, ask_again });
                }
                Ok(collateral)
            }
            Err(error) => match kept {
                Some(kept) if time <= kept.valid_until => {
                    let ask_again = Time(time.0.saturating_add(RETRY));
                    self.keep(key, Kept { ask_again, ..kept.clone() });
                    Ok(kept.collateral)
                }
                _ => Err(error),
            },
        }
    }
}
