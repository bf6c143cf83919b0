//! Bearer tokens: what is checked of them, and keys found at an issuer that is up, down, slow, or another.

mod support;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State, http::Uri, response::IntoResponse};
use der::Decode;
use enclos_attestation_service::{
    Authentication, ConfigError,
    authentication::{Authenticator, BearerError},
    jws::base64url,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use support::{Signer, ec_signer, rsa_signer};
use tokio::net::TcpListener;

const NOW: u64 = 1_800_000_000;

fn jwk(signer: &Signer, kid: &str) -> Value {
    let certificate = x509_cert::Certificate::from_der(&signer.certificate).unwrap();
    let info = certificate.tbs_certificate().subject_public_key_info();
    let point = info.subject_public_key.raw_bytes();
    json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
        "x": base64url(&point[1..33]), "y": base64url(&point[33..]),
    })
}

fn token(signer: &Signer, header: &Value, payload: &Value) -> String {
    let signed =
        format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(payload.to_string().as_bytes()));
    let signature = base64url(&(signer.sign)(signed.as_bytes()));
    format!("Bearer {signed}.{signature}")
}

fn payload(issuer: &str, changed: &[(&str, Value)]) -> Value {
    let mut payload = json!({ "iss": issuer, "aud": "us", "exp": NOW + 600, "nbf": NOW - 600 });
    for (name, value) in changed {
        payload[*name] = value.clone();
    }
    payload
}

fn configured(issuer: &str, jwks: Option<&Path>, ca: Option<&Path>) -> Authentication {
    let own = |path: &Path| path.to_owned();
    Authentication { issuer: issuer.into(), audience: "us".into(), jwks: jwks.map(own), ca: ca.map(own) }
}

