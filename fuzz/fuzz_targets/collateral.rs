//! Collateral: the first byte says what the rest replaces in good collateral, by which a good quote is then appraised.
#![no_main]

use std::sync::LazyLock;

use enclos_verifier::{AnyCollateral, Collateral, Time, Verifier};
use libfuzzer_sys::fuzz_target;

const QUOTE: &[u8] = include_bytes!("../../verifier/tests/data/td15_extended.bin");
const COLLATERAL: &[u8] = include_bytes!("../../verifier/tests/data/td15_extended.json");

static GOOD: LazyLock<Collateral> =
    LazyLock::new(|| Collateral::from_json(COLLATERAL).expect("a file of ours"));

fuzz_target!(|input: &[u8]| {
    let Some((&field, bytes)) = input.split_first() else { return };
    let mut collateral = GOOD.clone();
    let text = || String::from_utf8_lossy(bytes).into_owned();
    match field % 8 {
        0 => match AnyCollateral::from_json(bytes) {
            Ok(AnyCollateral::Dcap(given)) => collateral = *given,
            _ => return,
        },
        1 => collateral.root_ca_crl = bytes.to_vec(),
        2 => collateral.pck_crl = bytes.to_vec(),
        3 => collateral.tcb_info = text(),
        4 => collateral.qe_identity = text(),
        5 => collateral.tcb_info_issuer_chain = text(),
        6 => collateral.pck_crl_issuer_chain = text(),
        _ => collateral.pck_certificate_chain = Some(text()),
    }
    let verifier = Verifier::default();
    let trusted = verifier.trust(&collateral);
    let _ = trusted.valid_until();
    let appraisal = verifier.verify_quote(QUOTE, &trusted, Time(1_780_000_000));
    assert!(appraisal.root_of_trust.is_none_or(|root| root.is_trusted()), "Intel's chain is in the quote");
    let _ = verifier.details(QUOTE, &trusted);
});
