//! The algorithm on platforms in every state, made up for the purpose: what recordings of real ones cannot show.

mod foundry;

use enclos_verifier::{
    Appraisal, CheckKind, CollateralKey, Identity, PckCa, Quote, RootOfTrust, Roots, Status, TcbPart,
    TcbStatus, Tee, Time, Verifier,
};
use foundry::{Level, Made, NOW, Platform};

fn appraise_at(platform: &Platform, time: Time) -> Appraisal {
    let Made { quote, collateral, root, .. } = platform.make();
    let verifier = Verifier::new(Roots::with_emulated([root]));
    verifier.verify_quote(&quote, &verifier.trust(&collateral), time)
}

fn appraise(platform: &Platform) -> Appraisal {
    appraise_at(platform, NOW)
}

fn quote_status(platform: &Platform) -> Status {
    appraise(platform).status(CheckKind::Quote).unwrap()
}

#[test]
fn up_to_date_platforms_are_ok() {
    let v5 = |platform: Platform, body_type| Platform { body_type, ..platform };
    let platforms = [
        ("SGX v3", Platform::sgx()),
        ("SGX v5", v5(Platform::sgx(), 1)),
        ("TDX v4", Platform::tdx()),
        ("TDX v5 1.0", v5(Platform::tdx(), 2)),
        ("TDX v5 1.5", v5(Platform::tdx(), 3)),
        ("SGX, TCB info v2", Platform { tcb_info_version: 2, ..Platform::sgx() }),
        ("no QE authentication data", Platform { qe_auth_data: Vec::new(), ..Platform::sgx() }),
        ("long QE authentication data", Platform { qe_auth_data: vec![7; 1000], ..Platform::tdx() }),
        ("certification data type 3", Platform { certification_type: 3, ..Platform::sgx() }),
        ("certification data type 1", Platform { certification_type: 1, ..Platform::tdx() }),
    ];
    for (name, platform) in platforms {
        let appraisal = appraise(&platform);
        for check in &appraisal.checks {
            assert_eq!(check.status, Status::Ok, "{name}: {appraisal}");
        }
        assert!(appraisal.is_authentic(), "{name}");
        assert!(matches!(appraisal.root_of_trust, Some(RootOfTrust::Emulated { .. })), "{name}");
        let tcb = appraisal.tcb.unwrap();
        assert_eq!(tcb.status, Some(TcbStatus::UpToDate), "{name}");
        assert!(
            tcb.components.iter().all(|c| c.shortfalls.is_empty() && c.missing_since.is_none()),
            "{name}"
        );
    }
}

/// What is made here is what other people's verifiers take for real, given the root.
#[test]
fn another_verifier_accepts_what_was_made() {
    for platform in [Platform::sgx(), Platform::tdx(), Platform { body_type: 3, ..Platform::tdx() }] {
        let Made { quote, collateral, root_der, .. } = platform.make();
        let collateral: dcap_qvl::QuoteCollateralV3 =
            serde_json::from_value(serde_json::to_value(collateral).unwrap()).unwrap();
        let verifier = dcap_qvl::verify::QuoteVerifier::new(root_der);
        verifier.verify(&quote, &collateral, NOW.0).unwrap();
    }
}

#[test]
fn unknown_roots_are_untrusted() {
    let Made { quote, collateral, .. } = Platform::sgx().make();
    let verifier = Verifier::new(Roots::vendors());
    let appraisal = verifier.verify_quote(&quote, &verifier.trust(&collateral), NOW);
    assert_eq!(appraisal.status(CheckKind::PckChain), Some(Status::SgxPckCertChainUntrusted));
    assert_eq!(appraisal.status(CheckKind::TcbInfo), Some(Status::SgxTcbSigningCertChainUntrusted));
    assert!(!appraisal.is_authentic());
    assert!(matches!(appraisal.root_of_trust, Some(RootOfTrust::Unknown { .. })));
}

#[test]
fn one_root_does_not_vouch_for_anothers_platform() {
    let (quoted, other) = (Platform::sgx().make(), Platform::sgx().make());
    let verifier = Verifier::new(Roots::with_emulated([quoted.root, other.root]));
    let mut mixed = quoted.collateral.clone();
    mixed.tcb_info = other.collateral.tcb_info;
    mixed.tcb_info_signature = other.collateral.tcb_info_signature;
    mixed.tcb_info_issuer_chain = other.collateral.tcb_info_issuer_chain;
    // Even with a CRL that satisfies the foreign signing chain.
    mixed.root_ca_crl = other.collateral.root_ca_crl;
    let appraisal = verifier.verify_quote(&quoted.quote, &verifier.trust(&mixed), NOW);
    assert_eq!(
        appraisal.status(CheckKind::TcbInfo),
        Some(Status::SgxTcbSigningCertChainUntrusted),
        "{appraisal}"
    );
    assert_eq!(appraisal.status(CheckKind::PckChain), Some(Status::SgxCrlInvalidSignature), "{appraisal}");
    assert!(!appraisal.is_authentic());
}

