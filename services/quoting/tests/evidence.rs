//! Quotes and collateral of the emulated platform, judged by our verifier and by somebody else's.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use enclos_platform::emulator::{
    enclave::EnclaveState,
    keys::ereport,
    machine::{LaunchControl, Machine, MachineConfig, Root},
};
use enclos_quoting::{EmulatedQuoting, FMSPC, QuotingError, STATE_FILE, TcbState};
use enclos_verifier::{
    AnyCollateral, CheckKind, Collateral, CollateralKey, Evidence, Hex, PckCa, Policy, Quote, RootOfTrust,
    Status, TcbStatus, Time, Verdict, appraise,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sgx_isa::{Attributes, AttributesFlags, PageType, Secinfo, SecinfoFlags, Secs, Sigstruct};
use tempfile::TempDir;

/// 2026-06-15.
const NOW: Time = Time(1_781_481_600);
const DATA: [u8; 64] = [0x5a; 64];

fn machine() -> Arc<Machine> {
    Machine::new(&MachineConfig::with_seed([7; 32])).unwrap()
}

fn open(dir: &TempDir) -> EmulatedQuoting {
    EmulatedQuoting::open(&machine(), dir.path()).unwrap()
}

fn dir() -> TempDir {
    TempDir::new().unwrap()
}

/// What EREPORT on the machine gives an enclave for a target. The enclave is a copy of the quoting enclave, the one
/// image at hand that is signed: production mode, ISVPRODID 1, ISVSVN 8.
fn report_on(machine: &Arc<Machine>, target: &[u8; 512]) -> [u8; 432] {
    let secs = Secs {
        size: 8192,
        ssaframesize: 1,
        attributes: Attributes { flags: AttributesFlags::MODE64BIT, xfrm: 3 },
        ..Secs::default()
    };
    let mut state = EnclaveState::ecreate(Arc::clone(machine), &secs).unwrap();
    let text = include_bytes!("../src/qe-page.txt");
    let mut page = [0; 4096];
    page[..text.len()].copy_from_slice(text);
    let secinfo = Secinfo { flags: SecinfoFlags::R | PageType::Reg.into(), ..Secinfo::default() };
    state.eadd(0, &secinfo, &mut page).unwrap();
    for (offset, chunk) in (0..).step_by(256).zip(page.as_chunks().0) {
        state.eextend(offset, chunk).unwrap();
    }
    let sigstruct = Sigstruct::try_copy_from(include_bytes!("../src/qe.sigstruct")).unwrap();
    state.einit(&sigstruct, None).unwrap();
    let report = ereport(&state, target, &DATA);
    let mut bytes = [0; 432];
    bytes.copy_from_slice(report.as_ref());
    bytes
}

fn report(quoting: &EmulatedQuoting) -> [u8; 432] {
    report_on(&machine(), &quoting.target_info())
}

fn judge(quote: &[u8], collateral: Collateral, policy: &Policy) -> Verdict {
    appraise(Evidence::Quote(quote), &AnyCollateral::Dcap(Box::new(collateral)), NOW, policy).unwrap()
}

fn naming(root: Hex<32>) -> Policy {
    Policy { any_identity: true, emulated_roots: vec![root], ..Policy::default() }
}

#[test]
fn the_default_policy_refuses_and_one_naming_the_root_accepts() {
    let dir = dir();
    let quoting = open(&dir);
    let quote = quoting.quote(&report(&quoting)).unwrap();

    let verdict =
        judge(&quote, quoting.collateral(NOW).unwrap(), &Policy { any_identity: true, ..Policy::default() });
    assert!(!verdict.accepted);
    assert!(!verdict.appraisal.is_authentic());
    assert!(matches!(verdict.appraisal.root_of_trust, Some(RootOfTrust::Unknown { .. })));
    assert_eq!(
        verdict.appraisal.status(CheckKind::PckChain),
        Some(Status::SgxPckCertChainUntrusted),
        "{verdict}"
    );

    let verdict = judge(&quote, quoting.collateral(NOW).unwrap(), &naming(quoting.root_key_id()));
    assert!(verdict.accepted, "{verdict}");
    assert!(verdict.emulated);
    assert_eq!(verdict.appraisal.report_data, Some(Hex(DATA)));
    assert_eq!(verdict.appraisal.root_of_trust, Some(RootOfTrust::Emulated { key: quoting.root_key_id() }));
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["emulated"], true, "{json}");
}

