//! Whatever the bytes are, there is an appraisal or a typed error, never a panic; and no changed quote is authentic
//! unless the change lies where nothing is signed.

use std::{fs, path::PathBuf};

use enclos_verifier::{
    AnyCollateral, Collateral, Evidence, Policy, Quote, QuoteError, Roots, SnpReport, Time, Verifier, key_id,
    quote::without_oe_header,
};

/// When the collateral of `sgx_v3` was current: 2025-06-27.
const SGX_TIME: Time = Time(1_751_066_974);
/// When the collateral of `td15_extended` was current: 2026-10-20.
const TDX_TIME: Time = Time(1_792_500_000);

fn data(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}

/// All recorded quotes, or those of this crate when the recordings are absent.
fn quotes() -> Vec<Vec<u8>> {
    let shared = std::env::var_os("ENCLOS_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let mut quotes = vec![data("sgx_v3.bin"), data("td15_extended.bin")];
    match fs::read_dir(shared.join("quotes")) {
        Err(_) => println!("only this crate's quotes: {} is absent", shared.display()),
        Ok(entries) => quotes.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
                .map(|path| fs::read(path).unwrap()),
        ),
    }
    quotes
}

#[test]
fn every_byte_of_a_quote_matters() {
    let verifier = Verifier::new(Roots::vendors());
    for (name, time) in [("sgx_v3", SGX_TIME), ("td15_extended", TDX_TIME)] {
        let quote = data(&format!("{name}.bin"));
        let collateral = Collateral::from_json(&data(&format!("{name}.json"))).unwrap();
        let trusted = verifier.trust(&collateral);
        let good = verifier.verify_quote(&quote, &trusted, time);
        assert!(good.is_authentic(), "{good}");
        let pem_start = quote.windows(10).position(|window| window == b"-----BEGIN").unwrap();
        let end = quote.len() - Quote::parse(&quote).unwrap().trailing;
        for position in 0..quote.len() {
            // Signatures cost time; of the certificates' text every 23rd byte must do.
            if position > pem_start && position % 23 != 0 {
                continue;
            }
            let mut mutant = quote.clone();
            mutant[position] ^= 1 << (position % 8);
            let appraisal = verifier.verify_quote(&mutant, &trusted, time);
            // Text around certificates' base64 (line ends, the text of a "----" line) may change without effect, and the length
            // before it may leave some of that out.
            let in_pem = position >= pem_start - 4;
            if position < end && !in_pem {
                assert!(!appraisal.is_authentic(), "{name}: byte {position} may be changed: {appraisal}");
            } else if appraisal.is_authentic() {
                assert_eq!(appraisal.identity, good.identity, "{name}: byte {position}");
            }
        }
    }
}

#[test]
fn every_truncation_is_a_typed_error() {
    for quote in quotes() {
        let Ok(whole) = Quote::parse(&quote) else { continue };
        let needed = quote.len() - whole.trailing;
        for len in 0..needed {
            match Quote::parse(&quote[..len]) {
                Err(QuoteError::Truncated { .. }) => {}
                // Cut inside an Open Enclave header, its first bytes are taken for a quote's.
                Err(QuoteError::Version(1)) if len < 16 && without_oe_header(&quote).len() < quote.len() => {}
                other => panic!("{len} of {needed} bytes: {other:?}"),
            }
        }
        assert!(Quote::parse(&quote[..needed]).is_ok());
    }
}

#[test]
fn lengths_and_kinds_in_a_quote_are_not_believed() {
    let verifier = Verifier::new(Roots::vendors());
    let trusted = verifier.trust(&Collateral::from_json(&data("sgx_v3.json")).unwrap());
    let policy = Policy { any_identity: true, ..Policy::default() };
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for quote in quotes() {
        for _ in 0..80 {
            let mut mutant = quote.clone();
            for _ in 0..=random.below(8) {
                // Headers and lengths lie early; that is where parsing decides.
                let reach = if random.below(2) == 0 { 64.min(mutant.len()) } else { mutant.len() };
                let position = random.below(reach);
                mutant[position] = [0, 1, 0x7f, 0x80, 0xff, random.next() as u8][random.below(6)];
            }
            mutant.truncate(mutant.len() - random.below(4) * random.below(mutant.len() / 4));
            let verdict = policy.judge(verifier.verify_quote(&mutant, &trusted, SGX_TIME));
            assert!(!verdict.to_string().is_empty());
            serde_json::to_string(&verdict).unwrap();
        }
    }
}

#[test]
fn mutated_collateral_is_never_believed_and_never_panics() {
    let json = data("sgx_v3.json");
    let quote = data("sgx_v3.bin");
    let good = Collateral::from_json(&json).unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut refused = 0;
    for round in 0..300 {
        let mut mutant = good.clone();
        let text = |text: &mut String, random: &mut Random| {
            let position = random.below(text.len());
            let changed = char::from(b' ' + random.below(94) as u8);
            if text.is_char_boundary(position) && text.is_char_boundary(position + 1) {
                text.replace_range(position..=position, changed.encode_utf8(&mut [0; 4]));
            }
        };
        let bytes = |bytes: &mut Vec<u8>, random: &mut Random| {
            let position = random.below(bytes.len());
            bytes[position] ^= 1 << random.below(8);
        };
        match round % 6 {
            0 => text(&mut mutant.tcb_info, &mut random),
            1 => text(&mut mutant.qe_identity, &mut random),
            2 => bytes(&mut mutant.root_ca_crl, &mut random),
            3 => bytes(&mut mutant.pck_crl, &mut random),
            4 => bytes(&mut mutant.tcb_info_signature, &mut random),
            _ => bytes(&mut mutant.qe_identity_signature, &mut random),
        }
        let verifier = Verifier::new(Roots::vendors());
        let appraisal = verifier.verify_quote(&quote, &verifier.trust(&mutant), SGX_TIME);
        if mutant != good {
            assert!(!appraisal.is_authentic(), "round {round}: {mutant:?}: {appraisal}");
            refused += 1;
        }
    }
    assert!(refused > 270, "only {refused} collaterals were changed");
    for position in (0..json.len()).step_by(3) {
        let mut mutant = json.clone();
        mutant[position] ^= 4;
        if let Ok(collateral) = Collateral::from_json(&mutant)
            && position % 50 == 0
        {
            let verifier = Verifier::new(Roots::vendors());
            let _ = verifier.verify_quote(&quote, &verifier.trust(&collateral), SGX_TIME);
        }
    }
}

#[test]
fn noise_is_refused() {
    let mut random = Random(7);
    for len in 0..3000 {
        let noise: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        assert!(Quote::parse(&noise).is_err());
        assert!(SnpReport::parse(&noise).is_err());
        assert!(key_id(&noise).is_err());
        assert!(AnyCollateral::from_json(&noise).is_err());
        assert!(matches!(Evidence::detect(&noise), Evidence::Quote(_)));
        let text = String::from_utf8_lossy(&noise);
        assert!(len < 4 || Policy::from_toml(&text).is_err());
        assert!(Policy::from_json(&text).is_err());
    }
}

/// A generator of noise (Marsaglia's xorshift64), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}
