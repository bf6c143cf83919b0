//! Policies refuse by default, accept exactly what they say, and give every reason.

mod foundry;

use enclos_verifier::{
    AnyCollateral, CheckKind, Evidence, Policy, PolicyError, Reason, Roots, SnpCollateral, Status, TcbStatus,
    Time, Verdict, appraise,
};
use foundry::{Made, NOW, Platform};

/// A policy that accepts `made` but for what `text` says.
fn policy(made: &Made, text: &str) -> Policy {
    let toml = format!("emulated_roots = [\"{}\"]\n{text}", made.root);
    Policy::from_toml(&toml).unwrap_or_else(|error| panic!("{toml}\n{error}"))
}

fn judge_at(platform: &Platform, text: &str, time: Time) -> Verdict {
    let made = platform.make();
    let policy = policy(&made, text);
    // A policy survives its own JSON.
    assert_eq!(Policy::from_json(&serde_json::to_string(&policy).unwrap()).unwrap(), policy);
    appraise(Evidence::detect(&made.quote), &AnyCollateral::Dcap(Box::new(made.collateral)), time, &policy)
        .unwrap()
}

fn judge(platform: &Platform, text: &str) -> Verdict {
    judge_at(platform, text, NOW)
}

const MR_ENCLAVE: &str = "e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1";
const MR_SIGNER: &str = "5151515151515151515151515151515151515151515151515151515151515151";

#[test]
fn emulated_evidence_needs_a_policy_that_names_its_root() {
    let made = Platform::sgx().make();
    let collateral = AnyCollateral::Dcap(Box::new(made.collateral.clone()));
    let evidence = Evidence::detect(&made.quote);
    let anything = Policy { any_identity: true, ..Policy::default() };
    let refused = appraise(evidence, &collateral, NOW, &anything).unwrap();
    assert!(!refused.accepted);
    assert!(refused.to_string().starts_with("REFUSED\n"), "{refused}");
    let json = serde_json::to_value(&refused).unwrap();
    assert_eq!(json["reasons"][0]["reason"], "check_failed");
    assert_eq!(json["reasons"][0]["status"], "SGX_PCK_CERT_CHAIN_UNTRUSTED");
    assert!(json["reasons"][0]["message"].as_str().unwrap().contains("a policy must name that key"));
    assert!(matches!(
        refused.reasons[0],
        Reason::CheckFailed { check: CheckKind::PckChain, status: Status::SgxPckCertChainUntrusted, .. }
    ));

    let named = policy(&made, "any_identity = true");
    let accepted = appraise(evidence, &collateral, NOW, &named).unwrap();
    assert!(accepted.accepted && accepted.emulated, "{accepted}");
    assert!(accepted.to_string().starts_with("ACCEPTED, but EMULATED"), "{accepted}");
    let json = serde_json::to_value(&accepted).unwrap();
    assert_eq!(json["emulated"], true);
    assert_eq!(json["appraisal"]["root_of_trust"]["kind"], "emulated");
    assert_eq!(json["appraisal"]["tcb"]["status"], "UpToDate");

    // An appraisal made for a policy that trusts the root does not pass one that does not.
    let verifier = enclos_verifier::Verifier::new(Roots::with_emulated([made.root]));
    let appraisal = verifier.verify_quote(&made.quote, &verifier.trust(&made.collateral), NOW);
    assert_eq!(anything.judge(appraisal).reasons, [Reason::Emulated { key: made.root }]);
}

