//! Replicas that share a PostgreSQL database, on the server of Debian's `postgresql`, started for the purpose.
//!
//! `cargo xtask test --only postgres` installs it and runs these.

mod support;

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use enclos_attestation_service::{
    AttestRequest, AttestationType, Config, Postgres, Service, ServiceError, TenantContext, TokenFormat,
    jws::{self, base64url, unsigned},
    store::{EmbeddedStore, PostgresStore, Revision, Store, StoreError, Written},
    tokens::{ATTESTATION_LIFETIME, KeyRing},
};
use serde_json::{Map, json};
use support::{Client, PERMIT, QUOTE, configuration, policy_payload, validates};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const PASSWORD: &str = "correct horse";
const KIND: AttestationType = AttestationType::SgxEnclave;

/// A server with a database of its own in a folder of its own; gone with it.
struct Server {
    folder: tempfile::TempDir,
    binaries: PathBuf,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let binaries = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin"))
            .find(|folder| folder.join("initdb").exists())
            .expect("Debian's postgresql is installed: apt-get install postgresql");
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { folder, binaries, port };
        server.write("password", PASSWORD);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        server.write("server.pem", &certificate.pem());
        server.write("server.key", &key.serialize_pem());
        if is_root() {
            // The server refuses to run as root.
            let owner = Command::new("chown").args(["-R", "postgres"]).arg(server.folder.path()).status();
            assert!(owner.unwrap().success());
        }
        let initdb = server
            .command("initdb")
            .args(["--auth-local=trust", "--auth-host=scram-sha-256", "--username=enclos", "--no-sync"])
            .arg(format!("--pwfile={}", server.path("password").display()))
            .args(["--pgdata".as_ref(), server.path("data").as_os_str()])
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        server.control("start");
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let program = self.binaries.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn control(&self, action: &str) {
        let file = |name| self.path(name).display().to_string();
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={} -c ssl=on \
             -c ssl_cert_file={} -c ssl_key_file={} -c synchronous_commit=off -c max_connections=60",
            self.port,
            self.folder.path().display(),
            file("server.pem"),
            file("server.key"),
        );
        let done = self
            .command("pg_ctl")
            .args(["--wait", "--mode=fast", "--silent", "--pgdata", &file("data")])
            .args(["--log", &file("log"), "--options", &options, action])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(done.success(), "{}", fs::read_to_string(self.path("log")).unwrap_or_default());
    }

    fn local(&self) -> Postgres {
        let folder = self.folder.path().display();
        let connection = format!("host={folder} port={} user=enclos dbname=postgres", self.port);
        Postgres { connection, password_file: None, ca: None }
    }

    fn secured(&self, password: &Path, ca: Option<&Path>) -> Postgres {
        let connection = format!("host=localhost port={} user=enclos dbname=postgres", self.port);
        Postgres { connection, password_file: Some(password.into()), ca: ca.map(Into::into) }
    }

    fn store(&self) -> PostgresStore {
        PostgresStore::open(&self.local()).unwrap()
    }

    fn replica(&self, folder: &Path) -> Service {
        let config = configuration(folder, "");
        Service::open(&Config { data: None, postgres: Some(self.local()), ..config }).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its files go with the folder: nothing need be saved.
        let data = self.path("data");
        let _ = self
            .command("pg_ctl")
            .args(["stop", "--mode=immediate", "--silent", "--pgdata"])
            .arg(data)
            .status();
    }
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

fn tenant() -> TenantContext {
    TenantContext { name: "localhost".into(), issuer: "https://localhost".into(), isolated: false }
}

fn attest(service: &Service) -> Result<String, ServiceError> {
    let request: AttestRequest = serde_json::from_value(json!({ "quote": base64url(QUOTE) })).unwrap();
    let answer = service.attest(&tenant(), KIND, &request, TokenFormat::Maa)?;
    Ok(answer["token"].as_str().unwrap().to_owned())
}

fn published(service: &Service) -> Vec<jws::Jwk> {
    serde_json::from_value(service.published_keys()["keys"].clone()).unwrap()
}