#[test]
fn the_quote_says_what_collateral_it_needs() {
    let dir = dir();
    let quoting = open(&dir);
    let report = report(&quoting);
    let bytes = quoting.quote(&report).unwrap();
    let quote = Quote::parse(&bytes).unwrap();
    assert_eq!(quote.version, 3);
    assert_eq!(bytes[48..432], report[..384], "the body is the REPORT's as it was");
    assert_eq!(quote.qe_report.0[..16], machine().cpu_svn());
    let key = CollateralKey::of(&quote).unwrap();
    assert_eq!((key.fmspc, key.ca), (Hex(FMSPC), PckCa::Platform));
}

#[test]
fn every_name_says_emulated() {
    let dir = dir();
    let quoting = open(&dir);
    let collateral = quoting.collateral(NOW).unwrap();
    for chain in [quoting.pck_chain(), collateral.tcb_info_issuer_chain, collateral.pck_crl_issuer_chain] {
        for certificate in CertificateDer::pem_slice_iter(chain.as_bytes()) {
            let certificate = certificate.unwrap();
            let contains = |text: &str| certificate.windows(text.len()).any(|w| w == text.as_bytes());
            assert!(contains("Enclos Emulated SGX"));
            assert!(!contains("Intel"));
        }
    }
}

fn theirs(quoting: &EmulatedQuoting, quote: &[u8]) -> Result<String, String> {
    let collateral = serde_json::to_value(quoting.collateral(NOW).unwrap()).unwrap();
    let collateral: dcap_qvl::QuoteCollateralV3 = serde_json::from_value(collateral).unwrap();
    let root = CertificateDer::from_pem_slice(quoting.root_certificate().as_bytes()).unwrap();
    let verifier = dcap_qvl::verify::QuoteVerifier::new(root.to_vec());
    verifier.verify(quote, &collateral, NOW.0).map(|report| report.status).map_err(|e| format!("{e:#}"))
}

#[test]
fn another_verifier_accepts_quotes_given_the_root() {
    let dir = dir();
    let quoting = open(&dir);
    let quote = quoting.quote(&report(&quoting)).unwrap();
    assert_eq!(theirs(&quoting, &quote).unwrap(), "UpToDate");
    // Under Intel's root it is nothing.
    let collateral = serde_json::to_value(quoting.collateral(NOW).unwrap()).unwrap();
    let collateral: dcap_qvl::QuoteCollateralV3 = serde_json::from_value(collateral).unwrap();
    assert!(dcap_qvl::verify::QuoteVerifier::new_prod().verify(&quote, &collateral, NOW.0).is_err());
}

/// As a relying party would write it: no `any_identity`, the enclave and its data named.
#[test]
fn an_identity_policy_holds() {
    let dir = dir();
    let quoting = open(&dir);
    let quote = quoting.quote(&report(&quoting)).unwrap();
    let mr_enclave = hex::encode(&quoting.target_info()[..32]);
    let root = quoting.root_key_id();
    let data = Hex(DATA);
    let policy = |mr_enclave: &str| {
        Policy::from_toml(&format!(
            "emulated_roots = [\"{root}\"]\nreport_data = \"{data}\"\n\
             [[identity]]\nkind = \"sgx\"\nmr_enclave = \"{mr_enclave}\""
        ))
        .unwrap()
    };
    let verdict = judge(&quote, quoting.collateral(NOW).unwrap(), &policy(&mr_enclave));
    assert!(verdict.accepted, "{verdict}");
    assert!(!verdict.appraisal.is_debug());
    assert!(!judge(&quote, quoting.collateral(NOW).unwrap(), &policy(&"11".repeat(32))).accepted);
}