#[test]
fn an_identity_must_be_named_and_met() {
    assert_eq!(judge(&Platform::sgx(), "").reasons, [Reason::NoIdentityDemanded]);
    let sgx = |rule: &str| judge(&Platform::sgx(), &format!("[[identity]]\nkind = \"sgx\"\n{rule}")).reasons;
    let none: [Reason; 0] = [];
    assert_eq!(sgx(&format!("mr_enclave = \"{MR_ENCLAVE}\"")), none);
    let signer = |product: u16, svn: u16| {
        sgx(&format!("mr_signer = \"{MR_SIGNER}\"\nproduct_id = {product}\nminimum_svn = {svn}"))
    };
    assert_eq!(signer(7, 3), none);
    assert_eq!(signer(7, 0), none);
    for (product, svn, expected) in
        [(7, 4, "SVN is 3, at least 4 is demanded"), (8, 3, "product id is 7, 8 is demanded")]
    {
        let reasons = signer(product, svn);
        assert_eq!(reasons, [Reason::Identity { mismatches: vec![vec![expected.into()]] }]);
    }
    // One of several suffices; when none is met, the reason says why for each.
    let other = MR_ENCLAVE.replace("e1", "e2");
    assert_eq!(
        sgx(&format!(
            "mr_enclave = \"{other}\"\n[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{MR_ENCLAVE}\""
        )),
        none
    );
    let tdx = format!("[[identity]]\nkind = \"tdx\"\nmr_td = \"{}\"\n", "7d".repeat(48));
    assert_eq!(judge(&Platform::tdx(), &tdx).reasons, none);
    let rtmr = format!("{tdx}rtmr0 = \"{}\"\n", "a0".repeat(48));
    assert_eq!(judge(&Platform::tdx(), &rtmr).reasons, none);
    assert_eq!(judge(&Platform::tdx(), &rtmr.replace("rtmr0", "rtmr1")).reasons.len(), 1);
    let Reason::Identity { mismatches } = &judge(&Platform::sgx(), &tdx).reasons[0] else { panic!() };
    assert_eq!(mismatches, &[["the evidence is of another kind of environment"]]);
}

#[test]
fn risky_properties_need_permission() {
    let debug = Platform { sgx_flags: 0x07, ..Platform::sgx() };
    assert_eq!(judge(&debug, "any_identity = true").reasons, [Reason::Debug]);
    assert!(judge(&debug, "any_identity = true\nallow_debug = true").accepted);

    let td = Platform {
        body_type: 3,
        td_attributes: [0, 0, 0, 0x30, 0, 0, 0, 0],
        service_td: 9,
        ..Platform::tdx()
    };
    assert_eq!(judge(&td, "any_identity = true").reasons, [Reason::ServiceTd, Reason::Migratable]);
    assert!(
        judge(&td, "any_identity = true\n[tcb]\nallow_service_td = true\nallow_migration = true").accepted
    );
}

#[test]
fn report_data_binds_nonce_and_key() {
    let data = "5a".repeat(64);
    let with = |line: &str| judge(&Platform::sgx(), &format!("any_identity = true\n{line}"));
    assert!(with(&format!("report_data = \"{data}\"")).accepted);
    assert!(with("report_data_prefix = \"5a5a\"").accepted);
    for wrong in [
        format!("report_data = \"{}\"", data.replacen("5a", "5b", 1)),
        "report_data_prefix = \"5a5b\"".into(),
    ] {
        assert!(matches!(with(&wrong).reasons[..], [Reason::ReportData { .. }]), "{wrong}");
    }
}

