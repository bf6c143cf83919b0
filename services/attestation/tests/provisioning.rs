//! Collateral that the service was not started with, from a provisioning service.

#[allow(dead_code)]
#[path = "../../../verifier/tests/foundry/mod.rs"]
mod foundry;
mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use enclos_attestation_service::{Config, ConfigError, Server, jws::base64url};
use enclos_verifier::Collateral;
use foundry::{Made, NOW, Platform};
use hyper::StatusCode;
use serde_json::json;
use support::Client;

/// Serves the collateral of SGX platforms, as a PCCS does, and counts what it is asked. After so many answers it has no more.
fn pccs(collateral: Collateral, answers: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/sgx/certification/v4/", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    thread::spawn(move || {
        let chain = |pem: &str| pem.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let signed = |name: &str, text: &str, signature: &[u8]| {
            format!("{{\"{name}\":{text},\"signature\":\"{}\"}}", hex::encode(signature)).into_bytes()
        };
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                request.push(byte[0]);
            }
            let has_more = count.fetch_add(1, Ordering::SeqCst) < answers;
            let path = String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or_default().to_owned();
            let c = &collateral;
            let (status, header, body) = match path.split('?').next().unwrap().rsplit('/').next().unwrap() {
                _ if !has_more => ("503 Service Unavailable", String::new(), Vec::new()),
                _ if path.starts_with("/tdx") => ("404 Not Found", String::new(), Vec::new()),
                "tcb" => (
                    "200 OK",
                    format!("TCB-Info-Issuer-Chain: {}\r\n", chain(&c.tcb_info_issuer_chain)),
                    signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature),
                ),
                "identity" => (
                    "200 OK",
                    format!("SGX-Enclave-Identity-Issuer-Chain: {}\r\n", chain(&c.qe_identity_issuer_chain)),
                    signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature),
                ),
                "pckcrl" => (
                    "200 OK",
                    format!("SGX-PCK-CRL-Issuer-Chain: {}\r\n", chain(&c.pck_crl_issuer_chain)),
                    c.pck_crl.clone(),
                ),
                "rootcacrl" => ("200 OK", String::new(), hex::encode(&c.root_ca_crl).into_bytes()),
                _ => ("404 Not Found", String::new(), Vec::new()),
            };
            let len = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\n{header}Content-Length: {len}\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &body].concat()).unwrap();
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn collateral_is_fetched_once_when_evidence_comes() {
    let Made { quote, collateral, root, .. } = Platform::sgx().make();
    let (tdx, stranger) = (Platform::tdx().make(), Platform::tdx().make());
    let (url, asked) = pccs(collateral, usize::MAX);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.toml");
    let write = |pccs: &str| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata = \"data\"\nevidence_time = \"{NOW}\"\n\
             emulated_roots = [\"{root}\", \"{}\"]\n{pccs}\n[[tenant]]\nhost = \"localhost\"\n",
            tdx.root
        );
        std::fs::write(&path, text).unwrap();
        Config::read(&path)
    };
    assert!(matches!(write(""), Err(ConfigError::Store(reason)) if reason.contains("[pccs]")));
    let nonsense = write("pccs = { url = \"localhost\" }").unwrap();
    assert!(Server::bind(nonsense).await.err().unwrap().to_string().contains("[pccs]"));

    let config = write(&format!("pccs = {{ url = \"{url}\", cache = \"kept\" }}")).unwrap();
    let server = Server::bind(config.clone()).await.unwrap();
    let port = server.address().unwrap().port();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async { drop(stopped.await) }));
    let mut client = Client::connect(port).await.unwrap();
    let attest = |kind: &str, quote: &[u8]| {
        let path = format!("/attest/{kind}?api-version=2025-06-01");
        (path, json!({ "quote": base64url(quote) }).to_string())
    };
    for _ in 0..3 {
        let (path, body) = attest("SgxEnclave", &quote);
        let (status, answer) = client.send("POST", &path, body).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), 4, "four documents");
    }
    // A platform it has nothing for is asked about once in a while, one that nobody vouches for never.
    for (quote, reason, questions) in [
        (&tdx.quote, "the provisioning service gives none", 5),
        (&tdx.quote, "had none a moment ago", 5),
        (&stranger.quote, "root is not trusted", 5),
    ] {
        let (path, body) = attest("TdxVm", quote);
        let (status, answer) = client.send("POST", &path, body).await.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer.contains("InvalidParameter") && answer.contains(reason), "{answer}");
        assert!(!answer.contains("127.0.0.1"), "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), questions, "{answer}");
    }
    stop.send(()).unwrap();
    serving.await.unwrap();

    // Kept on disk: another process needs no service.
    let config = Config { data: Some(folder.path().join("other")), ..config };
    let server = Server::bind(config).await.unwrap();
    let mut client = {
        let port = server.address().unwrap().port();
        tokio::spawn(server.serve(std::future::pending()));
        Client::connect(port).await.unwrap()
    };
    let (path, body) = attest("SgxEnclave", &quote);
    assert_eq!(client.send("POST", &path, body).await.unwrap().0, StatusCode::OK);
    assert_eq!(asked.load(Ordering::SeqCst), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn collateral_is_fetched_again_before_it_expires() {
    // The made collateral expires on 2026-07-01; what is due within a day is fetched anew.
    for (evidence_time, is_due) in [("2026-06-29T12:00:00Z", false), ("2026-06-30T12:00:00Z", true)] {
        let Made { quote, collateral, root, .. } = Platform::sgx().make();
        let (url, asked) = pccs(collateral, 8);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("service.toml");
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata = \"data\"\nevidence_time = \"{evidence_time}\"\n\
             emulated_roots = [\"{root}\"]\npccs = {{ url = \"{url}\" }}\nlimits = {{ upkeep_seconds = 1 }}\n\
             [[tenant]]\nhost = \"localhost\"\n"
        );
        std::fs::write(&path, text).unwrap();
        let server = Server::bind(Config::read(&path).unwrap()).await.unwrap();
        let port = server.address().unwrap().port();
        tokio::spawn(server.serve(std::future::pending()));
        let attest = || async {
            let body = json!({ "quote": base64url(&quote) }).to_string();
            let path = "/attest/SgxEnclave?api-version=2025-06-01";
            let (status, answer) =
                Client::connect(port).await.unwrap().send("POST", path, body).await.unwrap();
            assert_eq!(status, StatusCode::OK, "{answer}");
        };
        let questions = || asked.load(Ordering::SeqCst);
        attest().await;
        if !is_due {
            assert_eq!(questions(), 4);
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!(questions(), 4, "it is in force for more than a day");
            continue;
        }
        // Four documents again, nobody asking; then there are none any more: what there is, is good until it expires.
        for expected in [8, 10] {
            let patience = Instant::now() + Duration::from_secs(30);
            while questions() < expected && Instant::now() < patience {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(questions() >= expected, "{} of {expected}", questions());
            attest().await;
        }
    }
}