/// In header, report, signature, attestation key, QE report, its signature, authentication data, certificates.
#[test]
fn both_verifiers_refuse_a_flipped_bit() {
    let dir = dir();
    let quoting = open(&dir);
    let quote = quoting.quote(&report(&quoting)).unwrap();
    for at in [30, 48, 431, 440, 500, 564, 900, 960, 1020, 1700] {
        let mut altered = quote.clone();
        altered[at] ^= 1;
        assert!(theirs(&quoting, &altered).is_err(), "byte {at}");
        let verdict = judge(&altered, quoting.collateral(NOW).unwrap(), &naming(quoting.root_key_id()));
        assert!(!verdict.accepted && !verdict.appraisal.is_authentic(), "byte {at}: {verdict}");
    }
}

#[test]
fn every_tcb_state_gives_its_status() {
    let dir = dir();
    for (state, status, text) in [
        (TcbState::UpToDate, TcbStatus::UpToDate, "UpToDate"),
        (TcbState::SwHardeningNeeded, TcbStatus::SwHardeningNeeded, "SWHardeningNeeded"),
        (TcbState::OutOfDate, TcbStatus::OutOfDate, "OutOfDate"),
        (TcbState::Revoked, TcbStatus::Revoked, "Revoked"),
    ] {
        let quoting = open(&dir).with_tcb_state(state);
        let quote = quoting.quote(&report(&quoting)).unwrap();
        let verdict = judge(&quote, quoting.collateral(NOW).unwrap(), &naming(quoting.root_key_id()));
        assert_eq!(verdict.accepted, state == TcbState::UpToDate, "{verdict}");
        let tcb = verdict.appraisal.tcb.unwrap();
        assert_eq!(tcb.status, Some(status));
        assert_eq!(tcb.advisories.is_empty(), state == TcbState::UpToDate);
        match theirs(&quoting, &quote) {
            Ok(found) => assert_eq!(found, text),
            Err(error) => assert!(state == TcbState::Revoked && error.contains("Revoked"), "{error}"),
        }
    }
}

/// The conditions that policies have for imperfect platforms can be tried out.
#[test]
fn policies_can_accept_imperfect_states() {
    let dir = dir();
    let quoting = open(&dir).with_tcb_state(TcbState::SwHardeningNeeded);
    let quote = quoting.quote(&report(&quoting)).unwrap();
    let root = quoting.root_key_id();
    for (advisories, accepted) in [("[\"EMULATED-SA-00001\"]", true), ("[]", false)] {
        let policy = Policy::from_toml(&format!(
            "any_identity = true\nemulated_roots = [\"{root}\"]\n\
             [tcb]\naccept = [{{ status = \"SWHardeningNeeded\", advisories = {advisories} }}]"
        ));
        let verdict = judge(&quote, quoting.collateral(NOW).unwrap(), &policy.unwrap());
        assert_eq!(verdict.accepted, accepted, "{verdict}");
    }
    let quoting = quoting.with_tcb_state(TcbState::OutOfDate);
    // The level that is missing is of 2025-05-14, 397 days before.
    for (grace_days, accepted) in [(398, true), (396, false)] {
        let policy = Policy::from_toml(&format!(
            "any_identity = true\nemulated_roots = [\"{root}\"]\n\
             [tcb]\naccept = [{{ status = \"OutOfDate\", grace_days = {grace_days} }}]"
        ));
        let verdict = judge(&quote, quoting.collateral(NOW).unwrap(), &policy.unwrap());
        assert_eq!(verdict.accepted, accepted, "{verdict}");
    }
}