#[test]
#[ignore = "needs Debian's postgresql: cargo xtask test --only postgres"]
fn replicas_see_each_others_policies_and_keys() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let one = server.replica(folder.path());
    println!("first start, tables and key made: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    let other = server.replica(folder.path());
    assert_eq!(published(&one), published(&other));
    let token = attest(&one).unwrap();
    assert!(validates(&token, &published(&other)));
    let deny = "version=1.0; authorizationrules { => deny(); }; issuancerules {};";
    for (text, allowed) in [(deny, false), (PERMIT, true), (deny, false)] {
        let jws = unsigned(policy_payload(text).to_string().as_bytes());
        one.set_policy(&tenant(), KIND, &jws).unwrap();
        assert_eq!(attest(&other).is_ok(), allowed);
        assert_eq!(attest(&one).is_ok(), allowed);
    }
    other.reset_policy(&tenant(), KIND, &unsigned(b"")).unwrap();
    assert!(attest(&one).is_ok());
    // A server that was restarted is connected to again, by both.
    server.control("restart");
    assert!(attest(&one).is_ok() && attest(&other).is_ok());
    // One that is away fails requests, and the service comes back with it.
    server.control("stop");
    let error = attest(&one).unwrap_err();
    assert!(matches!(error, ServiceError::Store(StoreError::Postgres { .. })), "{error}");
    server.control("start");
    assert!(attest(&one).is_ok() && attest(&other).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Debian's postgresql: cargo xtask test --only postgres"]
async fn a_database_that_is_away_is_told_and_comes_back() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let config = Config { data: None, postgres: Some(server.local()), ..configuration(folder.path(), "") };
    let service = enclos_attestation_service::Server::bind(config).await.unwrap();
    let port = service.address().unwrap().port();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(service.serve(async { drop(stopped.await) }));
    let mut client = Client::connect(port).await.unwrap();
    let policy = "/policies/SgxEnclave?api-version=2020-10-01";
    for (action, status, policy_status) in [("restart", 200, 200), ("stop", 503, 503), ("start", 200, 200)] {
        tokio::task::block_in_place(|| server.control(action));
        let (health, _) = client.send("GET", "/health", String::new()).await.unwrap();
        assert_eq!(health.as_u16(), status, "{action}");
        let (answered, body) = client.send("GET", policy, String::new()).await.unwrap();
        assert_eq!(answered.as_u16(), policy_status, "{action}");
        let where_it_is = server.folder.path().display().to_string();
        assert!(!body.contains(&where_it_is), "paths are no business of callers: {body}");
    }
    drop((client, stop));
    serving.await.unwrap();
}

#[test]
#[ignore = "needs Debian's postgresql: cargo xtask test --only postgres"]
fn keys_rotate_in_all_replicas_without_breaking_validation() {
    let server = Server::start();
    let start = 1_800_000_000_000;
    // Started at the same moment, with a store that has no key.
    let replicas: Vec<_> = std::thread::scope(|scope| {
        let opened: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let store = server.store();
                    let ring = KeyRing::open(&store, start, 30 * DAY).unwrap();
                    (store, ring)
                })
            })
            .collect();
        opened.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (_, ring) in &replicas {
        assert_eq!(ring.published(), replicas[0].1.published());
        assert_eq!(ring.published().len(), 1);
    }
    let mut tokens: Vec<(u64, String)> = Vec::new();
    let mut cached = replicas[0].1.published();
    let mut signers = std::collections::BTreeSet::new();
    for hour in (0..24 * 70).step_by(4) {
        let now = start + hour * HOUR;
        // Each looks after the keys every sixteen hours only, at a time of its own (the service does every hour).
        let turn = usize::try_from(hour / 4).unwrap() % replicas.len();
        let (store, ring) = &replicas[turn];
        ring.rotate(store, now).unwrap();
        if hour % 8 == 0 {
            // From any of the replicas, and kept for the rest of the day that a new key is published before it signs.
            cached = replicas[(turn + 1) % replicas.len()].1.published();
        }
        for (_, ring) in &replicas {
            let key = ring.signing(now);
            signers.insert(key.id().to_owned());
            let claims = Map::from_iter([("n".to_owned(), json!(hour))]);
            let token = key.sign("https://localhost", &claims).unwrap();
            assert!(validates(&token, &cached), "hour {hour}");
            tokens.push((now, token));
        }
        tokens.retain(|(signed, _)| now <= signed + ATTESTATION_LIFETIME * 1000);
        for (_, ring) in &replicas {
            let published = ring.published();
            for (signed, token) in &tokens {
                assert!(validates(token, &published), "signed at {signed}, now {now}");
            }
        }
    }
    assert_eq!(signers.len(), 3, "one key a rotation, whoever makes it: {signers:?}");
}

#[test]
#[ignore = "needs Debian's postgresql: cargo xtask test --only postgres"]
fn decisions_of_replicas_do_not_cross() {
    let server = Server::start();
    decisions_do_not_cross(&server.store(), &server.store());
}

#[test]
fn decisions_of_threads_do_not_cross() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    decisions_do_not_cross(&store, &store);
}

