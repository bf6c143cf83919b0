//! Peers judged per second on one thread: with the platform's collateral verified once, and with a source that gives a new
//! document each time, so that its signatures are verified for every peer; in the same run.

#[allow(dead_code, reason = "tests need more of it")]
#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Clock, Platform};
use enclos_attested_tls::{
    AttestedIdentity, CertificateOptions, CollateralSource, CollateralUnavailable, OfflineCollateral,
    PeerVerifier,
};
use enclos_verifier::{Collateral, Policy, Quote, Time};

const ROUND: Duration = Duration::from_millis(500);
const ROUNDS: usize = 5;

/// A source whose documents are always new.
#[derive(Debug)]
struct Anew(Collateral);

impl CollateralSource for Anew {
    fn collateral(&self, _: &Quote<'_>, _: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        Ok(Arc::new(self.0.clone()))
    }
}

fn main() {
    let platform = Platform::new();
    let now = Time::now();
    let clock = Clock::at(now.0);
    let identity = AttestedIdentity::new(platform.attester(), CertificateOptions::default(), clock.clone());
    let certificate =
        identity.expect("the platform attests").current().expect("the certificate is new").cert[0].clone();
    let collateral = platform.quoting.collateral(now).expect("the platform has collateral");
    let root = platform.quoting.root_key_id();
    let policy = Policy::from_toml(&format!("any_identity = true\nemulated_roots = [\"{root}\"]\n"));
    let policy = policy.expect("a policy");
    let verifier = |source| PeerVerifier::new(policy.clone(), source, clock.clone());
    let kept = verifier(Arc::new(OfflineCollateral(Arc::new(collateral.clone()))));
    let anew = verifier(Arc::new(Anew(collateral)));
    let judge =
        |verifier: &PeerVerifier| drop(verifier.judge(&certificate, now).expect("the peer is accepted"));

    // Alternating, so that both meet the same machine; the best round of each is the one least disturbed.
    let (mut with, mut without) = (0.0f64, 0.0f64);
    for _ in 0..ROUNDS {
        with = with.max(per_second(|| judge(&kept)));
        without = without.max(per_second(|| judge(&anew)));
    }
    println!("peers per second, collateral verified once:      {with:.0}");
    println!("peers per second, collateral verified each time: {without:.0}");
    println!("ratio: {:.1}", with / without);
}

fn per_second(mut work: impl FnMut()) -> f64 {
    let started = Instant::now();
    let mut count = 0.0;
    while started.elapsed() < ROUND {
        work();
        count += 1.0;
    }
    count / started.elapsed().as_secs_f64()
}