/// Collateral is stored and sent as JSON; signatures are over exact bytes, so these must come back.
#[test]
fn collateral_survives_its_json_form() {
    let dir = dir();
    let quoting = open(&dir);
    let collateral = quoting.collateral(NOW).unwrap();
    let json = serde_json::to_vec(&collateral).unwrap();
    assert_eq!(Collateral::from_json(&json).unwrap(), collateral);
}

#[test]
fn collateral_is_of_its_time() {
    let dir = dir();
    let quoting = open(&dir);
    let quote = quoting.quote(&report(&quoting)).unwrap();
    let policy = naming(quoting.root_key_id());
    const DAY: u64 = 24 * 60 * 60;
    for (issued, accepted) in [
        (NOW.0 - 31 * DAY, false),
        (NOW.0 - 28 * DAY, true),
        (NOW.0 + DAY - 1, true),
        (NOW.0 + 3 * DAY, false),
    ] {
        let verdict = judge(&quote, quoting.collateral(Time(issued)).unwrap(), &policy);
        assert_eq!(verdict.accepted, accepted, "{verdict}");
    }
    for time in [Time(0), Time(2_500_000_000), Time(u64::MAX)] {
        assert!(matches!(quoting.collateral(time), Err(QuotingError::Time { .. })));
    }
}

#[test]
fn reports_for_others_are_refused() {
    let dir = dir();
    let quoting = open(&dir);
    let good = report(&quoting);
    quoting.quote(&good).unwrap();
    // Body, KEYID, MAC.
    for at in [0, 64, 383, 384, 415, 416, 431] {
        let mut altered = good;
        altered[at] ^= 1;
        assert!(matches!(quoting.quote(&altered), Err(QuotingError::Report)), "byte {at}");
    }
    let mut other_target = quoting.target_info();
    other_target[0] ^= 1;
    assert!(matches!(quoting.quote(&report_on(&machine(), &other_target)), Err(QuotingError::Report)));
    let other_machine = Machine::new(&MachineConfig::with_seed([8; 32])).unwrap();
    let foreign = report_on(&other_machine, &quoting.target_info());
    assert!(matches!(quoting.quote(&foreign), Err(QuotingError::Report)));
    assert!(matches!(quoting.quote(&[0; 432]), Err(QuotingError::Report)));
}

#[test]
fn reopening_gives_the_same_hierarchy() {
    let dir = dir();
    let (first, again) = (open(&dir), open(&dir));
    assert_eq!(first.root_key_id(), again.root_key_id());
    assert_eq!(first.pck_chain(), again.pck_chain());
    assert_eq!(first.target_info(), again.target_info());
    // What one quoted, the other's collateral vouches for.
    let quote = first.quote(&report(&first)).unwrap();
    assert!(judge(&quote, again.collateral(NOW).unwrap(), &naming(first.root_key_id())).accepted);
    // Another directory is another platform.
    let elsewhere = self::dir();
    assert_ne!(open(&elsewhere).root_key_id(), first.root_key_id());

    let mode = fs::metadata(dir.path().join(STATE_FILE)).unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left over");
}

#[test]
fn many_at_once_make_one_hierarchy() {
    let dir = dir();
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&dir).root_key_id())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
}

/// `kill -9` at any moment leaves no hierarchy or a whole one, and one once seen stays.
#[test]
fn a_kill_leaves_all_or_nothing() {
    let (mut absent, mut present) = (0, 0);
    for delay in 0..40 {
        let dir = dir();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "opens_where_told", "--ignored"])
            .env(OPEN_IN, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(500 * delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let before = fs::read(dir.path().join(STATE_FILE)).ok();
        if before.is_some() {
            present += 1
        } else {
            absent += 1
        }
        let quoting = open(&dir);
        let quote = quoting.quote(&report(&quoting)).unwrap();
        let verdict = judge(&quote, quoting.collateral(NOW).unwrap(), &naming(quoting.root_key_id()));
        assert!(verdict.accepted, "{verdict}");
        let after = fs::read(dir.path().join(STATE_FILE)).unwrap();
        assert!(before.is_none_or(|before| before == after));
    }
    // On any machine the first is killed before it begins; how many get far depends on its speed.
    assert!(absent > 0, "{absent} absent, {present} present");
    println!("{absent} absent, {present} present");
}

