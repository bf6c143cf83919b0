//! Who gets a key and who does not, over HTTP and by the emulated platform's evidence; and that keys survive.
#![forbid(unsafe_code)]

#[path = "../../../verifier/tls/tests/common/mod.rs"]
#[allow(dead_code, reason = "of the tests of attested TLS")]
mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::Platform;
use enclos_attested_tls::OfflineCollateral;
use enclos_key_broker::audit::{AuditLog, Entry, Happened};
use enclos_key_broker::client::{BrokerClient, RelayError};
use enclos_key_broker::collateral::{Sources, pccs};
use enclos_key_broker::http::serve;
use enclos_key_broker::release::{KeyRelease, KeyRequest, Pending, ReleaseError};
use enclos_key_broker::store::{Store, StoreError};
use enclos_key_broker::{Broker, jwe};
use enclos_verifier::{Hex, Time};

/// A broker that serves in this process, with one key, `digits`.
struct Serving {
    url: String,
    store: Store,
    _folder: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Serving {
    fn start(policy: &str, sources: Sources) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        store.add("digits", None, policy).unwrap();
        let broker = Broker::new(store.clone(), sources).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                serve(broker, listener, None, async { drop(stopped.await) }).await;
            });
        });
        let url = format!("http://{}", is_ready.recv().unwrap());
        Self { url, store, _folder: folder, stop: Some(stop), thread: Some(thread) }
    }

    /// What was recorded last.
    fn recorded(&self) -> Entry {
        AuditLog::read(self.store.folder()).unwrap().entries.pop().expect("something is recorded")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || thread::panicking());
        }
    }
}

/// Measurement of the enclave that [`Platform::attest`] stands for.
fn measurement(platform: &Platform) -> Hex<32> {
    let quote = platform.attest(&[0; 64]);
    Hex(*quote[112..144].first_chunk().unwrap())
}

fn policy(mr_enclave: Hex<32>, emulated_root: Option<Hex<32>>) -> String {
    let roots = emulated_root.map(|root| format!("\"{root}\"")).unwrap_or_default();
    format!("emulated_roots = [{roots}]\n[[identity]]\nkind = \"sgx\"\nmr_enclave = \"{mr_enclave}\"\n")
}

fn collateral(platform: &Platform) -> Sources {
    let collateral = platform.quoting.collateral(Time::now()).unwrap();
    Sources { emulated: None, others: vec![Arc::new(OfflineCollateral(Arc::new(collateral)))] }
}

/// The enclave's half, with a change of what it sends.
fn ask(
    broker: &BrokerClient,
    platform: &Platform,
    key_id: &str,
    change: impl FnOnce(&mut KeyRequest),
) -> (Option<Pending>, Result<KeyRelease, RelayError>) {
    let mut made = None;
    let release = broker.release(key_id, |nonce| {
        let pending = Pending::new(key_id, nonce);
        let evidence = platform.attest(pending.report_data());
        let public_key = pending.public_key().to_vec();
        let mut request = KeyRequest { nonce: nonce.to_vec(), public_key, evidence, collateral: None };
        change(&mut request);
        made = Some(pending);
        serde_json::to_vec(&request)
    });
    (made, release.map(|json| serde_json::from_slice(&json).unwrap()))
}

