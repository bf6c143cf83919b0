//! The engine inside an enclave of the emulated platform: what its keys prove, and what becomes of it when its host lies.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use enclos::abi::hostcall;
use enclos::quoting::{NoQuote, Quoting, QuotingServer, REPORT, TARGETINFO};
use enclos_attestation_service::engine::{
    Change, CollateralDocument, Configuration, ConfigurationServer, EngineClient, NotKept, Operation,
    PlatformDemands, Record, Records, RecordsServer, RefusalKind, Settings, TenantSettings,
};
use enclos_attestation_service::{AttestationType::SgxEnclave, TokenFormat, jws};
use enclos_host::{CallError, Captured, Enclave, EnclaveTransport};
use enclos_pack::{Config, Date, SigningKey, build_application};
use enclos_platform::emulator::{
    Emulator,
    machine::{Machine, MachineConfig},
};
use enclos_quoting::EmulatedQuoting;
use enclos_verifier::{
    Acceptance, AnyCollateral, Evidence, Hex, Identity, Policy, SigningEvidence, TcbPolicy, TcbStatus, Time,
    appraise,
};
use serde_json::{Value, json};

const QUOTE: &[u8] = include_bytes!("../../../../verifier/tests/data/sgx_v3.bin");
const COLLATERAL: &str = include_str!("../../../../verifier/tests/data/sgx_v3.json");
const EVIDENCE_TIME: &str = "2025-06-27T23:29:34Z";

/// The image of a security version, signed. Versions differ in nothing else.
fn image(version: u16) -> &'static [u8] {
    static IMAGES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let build = |version| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut config = Config::load(&project.join("enclos.toml")).unwrap();
        config.security_version = version;
        let mut image = build_application(project, &config, &mut |_| {}).unwrap();
        let pem = include_str!("../../../../examples/vault/host/tests/data/test-only-signer.pem");
        image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
        image.to_file_bytes()
    };
    &IMAGES.get_or_init(|| [build(1), build(2)])[usize::from(version) - 1]
}

fn machine() -> &'static Arc<Machine> {
    static MACHINE: OnceLock<Arc<Machine>> = OnceLock::new();
    MACHINE.get_or_init(|| Machine::new(&MachineConfig::with_seed([40; 32])).unwrap())
}

struct Quotes(Arc<EmulatedQuoting>);

impl Quoting for Quotes {
    fn target_info(&self) -> Result<[u8; TARGETINFO], NoQuote> {
        Ok(self.0.target_info())
    }

    fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, NoQuote> {
        self.0.quote(report).map_err(|error| NoQuote { reason: error.to_string() })
    }
}

type Kept = BTreeMap<String, Vec<u8>>;

/// A host, its disk, and what it does to it.
struct Host {
    _folder: tempfile::TempDir,
    quoting: Arc<EmulatedQuoting>,
    settings: Mutex<Settings>,
    records: Mutex<Kept>,
    /// Says that writing failed, although it was done.
    lies: AtomicBool,
    /// How far its clock is ahead, seconds.
    ahead: AtomicU64,
}

/// The host as its enclave sees it.
#[derive(Clone)]
struct Served(Arc<Host>);

impl Configuration for Served {
    fn settings(&self) -> Result<Vec<u8>, NotKept> {
        Ok(serde_json::to_vec(&*self.0.settings.lock().unwrap()).unwrap())
    }
}

impl Records for Served {
    fn load(&self) -> Result<Vec<Record>, NotKept> {
        let records = self.0.records.lock().unwrap();
        Ok(records.iter().map(|(name, blob)| Record { name: name.clone(), blob: blob.clone() }).collect())
    }

    fn commit(&self, changes: &[Change]) -> Result<(), NotKept> {
        let mut records = self.0.records.lock().unwrap();
        for Change { name, blob } in changes {
            match blob {
                Some(blob) => records.insert(name.clone(), blob.clone()),
                None => records.remove(name),
            };
        }
        match self.0.lies.load(Ordering::Relaxed) {
            true => Err(NotKept { reason: "the disk is full".into() }),
            false => Ok(()),
        }
    }
}

