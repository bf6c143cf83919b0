//! Collateral: the first byte says what the rest replaces in good collateral, by which a good quote is then appraised; its
//! highest bit asks for the details besides.
//!
//! What is parsed anew for each input is kept short: the good collateral has two levels of TCB info, which are good as long as
//! signatures are presumed (`ENCLOS_FUZZ_SIGNATURES`), and an empty PCK CRL, which is of the other CA.
#![no_main]

use std::sync::LazyLock;

use enclos_verifier::{AnyCollateral, Collateral, Time, Verifier};
use libfuzzer_sys::fuzz_target;

const QUOTE: &[u8] = include_bytes!("../../verifier/tests/data/td15_extended.bin");
const COLLATERAL: &[u8] = include_bytes!("../../verifier/tests/data/td15_extended.json");

static GOOD: LazyLock<(Verifier, Collateral)> = LazyLock::new(|| {
    let mut good = Collateral::from_json(COLLATERAL).expect("a file of ours");
    let mut info: serde_json::Value = serde_json::from_str(&good.tcb_info).expect("JSON");
    info["tcbLevels"].as_array_mut().expect("levels").truncate(2);
    good.tcb_info = info.to_string();
    good.pck_crl = include_bytes!("../corpus/collateral/2")[1..].to_vec();
    // Not used where the quote has its own.
    good.pck_certificate_chain = None;
    (Verifier::default(), good)
});

fuzz_target!(|input: &[u8]| {
    let Some((&field, bytes)) = input.split_first() else { return };
    let (verifier, good) = &*GOOD;
    let mut collateral = good.clone();
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
    let trusted = verifier.trust(&collateral);
    let _ = trusted.valid_until();
    let time = Time(1_780_000_000);
    let appraisal = verifier.verify_quote(QUOTE, &trusted, time);
    assert!(appraisal.root_of_trust.is_none_or(|root| root.is_trusted()), "Intel's chain is in the quote");
    if field & 0x80 != 0 {
        let _ = verifier.details(QUOTE, &trusted);
    }
    if field % 8 == 6 || field & 0x40 != 0 {
        let _ = verifier.check_collateral(&collateral, time);
    }
});
