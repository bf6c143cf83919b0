//! Every recorded verdict of Intel's verifier on real quotes, and on mutants of them, is this verifier's verdict too.
//!
//! The recordings lie beside the project (`../shared/quotes`, or under `$ENCLOS_SHARED`); without them the test says
//! that it was skipped.

use std::{fs, path::PathBuf};

use enclos_verifier::{CheckKind, Collateral, Quote, RootOfTrust, Roots, Status, Time, Verifier};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    key: String,
    quote: String,
    collateral: Option<String>,
    time: Option<u64>,
    #[serde(default)]
    intel_qvl: Option<String>,
}

/// The folder of recordings, or the reason why there is none.
fn quotes() -> Result<PathBuf, String> {
    let shared = std::env::var_os("ENCLOS_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")), PathBuf::from);
    let quotes = shared.join("quotes");
    if quotes.join("verdicts.json").is_file() {
        Ok(quotes)
    } else {
        Err(format!("{} is absent", quotes.display()))
    }
}

#[test]
fn agrees_with_intel() {
    let dir = match quotes() {
        Ok(dir) => dir,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let rows: Vec<Row> = serde_json::from_slice(&fs::read(dir.join("verdicts.json")).unwrap()).unwrap();
    let verifier = Verifier::new(Roots::vendors());
    let mut differences = Vec::new();
    let mut judged = 0;
    for row in &rows {
        let quote = fs::read(dir.join(&row.quote)).unwrap();
        let (Some(collateral), Some(time), Some(expected)) = (&row.collateral, row.time, &row.intel_qvl)
        else {
            if let Err(error) = Quote::parse(&quote) {
                differences.push(format!("{}: does not parse: {error}", row.key));
            }
            continue;
        };
        judged += 1;
        let mut collateral = Collateral::from_json(&fs::read(dir.join(collateral)).unwrap()).unwrap();
        // Intel's verifier is given the PCK chain apart from the quote; the recordings took it from the quote's bytes.
        collateral.pck_certificate_chain = Some(pem_in(&quote));
        let trusted = verifier.trust(&collateral);
        let appraisal = verifier.verify_quote(&quote, &trusted, Time(time));
        let status = |kind| appraisal.status(kind).map_or_else(|| "not made".to_owned(), |s| s.to_string());
        let found = format!(
            "PCK={} TCB={} QeIdentity={} Quote={}",
            status(CheckKind::PckChain),
            status(CheckKind::TcbInfo),
            status(CheckKind::QeIdentity),
            status(CheckKind::Quote)
        );
        // The one documented difference: Intel's tool compares the root certificate's signature with that of the
        // certificate it was given, we compare its key; re-issued roots with the same key are trusted.
        let reissued = format!("PCK={} ", Status::SgxPckCertChainUntrusted);
        let expected = match expected.strip_prefix(&reissued) {
            Some(rest) if appraisal.root_of_trust == Some(RootOfTrust::Intel) => format!("PCK=OK {rest}"),
            _ => expected.clone(),
        };
        if found != expected {
            differences.push(format!("{}:\n  Intel {expected}\n  ours  {found}\n{appraisal}", row.key));
        }
    }
    assert!(judged > 40, "only {judged} rows have collateral");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    println!("{judged} verdicts agree with Intel's");
}

/// The PEM certificates in arbitrary bytes.
fn pem_in(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.find("-----BEGIN CERTIFICATE-----").map_or_else(String::new, |start| text[start..].to_owned())
}