#[tokio::test]
async fn tokens_of_others_for_others_and_out_of_time_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let signer = ec_signer();
    let jwks = folder.path().join("jwks.json");
    std::fs::write(&jwks, json!({ "keys": [{ "kty": "oct", "k": "AAAA" }, jwk(&signer, "k")] }).to_string())
        .unwrap();
    let authenticator = Authenticator::new(&configured("https://issuer", Some(&jwks), None)).unwrap();
    let check = async |signer: &Signer, header: Value, payload: &Value| {
        authenticator.check(Some(&token(signer, &header, payload)), NOW).await
    };
    let es256 = || json!({ "alg": "ES256", "kid": "k" });
    let good = payload("https://issuer", &[]);
    assert_eq!(check(&signer, es256(), &good).await, Ok(()));
    let both = payload("https://issuer", &[("aud", json!(["them", "us"]))]);
    assert_eq!(check(&signer, es256(), &both).await, Ok(()));
    for (changed, error) in [
        (("iss", json!("https://other")), BearerError::Claim("issuer")),
        (("aud", json!("them")), BearerError::Claim("audience")),
        (("aud", json!([])), BearerError::Claim("audience")),
        (("exp", json!(NOW - 61)), BearerError::Time),
        (("nbf", json!(NOW + 61)), BearerError::Time),
        (("exp", json!("never")), BearerError::Malformed),
        (("exp", Value::Null), BearerError::Malformed),
    ] {
        let changed = payload("https://issuer", &[changed]);
        assert_eq!(check(&signer, es256(), &changed).await, Err(error), "{changed}");
    }
    for algorithm in ["none", "HS256", "RS256", "ES384"] {
        let header = json!({ "alg": algorithm, "kid": "k" });
        assert_eq!(check(&signer, header, &good).await, Err(BearerError::Signature));
    }
    assert_eq!(check(&ec_signer(), es256(), &good).await, Err(BearerError::Signature));
    assert_eq!(check(&rsa_signer(), json!({ "alg": "RS256" }), &good).await, Err(BearerError::Signature));
    let other = json!({ "alg": "ES256", "kid": "another" });
    assert_eq!(check(&signer, other, &good).await, Err(BearerError::Signature));
    // RFC 7515, section 4.1.11: what must be understood is not.
    let critical = json!({ "alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false });
    assert_eq!(check(&signer, critical, &good).await, Err(BearerError::Malformed));
    for (header, error) in [
        (None, BearerError::Missing),
        (Some("Basic YTpi"), BearerError::Missing),
        (Some("Bearer a.b"), BearerError::Malformed),
        (Some("Bearer ..."), BearerError::Malformed),
    ] {
        assert_eq!(authenticator.check(header, NOW).await, Err(error));
    }
}

/// An issuer on loopback, whose answers a test may change.
struct Issuer {
    address: String,
    asked: Arc<AtomicUsize>,
    state: Arc<std::sync::Mutex<Answers>>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Answers {
    issuer: String,
    keys_at: String,
    keys: Value,
    delay: Duration,
}

type Shared = (Arc<std::sync::Mutex<Answers>>, Arc<AtomicUsize>);

async fn answer(State((answers, asked)): State<Shared>, uri: Uri) -> impl IntoResponse {
    let answers = answers.lock().unwrap().clone();
    tokio::time::sleep(answers.delay).await;
    match uri.path() {
        "/.well-known/openid-configuration" => {
            asked.fetch_add(1, Ordering::SeqCst);
            json!({ "issuer": answers.issuer, "jwks_uri": answers.keys_at, "other": [] }).to_string()
        }
        "/keys" => json!({ "keys": answers.keys }).to_string(),
        other => panic!("asked for {other}"),
    }
}

impl Issuer {
    async fn start(signer: &Signer, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
        let state = Arc::new(std::sync::Mutex::new(Answers {
            issuer: address.clone(),
            keys_at: format!("{address}/keys"),
            keys: json!([jwk(signer, "one")]),
            delay: Duration::ZERO,
        }));
        let asked = Arc::new(AtomicUsize::new(0));
        let router = Router::new().fallback(answer).with_state((Arc::clone(&state), Arc::clone(&asked)));
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (service, tls) = (TowerToHyperService::new(router.clone()), tls.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(builder.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, asked, state, server }
    }

    fn change(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.state.lock().unwrap());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn header(kid: &str) -> Value {
    json!({ "alg": "ES256", "kid": kid })
}

#[tokio::test]
async fn keys_are_found_at_the_issuer_and_kept() {
    let signer = ec_signer();
    let issuer = Issuer::start(&signer, None).await;
    let authenticator = Authenticator::new(&configured(&issuer.address, None, None)).unwrap();
    assert_eq!(issuer.asked(), 0, "the issuer is asked when there is a token to check");
    let good = token(&signer, &header("one"), &payload(&issuer.address, &[]));
    for _ in 0..20 {
        assert_eq!(authenticator.check(Some(&good), NOW).await, Ok(()));
    }
    assert_eq!(issuer.asked(), 1);
    // Names of keys that do not exist make nobody ask all the time, and are refused.
    let nonsense = token(&signer, &header("no-such-key"), &payload(&issuer.address, &[]));
    for _ in 0..20 {
        assert_eq!(authenticator.check(Some(&nonsense), NOW).await, Err(BearerError::Signature));
    }
    assert_eq!(issuer.asked(), 1);
    // Kept while the issuer is away.
    issuer.server.abort();
    assert_eq!(authenticator.check(Some(&good), NOW).await, Ok(()));
}

#[tokio::test]
async fn many_requests_at_once_ask_once() {
    let signer = ec_signer();
    let issuer = Issuer::start(&signer, None).await;
    issuer.change(|answers| answers.delay = Duration::from_millis(100));
    let authenticator = Arc::new(Authenticator::new(&configured(&issuer.address, None, None)).unwrap());
    let good = token(&signer, &header("one"), &payload(&issuer.address, &[]));
    let mut checks = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let (authenticator, good) = (Arc::clone(&authenticator), good.clone());
        checks.spawn(async move { authenticator.check(Some(&good), NOW).await });
    }
    assert!(checks.join_all().await.iter().all(Result::is_ok));
    assert_eq!(issuer.asked(), 1);
}

#[tokio::test]
async fn issuers_that_do_not_answer_or_are_others_are_not_believed() {
    let signer = ec_signer();
    let refused = async |change: fn(&mut Answers)| {
        let issuer = Issuer::start(&signer, None).await;
        issuer.change(change);
        let authenticator = Authenticator::new(&configured(&issuer.address, None, None)).unwrap();
        let good = token(&signer, &header("one"), &payload(&issuer.address, &[]));
        let started = Instant::now();
        assert_eq!(authenticator.check(Some(&good), NOW).await, Err(BearerError::Issuer));
        started.elapsed()
    };
    refused(|answers| answers.issuer = "https://another".into()).await;
    refused(|answers| answers.keys_at = "http://keys.example/keys".into()).await;
    refused(|answers| answers.keys_at = "file:///etc/passwd".into()).await;
    refused(|answers| answers.keys = json!([{ "kty": "oct", "k": "AAAA" }])).await;
    refused(|answers| answers.keys = json!("x".repeat(2 << 20))).await;
    // It must not hang on an issuer that does.
    let took = refused(|answers| answers.delay = Duration::from_secs(3600)).await;
    assert!(took < Duration::from_secs(60), "{took:?}");
    // Nothing listens there: an address that was just given up.
    let gone = Issuer::start(&signer, None).await;
    gone.server.abort();
    let _ = gone.server.await;
    let authenticator = Authenticator::new(&configured(&gone.address, None, None)).unwrap();
    let good = token(&signer, &header("one"), &payload(&gone.address, &[]));
    assert_eq!(authenticator.check(Some(&good), NOW).await, Err(BearerError::Issuer));
}

#[tokio::test]
async fn only_issuers_that_nobody_on_the_way_can_play_are_configured() {
    for address in ["http://login.example", "login.example", "", "ftp://localhost", "http://10.0.0.1"] {
        let error = Authenticator::new(&configured(address, None, None)).unwrap_err();
        assert!(matches!(error, ConfigError::Issuer { .. }), "{address}: {error}");
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let signer = ec_signer();
    let issuer = Issuer::start(&signer, Some(Arc::new(server).into())).await;
    let good = token(&signer, &header("one"), &payload(&issuer.address, &[]));
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, certificate.pem()).unwrap();
    let trusting = Authenticator::new(&configured(&issuer.address, None, Some(&ca))).unwrap();
    assert_eq!(trusting.check(Some(&good), NOW).await, Ok(()));
    let system = Authenticator::new(&configured(&issuer.address, None, None)).unwrap();
    assert_eq!(system.check(Some(&good), NOW).await, Err(BearerError::Issuer));
}