/// What both stores promise to who decides by what was read.
fn decisions_do_not_cross(one: &dyn Store, other: &dyn Store) {
    let chain = |name: &str| vec![format!("certificate {name}")];
    let first = [("0".to_owned(), chain("0"))];
    one.seed_certificates("t", &first).unwrap();
    // Once only, whoever asks, and of this tenant only.
    other.seed_certificates("t", &[("x".to_owned(), chain("x"))]).unwrap();
    assert_eq!(other.signers("t").unwrap().chains, [chain("0")]);
    assert_eq!(other.signers("u").unwrap().chains, Vec::<Vec<String>>::new());

    // A policy decided by certificates that have changed since is not written.
    let seen = one.signers("t").unwrap().revision;
    assert_eq!(one.set_policy("t", "k", Some("1"), seen).unwrap(), Written::Done);
    assert_eq!(other.add_certificate("t", "1", &chain("1"), seen).unwrap(), Written::Done);
    assert_eq!(one.set_policy("t", "k", Some("2"), seen).unwrap(), Written::Stale);
    assert_eq!(one.remove_certificate("t", "0", seen).unwrap(), Written::Stale);
    assert_eq!(one.add_certificate("t", "2", &chain("2"), seen).unwrap(), Written::Stale);
    assert_eq!(other.policy("t", "k").unwrap().as_deref(), Some("1"));
    let now = one.signers("t").unwrap();
    assert_ne!(now.revision, seen);
    assert_eq!(now.chains, [chain("0"), chain("1")]);
    assert_eq!(one.set_policy("t", "k", None, now.revision).unwrap(), Written::Done);
    assert_eq!(other.policy("t", "k").unwrap(), None);
    // Other tenants have revisions of their own.
    assert_eq!(one.set_policy("u", "k", Some("u"), Revision::default()).unwrap(), Written::Done);

    // Many at once, each deciding again until it is done: nothing is lost.
    let stores = [one, other];
    let until_done = |write: &dyn Fn(Revision) -> Written, store: &dyn Store| {
        loop {
            match write(store.signers("t").unwrap().revision) {
                Written::Stale => {}
                written => return written,
            }
        }
    };
    let all = |change: &(dyn Fn(&dyn Store, &str) -> Written + Sync)| -> Vec<Written> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|n| scope.spawn(move || change(stores[n % 2], &n.to_string()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let added = all(&|store, name| {
        until_done(&|seen| store.add_certificate("t", name, &chain(name), seen).unwrap(), store)
    });
    assert!(added.iter().all(|written| *written == Written::Done));
    assert_eq!(one.signers("t").unwrap().chains.len(), 8);
    // All remove theirs: one of them is told that it is the last.
    let removed =
        all(&|store, name| until_done(&|seen| store.remove_certificate("t", name, seen).unwrap(), store));
    assert_eq!(removed.iter().filter(|written| **written == Written::LastCertificate).count(), 1);
    assert_eq!(other.signers("t").unwrap().chains.len(), 1);
    assert_eq!(
        one.remove_certificate("t", "no such", one.signers("t").unwrap().revision).unwrap(),
        Written::Done
    );

    // Keys: only one of those who saw the same newest key adds the next.
    let key = |made: u64| enclos_attestation_service::store::StoredKey {
        made,
        private_key: Some(vec![1]),
        certificate: vec![2],
    };
    let won = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..9)
            .map(|n| {
                let store = stores[n as usize % 2];
                scope.spawn(move || store.replace_keys(None, Some(&key(n)), &[]).unwrap())
            })
            .collect();
        threads.into_iter().filter(|_| true).map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(won.iter().filter(|written| **written == Written::Done).count(), 1);
    let stored = one.keys().unwrap();
    assert_eq!(stored.len(), 1);
    let newest = Some(stored[0].made);
    assert_eq!(other.replace_keys(newest, Some(&key(20)), &[stored[0].made]).unwrap(), Written::Done);
    assert_eq!(one.replace_keys(newest, Some(&key(30)), &[]).unwrap(), Written::Stale);
    assert!(one.keys().unwrap() == [key(20)]);
}

#[test]
#[ignore = "needs Debian's postgresql: cargo xtask test --only postgres"]
fn connections_are_secured_and_errors_keep_secrets() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let password = file("password", &format!("{PASSWORD}\n"));
    let ca = file("ca.pem", &fs::read_to_string(server.path("server.pem")).unwrap());
    let store = PostgresStore::open(&server.secured(&password, Some(&ca))).unwrap();
    assert_eq!(store.policy("t", "k").unwrap(), None);
    assert!(!format!("{store:?}").contains(PASSWORD));

    let other = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&other).unwrap();
    let other = file("other.pem", &other.pem());
    let wrong = file("wrong", "battery staple");
    for (configuration, says) in [
        (server.secured(&password, Some(&other)), "certificate"),
        (
            Postgres {
                connection: format!("{} sslmode=require", server.secured(&password, None).connection),
                ..server.secured(&password, None)
            },
            "certificate",
        ),
        (server.secured(&wrong, Some(&ca)), "password authentication failed"),
        (server.secured(&folder.path().join("absent"), Some(&ca)), "absent"),
        (Postgres { connection: "host=/nowhere user=u".into(), ..server.local() }, "connect"),
        (
            Postgres { connection: "host=localhost password=swordfish".into(), ..server.local() },
            "password_file",
        ),
        (Postgres { connection: "nonsense".into(), ..server.local() }, "connection"),
    ] {
        let error = PostgresStore::open(&configuration).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        for secret in [PASSWORD, "battery staple", "swordfish"] {
            assert!(!error.contains(secret), "{error}");
        }
    }
}