fn refused(outcome: Result<KeyRelease, RelayError>) -> (u16, String) {
    match outcome {
        Err(RelayError::Refused { status, detail, .. }) => (status, detail),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_enclave_that_meets_the_policy_gets_the_key_and_is_recorded() {
    let platform = Platform::new();
    let (mr_enclave, root) = (measurement(&platform), platform.quoting.root_key_id());
    let serving = Serving::start(&policy(mr_enclave, Some(root)), collateral(&platform));
    let key = serving.store.key("digits").unwrap().key;
    let model = b"a model".to_vec();
    let encrypted = jwe::encrypt(model.clone(), "digits", &key).unwrap();

    let broker = BrokerClient::new(&serving.url);
    let (pending, release) = ask(&broker, &platform, "digits", |_| {});
    let (pending, release) = (pending.unwrap(), release.unwrap());
    let released = pending.open(&release).unwrap();
    assert_eq!(*jwe::decrypt(encrypted.as_bytes(), "digits", &released).unwrap(), model);
    // What passed by opens for nobody else.
    assert_eq!(Pending::new("digits", &[1]).open(&release).unwrap_err(), ReleaseError::Altered);
    let passed = serde_json::to_vec(&release).unwrap();
    assert!(!passed.windows(32).any(|w| w == key.as_bytes()));

    let entry = serving.recorded();
    assert_eq!((entry.event, &*entry.key), (Happened::Released, "digits"));
    let evidence = entry.evidence.unwrap();
    assert!(evidence.genuine && evidence.emulated);
    assert_eq!(evidence.identity["mr_enclave"], mr_enclave.to_string());
    assert_eq!(evidence.identity["mr_signer"].as_str().unwrap().len(), 64);
    assert_eq!(evidence.tcb_status, "UpToDate");
    assert_eq!(entry.from.unwrap(), "127.0.0.1");
}

#[test]
fn emulated_platforms_and_other_measurements_are_refused() {
    let platform = Platform::new();
    let (mr_enclave, root) = (measurement(&platform), platform.quoting.root_key_id());
    let other = Hex([0x11; 32]);
    for (policy, reason) in [(policy(mr_enclave, None), "root"), (policy(other, Some(root)), "identity")] {
        let serving = Serving::start(&policy, collateral(&platform));
        let (_, outcome) = ask(&BrokerClient::new(&serving.url), &platform, "digits", |_| {});
        let (status, detail) = refused(outcome);
        assert_eq!(status, 403);
        assert!(detail.contains(reason), "{detail}");
        let entry = serving.recorded();
        assert_eq!(entry.event, Happened::Refused);
        assert!(!entry.reasons.is_empty());
        let evidence = entry.evidence.unwrap();
        assert_eq!(evidence.genuine, policy.contains(&root.to_string()), "{evidence:?}");
        assert_eq!(evidence.identity["mr_enclave"], mr_enclave.to_string());
    }
}

#[test]
fn what_is_altered_replayed_revoked_or_unknown_is_refused() {
    let platform = Platform::new();
    let root = platform.quoting.root_key_id();
    let serving = Serving::start(&policy(measurement(&platform), Some(root)), collateral(&platform));
    serving.store.add("other", None, &policy(measurement(&platform), Some(root))).unwrap();
    let broker = BrokerClient::new(&serving.url);

    // Evidence about another key pair: that of a host who would like to read the key.
    let eavesdropper = Pending::new("digits", &[1]);
    let (_, outcome) =
        ask(&broker, &platform, "digits", |r| r.public_key = eavesdropper.public_key().to_vec());
    assert!(refused(outcome).1.contains("report data"));
    // A byte of the report, and one of its signature.
    for place in [48 + 64, 48 + 320, 440] {
        let (_, outcome) = ask(&broker, &platform, "digits", |r| r.evidence[place] ^= 1);
        assert_eq!(refused(outcome).0, 403, "byte {place}");
        assert_eq!(serving.recorded().event, Happened::Refused);
    }
    for garbage in [Vec::new(), vec![0; 100], vec![3; 5000]] {
        let (_, outcome) = ask(&broker, &platform, "digits", |r| r.evidence = garbage);
        assert!(matches!(refused(outcome).0, 400 | 403));
    }
    let (_, outcome) = ask(&broker, &platform, "digits", |r| r.nonce[0] ^= 1);
    assert!(refused(outcome).1.contains("nonce"));

    // The same request again, and for another key than the evidence names.
    let kept = Mutex::new(None);
    let (_, outcome) = ask(&broker, &platform, "digits", |r| *kept.lock().unwrap() = Some(r.clone()));
    outcome.unwrap();
    let kept = kept.into_inner().unwrap().unwrap();
    let (_, outcome) = ask(&broker, &platform, "digits", |r| *r = kept.clone());
    assert!(refused(outcome).1.contains("used before"));
    let (_, outcome) = ask(&broker, &platform, "digits", |r| {
        let pending = Pending::new("other", &r.nonce);
        r.public_key = pending.public_key().to_vec();
        r.evidence = platform.attest(pending.report_data());
    });
    assert!(refused(outcome).1.contains("report data"));

    let (_, outcome) = ask(&broker, &platform, "nobodys", |_| {});
    assert_eq!(refused(outcome).0, 404);
    let (_, outcome) = ask(&broker, &platform, "../digits", |_| {});
    assert!(matches!(outcome, Err(RelayError::KeyId(_))));
    serving.store.revoke("digits").unwrap();
    let (_, outcome) = ask(&broker, &platform, "digits", |_| {});
    assert_eq!(refused(outcome).0, 403);
    assert!(serving.recorded().reasons[0].contains("revoked"));
    let (_, outcome) = ask(&broker, &platform, "other", |_| {});
    outcome.unwrap();
    let recorded = AuditLog::read(serving.store.folder()).unwrap();
    let released = recorded.entries.iter().filter(|e| e.event == Happened::Released).count();
    assert_eq!((released, recorded.unreadable), (2, 0));
}

#[test]
fn collateral_comes_from_a_provisioning_service_or_with_the_request_or_not_at_all() {
    let platform = Platform::new();
    let root = platform.quoting.root_key_id();
    let policy = policy(measurement(&platform), Some(root));
    let given = serde_json::to_value(platform.quoting.collateral(Time::now()).unwrap()).unwrap();

    let serving = Serving::start(&policy, Sources::default());
    let (_, outcome) = ask(&BrokerClient::new(&serving.url), &platform, "digits", |_| {});
    let (status, detail) = refused(outcome);
    assert!(status == 400 && detail.contains("collateral"), "{detail}");
    let relaying = BrokerClient::new(&serving.url).with_collateral(given.clone());
    ask(&relaying, &platform, "digits", |_| {}).1.unwrap();

    // The broker's own comes first: what the host sends along is not even read.
    let serving = Serving::start(&policy, collateral(&platform));
    let relaying = BrokerClient::new(&serving.url).with_collateral(serde_json::json!({ "no": "collateral" }));
    ask(&relaying, &platform, "digits", |_| {}).1.unwrap();
    // A service that is not there is said to be.
    let nowhere = Sources { emulated: None, others: vec![Arc::new(pccs("http://127.0.0.1:1").unwrap())] };
    let serving = Serving::start(&policy, nowhere);
    let (_, outcome) = ask(&BrokerClient::new(&serving.url), &platform, "digits", |_| {});
    assert!(refused(outcome).1.contains("http://127.0.0.1:1/sgx/certification/v4/tcb"));
}

#[test]
fn whatever_comes_over_http_is_answered_and_the_broker_goes_on() {
    let platform = Platform::new();
    let root = platform.quoting.root_key_id();
    let serving = Serving::start(&policy(measurement(&platform), Some(root)), collateral(&platform));
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    let agent: ureq::Agent = config.timeout_global(Some(Duration::from_secs(60))).build().into();
    let post = |path: &str, body: &[u8]| {
        let mut response = agent.post(format!("{}{path}", serving.url)).send(body).unwrap();
        let body = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), body)
    };
    for body in
        [&b""[..], b"{}", b"[1]", b"{\"nonce\":\"AA\",\"public_key\":\"!\",\"evidence\":\"\"}", &[0xff; 1000]]
    {
        let (status, answer) = post("/keys/digits/release", body);
        assert!(status == 400 && answer.contains("detail"), "{status} {answer}");
    }
    assert_eq!(post("/keys/digits/release", &vec![b' '; (1 << 20) + 1]).0, 413);
    assert_eq!(post("/keys/..%2Fdigits/release", b"{}").0, 400);
    assert_eq!(post("/keys/digits", b"").0, 404);
    assert_eq!(agent.get(format!("{}/nonce", serving.url)).call().unwrap().status().as_u16(), 405);
    assert_eq!(agent.get(format!("{}/health", serving.url)).call().unwrap().status().as_u16(), 200);
    ask(&BrokerClient::new(&serving.url), &platform, "digits", |_| {}).1.unwrap();
}