/// Converged status by platform status and quoting enclave, as Intel documents it.
#[test]
fn sgx_statuses_converge() {
    use Status::*;
    let (current, old, revoked, ancient) = (8, 6, 2, 1);
    let table = [
        ("UpToDate", [Ok, TcbOutOfDate]),
        ("SWHardeningNeeded", [TcbSwHardeningNeeded, TcbOutOfDate]),
        ("ConfigurationNeeded", [TcbConfigurationNeeded, TcbOutOfDateConfigurationNeeded]),
        (
            "ConfigurationAndSWHardeningNeeded",
            [TcbConfigurationAndSwHardeningNeeded, TcbOutOfDateConfigurationNeeded],
        ),
        ("OutOfDate", [TcbOutOfDate, TcbOutOfDate]),
        ("OutOfDateConfigurationNeeded", [TcbOutOfDateConfigurationNeeded, TcbOutOfDateConfigurationNeeded]),
        ("Revoked", [TcbRevoked, TcbRevoked]),
    ];
    for (status, [with_current, with_old]) in table {
        let outcomes =
            [(current, with_current), (old, with_old), (revoked, TcbRevoked), (ancient, TcbNotSupported)];
        for (qe_svn, expected) in outcomes {
            let mut platform = Platform { qe_svn, ..Platform::sgx() };
            platform.levels[0].status = status;
            assert_eq!(quote_status(&platform), expected, "{status}, QE {qe_svn}");
        }
    }
    // An SGX platform that reaches no level is unsupported, whatever its quoting enclave.
    for (qe_svn, expected) in [(current, TcbNotSupported), (old, TcbNotSupported), (revoked, TcbNotSupported)]
    {
        let platform = Platform { components: [1; 16], qe_svn, ..Platform::sgx() };
        assert_eq!(quote_status(&platform), expected, "QE {qe_svn}");
    }
}