/// Where the child of [`a_kill_leaves_all_or_nothing`] makes its hierarchy.
const OPEN_IN: &str = "ENCLOS_QUOTING_TEST_OPEN_IN";

#[test]
#[ignore = "the child of another test"]
fn opens_where_told() {
    if let Some(dir) = std::env::var_os(OPEN_IN) {
        EmulatedQuoting::open(&machine(), Path::new(&dir)).unwrap();
    }
}

/// Another CPUSVN is another TCB: another certificate under the same root, and both stay.
#[test]
fn another_cpu_svn_gets_another_certificate() {
    let dir = dir();
    let config = MachineConfig { cpu_svn: [9; 16], ..MachineConfig::with_seed([7; 32]) };
    let newer = Machine::new(&config).unwrap();
    let (before, after) = (open(&dir), EmulatedQuoting::open(&newer, dir.path()).unwrap());
    assert_eq!(before.root_key_id(), after.root_key_id());
    assert_ne!(before.pck_chain(), after.pck_chain());
    let quote = after.quote(&report_on(&newer, &after.target_info())).unwrap();
    let verdict = judge(&quote, after.collateral(NOW).unwrap(), &naming(after.root_key_id()));
    assert!(verdict.accepted, "{verdict}");
    assert_eq!(open(&dir).pck_chain(), before.pck_chain());
    // The older platform falls short of what is asked of the newer.
    let old = before.quote(&report(&before)).unwrap();
    assert!(!judge(&old, after.collateral(NOW).unwrap(), &naming(after.root_key_id())).accepted);
}

#[test]
fn bad_state_is_named() {
    let dir = dir();
    open(&dir);
    let path = dir.path().join(STATE_FILE);
    let good = fs::read_to_string(&path).unwrap();
    let attempt = |dir: &Path| EmulatedQuoting::open(&machine(), dir).unwrap_err();

    let other = Machine::new(&MachineConfig::with_seed([8; 32])).unwrap();
    let error = EmulatedQuoting::open(&other, dir.path()).unwrap_err();
    assert!(matches!(error, QuotingError::OtherMachine { .. }), "{error}");

    let mut cases = vec![
        String::new(),
        "{}".into(),
        good[..good.len() / 2].into(),
        good.replace("\"version\": 1", "\"version\": 2"),
    ];
    cases.push(good.replacen("308187", "308188", 1));
    cases.push(good.replacen("-----BEGIN CERTIFICATE-----", "-----BEGIN NOTHING-----", 1));
    for text in cases {
        assert_ne!(text, good);
        fs::write(&path, text).unwrap();
        let error = attempt(dir.path());
        assert!(matches!(error, QuotingError::Malformed { .. }), "{error}");
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(matches!(attempt(dir.path()), QuotingError::Malformed { .. }));

    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(attempt(dir.path()), QuotingError::Permissions { mode: 0o644, .. }));

    let not_a_directory = dir.path().join(STATE_FILE).join("below");
    assert!(matches!(attempt(&not_a_directory), QuotingError::Io { .. }));
}

#[test]
fn a_machine_that_launches_nothing_says_so() {
    let dir = dir();
    let config = MachineConfig {
        root: Root::Seed([7; 32]),
        launch_control: LaunchControl::Locked([1; 32]),
        ..MachineConfig::default()
    };
    let error = EmulatedQuoting::open(&Machine::new(&config).unwrap(), dir.path()).unwrap_err();
    assert!(matches!(error, QuotingError::Launch(_)), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no hierarchy without its enclave");
}

#[test]
fn it_may_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<EmulatedQuoting>();
}