impl Host {
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let quoting = Arc::new(EmulatedQuoting::open(machine(), folder.path()).unwrap());
        let tenant = |name: &str| TenantSettings {
            name: name.into(),
            issuer: format!("https://{name}"),
            policy_signers: None,
        };
        let accept = [TcbStatus::UpToDate, TcbStatus::ConfigurationAndSwHardeningNeeded];
        let settings = Settings {
            demands: PlatformDemands {
                tcb: TcbPolicy { accept: accept.map(Acceptance::Status).to_vec(), ..TcbPolicy::default() },
                emulated_roots: Vec::new(),
                evidence_time: Some(EVIDENCE_TIME.parse().unwrap()),
            },
            tenants: vec![tenant("one"), tenant("other")],
            collateral: vec![CollateralDocument { name: "sgx_v3.json".into(), text: COLLATERAL.into() }],
            key_rotation_days: 90,
        };
        Arc::new(Self {
            _folder: folder,
            quoting,
            settings: Mutex::new(settings),
            records: Mutex::default(),
            lies: AtomicBool::new(false),
            ahead: AtomicU64::new(0),
        })
    }

    /// Starts the enclave, or says what it said when it ended.
    fn start_on(self: &Arc<Self>, machine: &Arc<Machine>, image: &[u8]) -> Result<Running, String> {
        let said = Captured::default();
        /// `ClockSample::realtime_ns` in the frame.
        const REALTIME: usize = 16;
        let served = Served(Arc::clone(self));
        let clock = Arc::clone(self);
        let enclave = Enclave::builder(image)
            .on(Arc::new(Emulator::on(Arc::clone(machine))))
            .service(ConfigurationServer::new(served.clone()))
            .service(RecordsServer::new(served))
            .service(QuotingServer::new(Quotes(Arc::clone(&self.quoting))))
            .stderr(said.clone())
            .inspect_host_calls(move |call| {
                if call.number == hostcall::CLOCK {
                    let realtime = &mut call.frame[REALTIME..REALTIME + 8];
                    let now = u64::from_le_bytes((&*realtime).try_into().unwrap());
                    let alleged = now + clock.ahead.load(Ordering::Relaxed) * 1_000_000_000;
                    realtime.copy_from_slice(&alleged.to_le_bytes());
                }
                call.result
            })
            .start()
            .unwrap();
        match enclave.connect() {
            Ok(engine) => Ok(Running { engine, _enclave: enclave }),
            Err(_) => {
                // What it says arrives before it has ended.
                assert_ne!(enclave.wait(), Ok(0));
                Err(said.text())
            }
        }
    }

    fn start(self: &Arc<Self>) -> Running {
        self.start_on(machine(), image(1)).unwrap()
    }

    /// What the enclave says when it is started over other records.
    fn refused_with(self: &Arc<Self>, records: Kept) -> String {
        let before = std::mem::replace(&mut *self.records.lock().unwrap(), records);
        let said = self.start_on(machine(), image(1)).map(drop).unwrap_err();
        *self.records.lock().unwrap() = before;
        said
    }

    fn kept(&self) -> Kept {
        self.records.lock().unwrap().clone()
    }

    fn demands(&self) -> Hex<32> {
        self.settings.lock().unwrap().demands.digest()
    }
}

struct Running {
    engine: EngineClient<EnclaveTransport>,
    _enclave: Enclave,
}

