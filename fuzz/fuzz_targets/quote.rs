//! Quotes and SEV-SNP reports: parsed, appraised by good collateral, judged, and told apart.
#![no_main]

use std::sync::LazyLock;

use enclos_verifier::{
    AnyCollateral, Collateral, CollateralKey, Evidence, Policy, Quote, SnpCollateral, Time,
    TrustedCollateral, Verifier, appraise,
};
use libfuzzer_sys::fuzz_target;

const COLLATERAL: &[u8] = include_bytes!("../../verifier/tests/data/sgx_v3.json");
/// A time at which the collateral is in force.
const TIME: Time = Time(1_751_066_974);

static TRUSTED: LazyLock<(Verifier, TrustedCollateral)> = LazyLock::new(|| {
    let verifier = Verifier::default();
    let trusted = verifier.trust(&Collateral::from_json(COLLATERAL).expect("a file of ours"));
    (verifier, trusted)
});

fuzz_target!(|bytes: &[u8]| {
    let (verifier, trusted) = &*TRUSTED;
    if let Ok(quote) = Quote::parse(bytes) {
        let _ = CollateralKey::of(&quote);
        let _ = quote.certification.pck_identifiers();
        let appraisal = verifier.verify_quote(bytes, trusted, TIME);
        let _ = verifier.details(bytes, trusted);
        let verdict = Policy { any_identity: true, ..Policy::default() }.judge(appraisal);
        let _ = (verdict.to_string(), serde_json::to_string(&verdict).expect("verdicts are serializable"));
    } else if let Evidence::SnpReport(_) = Evidence::detect(bytes) {
        let collateral = AnyCollateral::Snp(SnpCollateral { certificate_chain: String::new(), crl: None });
        let _ = appraise(Evidence::detect(bytes), &collateral, TIME, &Policy::default());
    }
});
