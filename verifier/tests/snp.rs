//! A recorded Milan report verifies under AMD's root, and every kind of tampering is found.
//!
//! The recordings lie beside the project (`../shared/quotes/snp`, or under `$ENCLOS_SHARED`); without them the tests
//! say that they were skipped.

use std::{fs, path::PathBuf};

use enclos_verifier::{
    CheckKind, Identity, Platform, RootOfTrust, Roots, SnpCollateral, Status, Tee, Time, Verifier,
};

/// 2024-01-01, inside the validity of the recorded VCEK.
const TIME: Time = Time(1_704_067_200);

fn recordings() -> Option<PathBuf> {
    let shared = std::env::var_os("ENCLOS_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let snp = shared.join("quotes/snp");
    if !snp.join("test-report.bin").is_file() {
        println!("skipped: {} is absent", snp.display());
        return None;
    }
    Some(snp)
}

fn collateral(dir: &std::path::Path, vcek: &str) -> SnpCollateral {
    let cas = fs::read_to_string(dir.join("milan_ask_ark_asvk.pem")).unwrap();
    SnpCollateral::from_kds(&fs::read(dir.join(vcek)).unwrap(), &cas)
}

#[test]
fn accepts_a_milan_report() {
    let Some(dir) = recordings() else { return };
    let report = fs::read(dir.join("test-report.bin")).unwrap();
    let verifier = Verifier::new(Roots::vendors());
    let appraisal = verifier.verify_snp(&report, &collateral(&dir, "test-vcek.der"), TIME);
    assert!(appraisal.is_authentic(), "{appraisal}");
    assert_eq!(appraisal.tee, Some(Tee::SevSnp));
    assert_eq!(appraisal.root_of_trust, Some(RootOfTrust::Amd { product: "Milan" }));
    let Some(Platform::Amd { reported, .. }) = appraisal.tcb.as_ref().map(|tcb| &tcb.platform) else {
        panic!()
    };
    assert_eq!((reported.bootloader, reported.tee, reported.snp, reported.microcode), (3, 0, 8, 115));
    assert!(matches!(appraisal.identity, Some(Identity::SevSnp { debug: false, .. })));
    // Evidence is not refused for want of a CRL, but nobody may think that one was consulted.
    assert!(appraisal.notes[0].contains("revocation"));
}

#[test]
fn refuses_what_was_tampered_with() {
    let Some(dir) = recordings() else { return };
    let report = fs::read(dir.join("test-report.bin")).unwrap();
    let verifier = Verifier::new(Roots::vendors());
    let good = collateral(&dir, "test-vcek.der");
    // RSA makes every byte slow; these reach into every field.
    for position in (0..report.len()).filter(|position| position % 4 == 0 || position % 7 == 0) {
        let mut mutant = report.clone();
        mutant[position] ^= 1;
        let appraisal = verifier.verify_snp(&mutant, &good, TIME);
        // The bytes after r and s are reserved and signed by nobody.
        assert_eq!(appraisal.is_authentic(), position >= 0x2a0 + 144, "byte {position}: {appraisal}");
    }
    let other = verifier.verify_snp(&report, &collateral(&dir, "test-vcek-invalid-new.der"), TIME);
    assert!(!other.is_authentic(), "{other}");
    assert_ne!(other.status(CheckKind::Report), Some(Status::Ok), "{other}");
    let late = verifier.verify_snp(&report, &good, Time(2_000_000_000));
    assert_eq!(late.status(CheckKind::EndorsementKeyChain), Some(Status::SnpChainExpired));
    let short = verifier.verify_snp(&report[..1183], &good, TIME);
    assert_eq!(short.status(CheckKind::Report), Some(Status::SnpUnsupportedReportFormat));
    let no_root = SnpCollateral::from_kds(&fs::read(dir.join("test-vcek.der")).unwrap(), "");
    let incomplete = verifier.verify_snp(&report, &no_root, TIME);
    assert_eq!(incomplete.status(CheckKind::EndorsementKeyChain), Some(Status::SnpUnsupportedChainFormat));
}