impl Running {
    fn answer(&self, tenant: &str, operation: Operation, body: &[u8]) -> Value {
        let text = self.engine.answer(tenant, operation, body).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn set_policy(&self, tenant: &str, number: u32) -> Result<String, CallError<impl Sized>> {
        self.engine.answer(tenant, Operation::SetPolicy(SgxEnclave), policy(number).as_bytes())
    }

    fn policy(&self, tenant: &str) -> String {
        let token = self.answer(tenant, Operation::GetPolicy(SgxEnclave), b"");
        claims(&token)["x-ms-policy"].as_str().unwrap().to_owned()
    }

    /// Certificates of the published keys, oldest first, by the names of the keys.
    fn certificates(&self) -> Vec<(String, Vec<u8>)> {
        let keys: Value = serde_json::from_str(&self.engine.published_keys().unwrap()).unwrap();
        let one = |key: &Value| {
            let certificate = jws::decode_base64(key["x5c"][0].as_str().unwrap()).unwrap();
            (key["kid"].as_str().unwrap().to_owned(), certificate)
        };
        keys["keys"].as_array().unwrap().iter().map(one).collect()
    }

    /// Name of the key that signs.
    fn signing(&self) -> String {
        let body = json!({ "quote": jws::base64url(QUOTE) }).to_string();
        let answer = self.answer("one", Operation::Attest(SgxEnclave, TokenFormat::Maa), body.as_bytes());
        part(&answer, 0)["kid"].as_str().unwrap().to_owned()
    }
}

fn part(answer: &Value, index: usize) -> Value {
    let text = answer["token"].as_str().unwrap().split('.').nth(index).unwrap();
    serde_json::from_slice(&jws::decode_base64(text).unwrap()).unwrap()
}

fn claims(answer: &Value) -> Value {
    part(answer, 1)
}

/// A policy that says which it is, in a JWS.
fn policy(number: u32) -> String {
    let text = format!(
        "version=1.0; authorizationrules {{ => permit(); }}; issuancerules {{ => issue(type=\"n\", value={number}); }};"
    );
    jws::unsigned(json!({ "AttestationPolicy": jws::base64url(text.as_bytes()) }).to_string().as_bytes())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn signing_keys_prove_where_they_are_held() {
    let host = Host::new();
    let running = host.start();
    let [(name, certificate)] = &running.certificates()[..] else { panic!("there is one key") };
    assert_eq!(running.signing(), *name);

    let evidence = SigningEvidence::of(certificate).unwrap().expect("the certificate has evidence");
    assert_eq!(jws::decode_base64(name).unwrap(), evidence.key.0);
    assert_eq!(evidence.rest, Some(host.demands()));
    let collateral = AnyCollateral::Dcap(Box::new(host.quoting.collateral(Time::now()).unwrap()));
    let judge = |policy: &str| {
        let bound = format!("report_data = \"{}{}\"\n{policy}", evidence.key, host.demands());
        let policy = Policy::from_toml(&bound).unwrap();
        appraise(Evidence::detect(&evidence.report), &collateral, Time::now(), &policy).unwrap()
    };
    let mr_enclave = Hex(enclos_pack::Image::parse(image(1)).unwrap().mrenclave());
    let identity = format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{mr_enclave}\"");
    let roots = format!("emulated_roots = [\"{}\"]\n", host.quoting.root_key_id());
    assert!(!judge(&identity).accepted, "emulated, and nobody said that this is accepted");
    let verdict = judge(&format!("{roots}{identity}"));
    assert!(verdict.accepted && verdict.emulated, "{verdict}");
    let Some(Identity::Sgx { product_id, .. }) = verdict.appraisal.identity else { panic!("{verdict}") };
    assert_eq!(product_id, 40);
    let other = format!("[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{}\"", Hex([7; 32]));
    assert!(!judge(&format!("{roots}{other}")).accepted);
}

#[test]
fn keys_and_policies_survive_restarts_and_are_sealed() {
    let host = Host::new();
    let running = host.start();
    let keys = running.certificates();
    running.set_policy("one", 1).map_err(drop).unwrap();
    drop(running);
    let again = host.start();
    assert_eq!((again.certificates(), again.signing()), (keys.clone(), keys[0].0.clone()));
    assert_eq!(again.policy("one"), policy(1));
    assert_ne!(again.policy("other"), policy(1));
    // Every form of the private key has the modulus, which the certificate tells, and policies are text.
    let modulus =
        &keys[0].1[keys[0].1.windows(4).position(|w| w == [0x02, 0x82, 0x01, 0x01]).unwrap() + 8..][..128];
    assert!(contains(&keys[0].1, modulus));
    for (name, blob) in host.kept() {
        for part in [modulus, hex::encode(modulus).as_bytes(), b"AttestationPolicy", policy(1).as_bytes()] {
            assert!(!contains(&blob, part), "{name} is not sealed");
        }
    }
}

#[test]
fn a_host_cannot_bring_back_parts_of_the_past() {
    let host = Host::new();
    let running = host.start();
    running.set_policy("one", 1).map_err(drop).unwrap();
    let earlier = host.kept();
    running.set_policy("one", 2).map_err(drop).unwrap();
    let present = host.kept();
    drop(running);

    let with = |name: &str, blob: Option<&Vec<u8>>| {
        let mut records = present.clone();
        match blob {
            Some(blob) => records.insert(name.into(), blob.clone()),
            None => records.remove(name),
        };
        records
    };
    for (records, expected) in [
        (with("tenant/one", Some(&earlier["tenant/one"])), "an old one was brought back"),
        (with("root", Some(&earlier["root"])), "an old one was brought back"),
        (with("tenant/one", None), "it is missing"),
        (with("root", None), "it is missing, although"),
        (with("tenant/two", Some(&present["tenant/one"])), "has been brought back"),
        (with("tenant/one", Some(&present["root"])), "does not open"),
        (with("notes", Some(&present["root"])), "has been brought back"),
        (with("root", Some(&present["root"][..95].to_vec())), "too short"),
    ] {
        let said = host.refused_with(records);
        assert!(said.contains("is damaged") && said.contains(expected), "{expected}: {said}");
    }
    // All of the past at once opens: there is no counter. This is what docs/decisions/0005 says it does.
    *host.records.lock().unwrap() = earlier;
    assert_eq!(host.start().policy("one"), policy(1));
    // On another machine nothing opens.
    let other = Machine::new(&MachineConfig::with_seed([41; 32])).unwrap();
    let said = host.start_on(&other, image(1)).map(drop).unwrap_err();
    assert!(said.contains("does not open"), "{said}");
}

#[test]
fn other_demands_on_platforms_get_another_key() {
    let host = Host::new();
    let first = host.start().signing();
    let demanded = host.demands();
    let strict =
        TcbPolicy { minimum_evaluation_number: Some(1), ..host.settings.lock().unwrap().demands.tcb.clone() };
    let lenient = std::mem::replace(&mut host.settings.lock().unwrap().demands.tcb, strict);
    assert_ne!(host.demands(), demanded);
    let running = host.start();
    let second = running.signing();
    assert_ne!(second, first);
    let names: Vec<_> = running.certificates().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [first.clone(), second], "tokens of the first key are still validated");
    drop(running);
    host.settings.lock().unwrap().demands.tcb = lenient;
    assert_eq!(host.start().signing(), first);
}