#[test]
fn tcb_statuses_are_accepted_under_conditions() {
    let mut old = Platform { components: [4; 16], ..Platform::sgx() };
    let judged = |platform: &Platform, accept: &str| {
        judge(platform, &format!("any_identity = true\n[tcb]\naccept = [{accept}]"))
    };
    let refused = judge(&old, "any_identity = true");
    assert!(
        matches!(&refused.reasons[..], [Reason::TcbStatus { status: TcbStatus::OutOfDate, .. }]),
        "{refused}"
    );
    assert!(
        refused.to_string().contains(
            "SGX component 1 (Part, BIOS): has 4, level of 2026-05-01T00:00:00Z (UpToDate) asks for 5"
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("INTEL-SA-00001"), "{refused}");
    assert!(judged(&old, r#""UpToDate", "OutOfDate""#).accepted);
    assert!(!judged(&old, r#""UpToDate", "SWHardeningNeeded""#).accepted);
    // The list is complete: up to date is not accepted unless named.
    assert!(!judged(&Platform::sgx(), r#""OutOfDate""#).accepted);

    // Updates have been missing since 2026-05-01, 45 days before.
    assert!(judged(&old, r#"{ status = "OutOfDate", grace_days = 45 }"#).accepted);
    let over = judged(&old, r#"{ status = "OutOfDate", grace_days = 44 }"#);
    let [Reason::TcbStatus { conditions, .. }] = &over.reasons[..] else { panic!("{over}") };
    assert!(conditions[0].contains("missing since 2026-05-01T00:00:00Z"), "{conditions:?}");
    // A quoting enclave of long ago ends the period, however recent the platform.
    old.qe_svn = 6;
    assert!(judged(&old, r#"{ status = "OutOfDate", grace_days = 45 }"#).accepted);
    old.qe_levels = vec![(8, "UpToDate"), (7, "OutOfDate"), (2, "OutOfDate")];
    // The level of SVN 7 is dated 2026-07-01: missing only since then; the platform's date decides.
    assert!(!judged(&old, r#"{ status = "OutOfDate", grace_days = 44 }"#).accepted);
    let qe_only =
        Platform { qe_svn: 6, qe_levels: vec![(5, "OutOfDate"), (4, "UpToDate")], ..Platform::sgx() };
    // Out of date with nothing newer published: no date to count from, no grace.
    assert!(!judged(&qe_only, r#"{ status = "OutOfDate", grace_days = 3650 }"#).accepted);

    let old = Platform { components: [3; 16], ..Platform::sgx() };
    let both =
        r#"{ status = "OutOfDate", advisories = ["INTEL-SA-00001", "INTEL-SA-00002", "INTEL-SA-00003"] }"#;
    assert!(judged(&old, both).accepted);
    let one = judged(&old, r#"{ status = "OutOfDate", advisories = ["INTEL-SA-00001"] }"#);
    let [Reason::TcbStatus { conditions, .. }] = &one.reasons[..] else { panic!("{one}") };
    assert_eq!(conditions[..], ["advisories not accepted: INTEL-SA-00002"]);
    let rejected = judge(
        &old,
        "any_identity = true\n[tcb]\naccept = [\"OutOfDate\"]\nreject_advisories = [\"INTEL-SA-00002\"]",
    );
    assert_eq!(rejected.reasons, [Reason::Advisories { rejected: vec!["INTEL-SA-00002".into()] }]);
}

#[test]
fn reference_values_must_be_recent() {
    let with = |number: u32| {
        judge(&Platform::sgx(), &format!("any_identity = true\n[tcb]\nminimum_evaluation_number = {number}"))
    };
    assert!(with(20).accepted);
    let reason = |document| Reason::EvaluationNumber { document, found: 20, minimum: 21 };
    assert_eq!(with(21).reasons, [reason(CheckKind::TcbInfo), reason(CheckKind::QeIdentity)]);

    // TCB info and QE identity expire on 2026-07-01.
    let later = Time(NOW.0 + 20 * 86_400);
    let stale = judge_at(&Platform::sgx(), "any_identity = true", later);
    let statuses = stale.reasons.iter().map(|reason| match reason {
        Reason::CheckFailed { status, .. } => *status,
        other => panic!("{other}"),
    });
    let statuses = statuses.collect::<Vec<_>>();
    assert_eq!(statuses, [Status::SgxTcbInfoExpired, Status::SgxEnclaveIdentityExpired]);
    let grace = |days| {
        judge_at(
            &Platform::sgx(),
            &format!("any_identity = true\n[tcb]\ncollateral_grace_days = {days}"),
            later,
        )
    };
    assert!(grace(4).accepted);
    assert!(!grace(3).accepted);
    // A clock before the collateral's issue is refused although Intel's verifier is content.
    let future = Platform { tcb_info_issue_date: "2026-06-20T00:00:00Z", ..Platform::sgx() };
    let early = judge(&future, "any_identity = true");
    assert!(
        matches!(&early.reasons[..], [Reason::Premature { what }] if what.contains("the TCB info")),
        "{early}"
    );
}

#[test]
fn every_reason_is_given() {
    let bad = Platform {
        revoke_pck: true,
        tcb_info_next_update: "2026-06-02T00:00:00Z",
        sgx_flags: 0x07,
        components: [4; 16],
        qe_identity_mr_signer: 1,
        ..Platform::sgx()
    };
    let verdict = judge(&bad, "report_data_prefix = \"00\"\n[tcb]\nminimum_evaluation_number = 30");
    let has = |expected: Status| {
        verdict
            .reasons
            .iter()
            .any(|reason| matches!(reason, Reason::CheckFailed { status, .. } if *status == expected))
    };
    for status in [
        Status::SgxPckRevoked,
        Status::PckRevoked,
        Status::SgxTcbInfoExpired,
        Status::QeIdentityMismatch,
        Status::TcbOutOfDate,
    ] {
        assert!(has(status), "{status}: {verdict}");
    }
    assert!(verdict.reasons.contains(&Reason::Debug), "{verdict}");
    assert!(verdict.reasons.contains(&Reason::NoIdentityDemanded), "{verdict}");
    assert!(verdict.reasons.iter().any(|reason| matches!(reason, Reason::ReportData { .. })), "{verdict}");
    assert!(
        verdict.reasons.iter().any(|reason| matches!(reason, Reason::EvaluationNumber { .. })),
        "{verdict}"
    );
}

#[test]
fn policies_that_would_accept_too_much_are_refused() {
    let error = |text: &str| Policy::from_toml(text).unwrap_err();
    let signer_only = format!("[[identity]]\nkind = \"sgx\"\nmr_signer = \"{MR_SIGNER}\"");
    assert!(matches!(error(&signer_only), PolicyError::IncompleteIdentity { index: 1 }));
    assert!(matches!(error("[[identity]]\nkind = \"sgx\""), PolicyError::IncompleteIdentity { index: 1 }));
    assert!(matches!(error("[tcb]\naccept = [\"Revoked\"]"), PolicyError::Unacceptable(TcbStatus::Revoked)));
    let grace = "[tcb]\naccept = [{ status = \"SWHardeningNeeded\", grace_days = 3 }]";
    assert!(matches!(error(grace), PolicyError::GraceWithoutUpdate(TcbStatus::SwHardeningNeeded)));
    assert!(matches!(error("report_data_prefix = \"\""), PolicyError::PrefixLength(0)));
    // A misspelt key must not silently demand nothing.
    for misspelt in [
        "any_identiy = true",
        "[tcb]\nminimum_evaluation = 3",
        &format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{MR_ENCLAVE}\"\nminimum_isv_svn = 3"),
        "[tcb]\naccept = [{ status = \"OutOfDate\", grace = 3 }]",
        "[tcb]\nminimum_snp = { bootloadr = 3 }",
    ] {
        assert!(matches!(error(misspelt), PolicyError::Toml(_)), "{misspelt}");
    }
    assert!(error("report_data = \"5a\"").to_string().contains("64 bytes"));
}

#[test]
fn collateral_of_the_wrong_vendor_is_a_typed_error() {
    let made = Platform::sgx().make();
    let snp = AnyCollateral::Snp(SnpCollateral { certificate_chain: String::new(), crl: None });
    let policy = Policy::default();
    assert!(appraise(Evidence::detect(&made.quote), &snp, NOW, &policy).is_err());
    let json = serde_json::to_vec(&snp).unwrap();
    assert_eq!(AnyCollateral::from_json(&json).unwrap(), snp);
    let report = [&[2u8, 0, 0, 0][..], &[0; 1180]].concat();
    assert!(matches!(Evidence::detect(&report), Evidence::SnpReport(_)));
    assert!(
        appraise(Evidence::detect(&report), &AnyCollateral::Dcap(Box::new(made.collateral)), NOW, &policy)
            .is_err()
    );
    let verdict = appraise(Evidence::detect(&report), &snp, NOW, &policy).unwrap();
    assert!(!verdict.accepted);
}