/// In the process that is killed: adds keys, and says the name of each once it is added.
#[test]
#[ignore = "the other half of a test"]
fn adds_keys_until_it_is_killed() {
    let Some(folder) = std::env::var_os("ENCLOS_TEST_KEY_STORE") else { return };
    let store = Store::open(Path::new(&folder)).unwrap();
    let audit = AuditLog::open(store.folder()).unwrap();
    let first = store.key_ids().unwrap().len();
    for number in first..first + 100_000 {
        let name = format!("key-{number}");
        match store.add(&name, None, &policy(Hex([1; 32]), None)) {
            Ok(added) => {
                let evidence = None;
                let entry = Entry {
                    time: Time::now(),
                    event: Happened::Added,
                    key: name.clone(),
                    reasons: Vec::new(),
                    evidence,
                    from: None,
                };
                audit.record(&entry).unwrap();
                println!("added {name} {}", &*added.jwk());
            }
            Err(StoreError::Exists { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn acknowledged_keys_survive_kill_9_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut acknowledged = Vec::new();
    for round in 0..10_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "adds_keys_until_it_is_killed", "--ignored", "--nocapture"])
            .env("ENCLOS_TEST_KEY_STORE", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (first, is_there) = mpsc::channel();
        let reader = thread::spawn(move || {
            let said = lines.map_while(Result::ok).filter(|line| line.starts_with("added "));
            // What was cut off in the middle was not acknowledged.
            said.filter(|line| line.ends_with('}'))
                .inspect(|_| {
                    let _ = first.send(());
                })
                .collect::<Vec<_>>()
        });
        is_there.recv_timeout(Duration::from_secs(60)).unwrap();
        thread::sleep(Duration::from_millis(3 + round * 7));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(reader.join().unwrap());
        let store = Store::open(&path).unwrap();
        for line in &acknowledged {
            let (name, jwk) = line["added ".len()..].split_once(' ').unwrap();
            assert_eq!(&*store.key(name).unwrap().jwk(), jwk, "round {round}");
        }
        // Those that were not acknowledged are there wholly or not at all.
        for name in store.key_ids().unwrap() {
            store.key(&name).unwrap();
        }
        let recorded = AuditLog::read(&path).unwrap();
        for line in &acknowledged {
            let name = line["added ".len()..].split(' ').next().unwrap();
            assert!(recorded.entries.iter().any(|entry| entry.key == name), "{name} is not recorded");
        }
        assert!(recorded.unreadable as u64 <= round + 1);
    }
    assert!(acknowledged.len() >= 10);
}