#[test]
fn levels_are_matched_by_every_component_and_in_any_document_order() {
    for index in 0..16 {
        let mut platform = Platform::sgx();
        platform.components[index] = 4;
        platform.levels.reverse();
        let appraisal = appraise(&platform);
        assert_eq!(appraisal.status(CheckKind::Quote), Some(Status::TcbOutOfDate), "component {index}");
        let tcb = appraisal.tcb.unwrap();
        assert_eq!(tcb.advisories, ["INTEL-SA-00001"]);
        let component = &tcb.components[0];
        assert_eq!(component.part, TcbPart::SgxPlatform);
        assert_eq!(component.shortfalls.len(), 1);
        let shortfall = &component.shortfalls[0];
        assert_eq!(shortfall.what, format!("SGX component {} (Part, BIOS)", index + 1));
        assert_eq!((shortfall.has, shortfall.needs), (4, 5));
        assert_eq!(component.level.as_ref().unwrap().date.to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(component.missing_since.unwrap().to_string(), "2026-05-01T00:00:00Z");
    }
    let old_pce = Platform { pce_svn: 10, ..Platform::sgx() };
    assert_eq!(quote_status(&old_pce), Status::TcbNotSupported);
    let twice =
        Platform { levels: [Platform::sgx().levels, Platform::sgx().levels].concat(), ..Platform::sgx() };
    assert_eq!(quote_status(&twice), Status::UnsupportedTcbInfoFormat);
    assert_eq!(appraise(&twice).status(CheckKind::TcbInfo), Some(Status::SgxTcbInfoInvalid));
}

#[test]
fn tdx_statuses_converge() {
    use Status::*;
    let module = |svn, version| {
        let mut tee_tcb_svn = Platform::tdx().tee_tcb_svn;
        (tee_tcb_svn[0], tee_tcb_svn[1]) = (svn, version);
        Platform { tee_tcb_svn, ..Platform::tdx() }
    };
    assert_eq!(quote_status(&module(5, 3)), TcbOutOfDate);
    assert_eq!(quote_status(&module(2, 3)), TcbRevoked);
    assert_eq!(quote_status(&module(1, 3)), TcbNotSupported);
    assert_eq!(quote_status(&module(7, 4)), TdxModuleMismatch);
    assert_eq!(quote_status(&Platform { module_levels: Vec::new(), ..Platform::tdx() }), TdxModuleMismatch);
    // A module of version 0 is judged with the platform's components.
    let mut by_component = module(7, 0);
    assert_eq!(quote_status(&by_component), Ok);
    by_component.levels[0].tdx = [8, 0, 5];
    assert_eq!(quote_status(&by_component), TcbOutOfDate);
    assert_eq!(quote_status(&Platform { mr_signer_seam: 1, ..Platform::tdx() }), TdxModuleMismatch);

    for (status, expected) in [
        ("SWHardeningNeeded", TcbOutOfDate),
        ("ConfigurationNeeded", TcbOutOfDateConfigurationNeeded),
        ("ConfigurationAndSWHardeningNeeded", TcbOutOfDateConfigurationNeeded),
        ("OutOfDateConfigurationNeeded", TcbOutOfDateConfigurationNeeded),
        ("Revoked", TcbRevoked),
    ] {
        let mut platform = module(5, 3);
        platform.levels[0].status = status;
        assert_eq!(quote_status(&platform), expected, "{status}");
    }
    for (status, expected) in
        [("ConfigurationNeeded", TcbUnrecognizedStatus), ("Whatever", TcbUnrecognizedStatus)]
    {
        let platform = Platform { module_levels: vec![(7, status)], ..Platform::tdx() };
        assert_eq!(quote_status(&platform), expected, "{status}");
    }
    for (qe_svn, expected) in [(6, TcbOutOfDate), (2, TcbRevoked), (1, TcbNotSupported)] {
        assert_eq!(quote_status(&Platform { qe_svn, ..Platform::tdx() }), expected, "QE {qe_svn}");
    }
    // The TDX components are compared only where the SGX ones suffice; a level below all is unsupported.
    let mut unsupported = Platform::tdx();
    unsupported.tee_tcb_svn[2] = 1;
    assert_eq!(quote_status(&unsupported), TcbNotSupported);
}

#[test]
fn relaunch_is_advised_when_only_the_launch_was_too_early() {
    use Status::*;
    // Launched under module SVN 5 with old late microcode; both are current now.
    let mut platform = Platform { body_type: 3, ..Platform::tdx() };
    platform.tee_tcb_svn[..3].copy_from_slice(&[5, 3, 4]);
    platform.levels.insert(
        1,
        Level {
            sgx: 5,
            tdx: [0, 0, 4],
            pce_svn: 11,
            status: "OutOfDate",
            date: "2026-02-01T00:00:00Z",
            advisories: &[],
        },
    );
    assert_eq!(quote_status(&platform), TcbTdRelaunchAdvised);
    // TDX 1.0 reports do not say what is loaded now.
    assert_eq!(quote_status(&Platform { body_type: 2, ..platform.clone() }), TcbOutOfDate);
    assert_eq!(quote_status(&Platform { body_type: 0, ..platform.clone() }), TcbOutOfDate);
    // Not while the quoting enclave is out of date,
    assert_eq!(quote_status(&Platform { qe_svn: 6, ..platform.clone() }), TcbOutOfDate);
    // nor the microcode or the module loaded now,
    let mut still_old = platform.clone();
    still_old.tee_tcb_svn2[2] = 4;
    assert_eq!(quote_status(&still_old), TcbOutOfDate);
    let mut old_module = platform.clone();
    old_module.tee_tcb_svn2[0] = 6;
    assert_eq!(quote_status(&old_module), TcbOutOfDate);
    // nor if the SGX platform itself is behind.
    assert_eq!(quote_status(&Platform { components: [4; 16], ..platform.clone() }), TcbOutOfDate);
    let mut unknown_module = platform.clone();
    unknown_module.tee_tcb_svn2[1] = 9;
    assert_eq!(quote_status(&unknown_module), TcbUnrecognizedStatus);
    let mut configuration = platform.clone();
    configuration.levels[0].status = "ConfigurationNeeded";
    assert_eq!(quote_status(&configuration), TcbTdRelaunchAdvisedConfigurationNeeded);
}

#[test]
fn revocation_is_found() {
    let revoked = appraise(&Platform { revoke_pck: true, ..Platform::sgx() });
    assert_eq!(revoked.status(CheckKind::PckChain), Some(Status::SgxPckRevoked), "{revoked}");
    assert_eq!(revoked.status(CheckKind::Quote), Some(Status::PckRevoked), "{revoked}");
    assert!(!revoked.is_authentic());
    assert_eq!(revoked.tcb.unwrap().status, None);

    let revoked = appraise(&Platform { revoke_intermediate: true, ..Platform::sgx() });
    assert_eq!(revoked.status(CheckKind::PckChain), Some(Status::SgxIntermediateCaRevoked), "{revoked}");
    assert_eq!(revoked.status(CheckKind::Quote), Some(Status::Ok), "{revoked}");
    assert!(!revoked.is_authentic());

    let revoked = appraise(&Platform { revoke_signer: true, ..Platform::sgx() });
    for kind in [CheckKind::TcbInfo, CheckKind::QeIdentity] {
        assert_eq!(revoked.status(kind), Some(Status::SgxTcbSigningCertRevoked), "{revoked}");
    }
    assert!(!revoked.is_authentic());
}

#[test]
fn expiry_is_found_part_by_part() {
    type Expected = [Status; 3];
    use Status::{Ok, SgxCrlExpired, SgxEnclaveIdentityExpired, SgxPckCertChainExpired, SgxTcbInfoExpired};
    let july = "2026-06-14T23:59:59Z";
    let cases: [(&str, Platform, Expected); 4] = [
        ("TCB info", Platform { tcb_info_next_update: july, ..Platform::sgx() }, [Ok, SgxTcbInfoExpired, Ok]),
        (
            "QE identity",
            Platform { qe_identity_next_update: july, ..Platform::sgx() },
            [Ok, Ok, SgxEnclaveIdentityExpired],
        ),
        ("PCK", Platform { pck_not_after: 2026, ..Platform::sgx() }, [SgxPckCertChainExpired, Ok, Ok]),
        ("CRLs", Platform { crl_next_update: 2026, ..Platform::sgx() }, [SgxCrlExpired; 3]),
    ];
    for (what, platform, [pck, tcb_info, qe_identity]) in cases {
        let appraisal = appraise(&platform);
        assert_eq!(appraisal.status(CheckKind::PckChain), Some(pck), "{what}: {appraisal}");
        assert_eq!(appraisal.status(CheckKind::TcbInfo), Some(tcb_info), "{what}: {appraisal}");
        assert_eq!(appraisal.status(CheckKind::QeIdentity), Some(qe_identity), "{what}: {appraisal}");
        assert_eq!(appraisal.status(CheckKind::Quote), Some(Ok), "{what}: {appraisal}");
        // Staleness is for a policy to weigh; the signatures hold.
        assert!(appraisal.is_authentic(), "{what}: {appraisal}");
    }
    // One verified collateral serves every time.
    let made = Platform::sgx().make();
    let verifier = Verifier::new(Roots::with_emulated([made.root]));
    let trusted = verifier.trust(&made.collateral);
    assert_eq!(trusted.valid_until().unwrap().to_string(), "2026-07-01T00:00:00Z");
    let status =
        |time| verifier.verify_quote(&made.quote, &trusted, time).status(CheckKind::TcbInfo).unwrap();
    assert_eq!(status("2026-07-01T00:00:00Z".parse().unwrap()), Ok);
    assert_eq!(status("2026-07-01T00:00:01Z".parse().unwrap()), SgxTcbInfoExpired);
    assert_eq!(status("2026-05-31T00:00:00Z".parse().unwrap()), SgxCrlExpired);
    assert_eq!(status(NOW), Ok);
}

#[test]
fn collateral_must_be_of_this_platform() {
    use Status::*;
    assert_eq!(
        quote_status(&Platform { tcb_info_fmspc: "00906ed50000", ..Platform::sgx() }),
        TcbInfoMismatch
    );
    assert_eq!(quote_status(&Platform { tcb_info_pce_id: "0100", ..Platform::sgx() }), TcbInfoMismatch);
    assert_eq!(
        quote_status(&Platform { qe_identity_mr_signer: 0x8d, ..Platform::sgx() }),
        QeIdentityMismatch
    );
    assert_eq!(quote_status(&Platform { qe_attributes: 0x13, ..Platform::sgx() }), QeIdentityMismatch);
    assert_eq!(quote_status(&Platform { tcb_info_version: 4, ..Platform::sgx() }), UnsupportedTcbInfoFormat);

    let (sgx, tdx) = (Platform::sgx().make(), Platform::tdx().make());
    let verifier = Verifier::new(Roots::with_emulated([sgx.root, tdx.root]));
    let crossed = verifier.verify_quote(&sgx.quote, &verifier.trust(&tdx.collateral), NOW);
    assert_eq!(crossed.status(CheckKind::Quote), Some(TcbInfoMismatch), "{crossed}");
    // The other platform's intermediate CA has the same name but another key.
    assert_eq!(crossed.status(CheckKind::PckChain), Some(SgxCrlInvalidSignature), "{crossed}");
}

#[test]
fn a_quote_without_chain_needs_one_from_the_collateral() {
    let mut made = Platform { certification_type: 2, ..Platform::sgx() }.make();
    made.collateral.pck_certificate_chain = None;
    let verifier = Verifier::new(Roots::with_emulated([made.root]));
    let appraisal = verifier.verify_quote(&made.quote, &verifier.trust(&made.collateral), NOW);
    assert_eq!(appraisal.status(CheckKind::PckChain), Some(Status::UnsupportedCertFormat));
    assert_eq!(appraisal.status(CheckKind::Quote), Some(Status::UnsupportedPckCertFormat));
    assert!(!appraisal.is_authentic());
}

#[test]
fn wrapped_documents_are_read_as_services_answer_them() {
    let mut made = Platform::sgx().make();
    let Made { quote, collateral, root, .. } = &mut made;
    for (document, signature, member) in [
        (&mut collateral.tcb_info, &mut collateral.tcb_info_signature, "tcbInfo"),
        (&mut collateral.qe_identity, &mut collateral.qe_identity_signature, "enclaveIdentity"),
    ] {
        *document = format!(r#"{{"{member}":{document},"signature":"{}"}}"#, hex::encode(&*signature));
        signature.clear();
    }
    let verifier = Verifier::new(Roots::with_emulated([*root]));
    let appraisal = verifier.verify_quote(quote, &verifier.trust(collateral), NOW);
    assert!(appraisal.checks.iter().all(|check| check.status == Status::Ok), "{appraisal}");
    let json = serde_json::to_vec(&collateral).unwrap();
    assert_eq!(enclos_verifier::Collateral::from_json(&json).unwrap(), *collateral);
}

#[test]
fn caches_do_not_outlive_what_they_depend_on() {
    let good = Platform::sgx().make();
    let verifier = Verifier::new(Roots::with_emulated([good.root]));
    let trusted = verifier.trust(&good.collateral);
    assert!(verifier.verify_quote(&good.quote, &trusted, NOW).is_authentic());
    // Same chain and quoting enclave, now cached; each part of the quote is judged anew all the same.
    let report_signature = 48 + 384 + 4 + 128 + 384;
    for position in [100, 48 + 384 + 4, 48 + 384 + 4 + 64, report_signature, report_signature + 64 + 2] {
        let mut mutant = good.quote.clone();
        mutant[position] ^= 1;
        let appraisal = verifier.verify_quote(&mutant, &trusted, NOW);
        assert!(!appraisal.is_authentic(), "byte {position}: {appraisal}");
    }
    let late = verifier.verify_quote(&good.quote, &trusted, Time(NOW.0 + 10 * 365 * 86_400));
    assert_eq!(late.status(CheckKind::PckChain), Some(Status::SgxPckCertChainExpired));
    assert!(verifier.verify_quote(&good.quote, &trusted, NOW).is_authentic());
}

#[test]
fn the_collateral_to_fetch_is_named_by_the_quote() {
    let sgx = Platform::sgx().make();
    let needed = CollateralKey::of(&Quote::parse(&sgx.quote).unwrap()).unwrap();
    assert_eq!((needed.tee, needed.ca), (Tee::Sgx, PckCa::Platform));
    assert_eq!(needed.fmspc.to_string(), "00606a000000");
    let bare = Platform { certification_type: 3, ..Platform::sgx() }.make();
    let error = CollateralKey::of(&Quote::parse(&bare.quote).unwrap()).unwrap_err();
    assert!(error.to_string().contains("type 3"), "{error}");
}

#[test]
fn identities_are_read() {
    let appraisal = appraise(&Platform { sgx_flags: 0x07, ..Platform::sgx() });
    let Some(Identity::Sgx { mr_enclave, mr_signer, product_id, svn, debug, .. }) = appraisal.identity else {
        panic!()
    };
    assert_eq!((mr_enclave.0, mr_signer.0, product_id, svn, debug), ([0xe1; 32], [0x51; 32], 7, 3, true));
    assert_eq!(appraisal.report_data.unwrap().0, [0x5a; 64]);
    let td = Platform {
        body_type: 3,
        td_attributes: [0, 0, 0, 0x30, 0, 0, 0, 0],
        service_td: 9,
        ..Platform::tdx()
    };
    let appraisal = appraise(&td);
    let Some(Identity::Tdx { mr_td, rtmr, migratable, service_td, debug, .. }) = appraisal.identity else {
        panic!()
    };
    assert_eq!((mr_td.0, rtmr[0].0, rtmr[1].0), ([0x7d; 48], [0xa0; 48], [0; 48]));
    assert!(migratable && service_td && !debug);
}