#[test]
fn a_new_image_keeps_policies_and_makes_a_key_of_its_own() {
    let host = Host::new();
    let running = host.start();
    running.set_policy("one", 1).map_err(drop).unwrap();
    let first = running.signing();
    drop(running);
    let updated = host.start_on(machine(), image(2)).unwrap();
    assert_eq!(updated.policy("one"), policy(1));
    let certificates = updated.certificates();
    assert_eq!((certificates.len(), &certificates[0].0), (2, &first));
    assert_eq!(certificates[1].0, updated.signing());
    updated.set_policy("one", 2).map_err(drop).unwrap();
    drop(updated);
    let said = host.start_on(machine(), image(1)).map(drop).unwrap_err();
    assert!(said.contains("security version 2"), "{said}");
}

#[test]
fn keys_rotate_by_the_hosts_clock_and_old_ones_are_published_until_their_tokens_expire() {
    const DAY: u64 = 24 * 3600;
    let host = Host::new();
    let running = host.start();
    let first = running.signing();
    let at = |days: f64| {
        host.ahead.store((days * DAY as f64) as u64, Ordering::Relaxed);
        // The runtime asks for the time once a second.
        std::thread::sleep(Duration::from_millis(1200));
        running.engine.rotate_keys().unwrap();
        let names: Vec<_> = running.certificates().into_iter().map(|(name, _)| name).collect();
        (names, running.signing())
    };
    assert_eq!(at(88.0), (vec![first.clone()], first.clone()));
    let (names, signing) = at(89.1);
    let [_, second] = &names[..] else { panic!("a successor is published: {names:?}") };
    assert_eq!(signing, first);
    assert_eq!(at(90.2), (names.clone(), second.clone()));
    assert_eq!(at(91.0), (vec![second.clone()], second.clone()));
    assert_eq!(host.kept().keys().filter(|name| name.starts_with("key/")).count(), 1);
    // A clock that goes back brings no key back.
    assert_eq!(at(0.0), (vec![second.clone()], second.clone()));
}

#[test]
fn a_failed_write_changes_nothing_and_a_lie_about_it_does_no_harm() {
    let host = Host::new();
    let running = host.start();
    running.set_policy("one", 1).map_err(drop).unwrap();
    host.lies.store(true, Ordering::Relaxed);
    let refused = running.engine.answer("one", Operation::SetPolicy(SgxEnclave), policy(2).as_bytes());
    let refused = refused.unwrap_err().method().expect("the engine refuses");
    assert_eq!(refused.kind, RefusalKind::Internal);
    assert!(refused.message.contains("the disk is full"), "{refused}");
    assert_eq!(running.policy("one"), policy(1));
    host.lies.store(false, Ordering::Relaxed);
    running.set_policy("other", 3).map_err(drop).unwrap();
    drop(running);
    let again = host.start();
    assert_eq!((again.policy("one"), again.policy("other")), (policy(1), policy(3)));
}

#[test]
fn a_host_that_breaks_the_settings_is_told() {
    let host = Host::new();
    host.settings.lock().unwrap().collateral[0].text = "{}".into();
    let said = host.start_on(machine(), image(1)).map(drop).unwrap_err();
    assert!(said.contains("sgx_v3.json is not collateral"), "{said}");
    let running = Host::new().start();
    let refused = running.engine.answer("nobody", Operation::Certificates, b"").unwrap_err();
    assert_eq!(refused.method().unwrap().kind, RefusalKind::InvalidParameter);
}
