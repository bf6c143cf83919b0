//! Where the broker gets collateral: what it was given, a provisioning service, or the emulated platform.

use std::sync::Arc;
use std::time::Duration;

use enclos_attested_tls::{CachedCollateral, CollateralSource};
pub use enclos_pccs::ServiceError;
use enclos_pccs::{Options, ProvisioningService, ServiceCollateral};
use enclos_verifier::{Collateral, Hex, Policy, Quote, Time, Verifier};

/// How long a provisioning service may take for all documents.
const PATIENCE: Duration = Duration::from_secs(20);
/// Collateral is good for thirty days, and asked for again after a minute: revocations and newer TCB levels count soon. While the
/// service does not answer, what is kept is used.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);

/// All there are, in the order in which they are asked.
#[derive(Debug, Default)]
pub struct Sources {
    /// Of an emulated platform, and its root: asked only for keys whose policy names that root.
    pub emulated: Option<(Hex<32>, Arc<dyn CollateralSource>)>,
    /// Others.
    pub others: Vec<Arc<dyn CollateralSource>>,
}

impl Sources {
    /// The first collateral there is for a quote.
    ///
    /// # Errors
    /// Why each source has none.
    pub(crate) fn collateral(
        &self,
        quote: &Quote<'_>,
        policy: &Policy,
        time: Time,
    ) -> Result<Arc<Collateral>, Vec<String>> {
        let emulated = self.emulated.iter().filter(|(root, _)| policy.emulated_roots.contains(root));
        let mut reasons = Vec::new();
        for source in emulated.map(|(_, source)| source).chain(&self.others) {
            match source.collateral(quote, time) {
                Ok(collateral) => return Ok(collateral),
                Err(e) => reasons.push(e.reason),
            }
        }
        Err(reasons)
    }
}

/// A provisioning service, with a cache in memory before it.
///
/// # Errors
/// [`ServiceError`] when the address is not one of a provisioning service.
pub fn pccs(url: &str) -> Result<CachedCollateral<ServiceCollateral>, ServiceError> {
    let options = Options { patience: PATIENCE, renew_before: RENEW_BEFORE, ..Options::default() };
    Ok(ServiceCollateral::new(ProvisioningService::new(url, options)?, Verifier::default()))
}
