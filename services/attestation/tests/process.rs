//! The service as a process: killed at any moment, asked to stop, and what it tells of itself.

mod support;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::{Body, to_bytes};
use enclos_attestation_service::jws::{base64url, decode_base64, unsigned};
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use support::{Client, QUOTE, Random, configuration, policy_payload};

/// The binary, serving.
struct Process {
    child: Child,
    port: u16,
    log: BufReader<ChildStderr>,
    started_in: Duration,
}

impl Process {
    fn start(folder: &Path) -> Self {
        let started = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_enclos-attestation-service"))
            .arg(folder.join("service.toml"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut process = Self { child, port: 0, log, started_in: Duration::ZERO };
        let mut line = String::new();
        while process.port == 0 {
            line.clear();
            assert_ne!(process.log.read_line(&mut line).unwrap(), 0, "the service did not start");
            let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if said["fields"]["message"] == "attestation service ready" {
                process.port = u16::try_from(said["fields"]["port"].as_u64().unwrap()).unwrap();
                process.started_in = started.elapsed();
            }
        }
        process
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const POLICY: &str = "/policies/SgxEnclave?api-version=2020-10-01";

/// A policy that says which it is.
fn policy(number: u64) -> String {
    let text = format!(
        "version=1.0; authorizationrules {{ => permit(); }}; issuancerules {{ => issue(type=\"n\", value={number}); }};"
    );
    unsigned(policy_payload(&text).to_string().as_bytes())
}

fn payload(token: &str) -> Value {
    serde_json::from_slice(&decode_base64(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// Which policy a tenant has: 0 for the default.
async fn policy_there_is(client: &mut Client, kind: &str) -> u64 {
    let path = format!("/policies/{kind}?api-version=2025-06-01");
    let (status, body) = client.send("GET", &path, String::new()).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let set = payload(answer["token"].as_str().unwrap())["x-ms-policy"].as_str().unwrap().to_owned();
    let text = payload(&set)["AttestationPolicy"].as_str().unwrap().to_owned();
    let text = String::from_utf8(decode_base64(&text).unwrap()).unwrap();
    let number = text.split("value=").nth(1).and_then(|rest| rest.split(')').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_policies_survive_kill_9_at_any_moment() {
    const KINDS: [&str; 2] = ["SgxEnclave", "TdxVm"];
    let folder = tempfile::tempdir().unwrap();
    configuration(folder.path(), "");
    let mut random = Random(0x0ddb_a115_ca1e_d00d);
    let mut last = KINDS.map(|_| 0);
    let mut acknowledged_in_all = 0;
    let mut keys = None;
    for round in 0..30 {
        let mut process = Process::start(folder.path());
        let mut client = Client::connect(process.port).await.unwrap();
        for (kind, last) in KINDS.iter().zip(&mut last) {
            let there = policy_there_is(&mut client, kind).await;
            // The one that was being set when the process was killed may have been set, too.
            assert!(
                there == *last || there == *last + 1,
                "round {round}: {there} of {kind}, {last} was told"
            );
            *last = there;
        }
        let (_, published) = client.send("GET", "/certs", String::new()).await.unwrap();
        assert_eq!(*keys.get_or_insert_with(|| published.clone()), published, "keys changed");
        let told: [Arc<AtomicU64>; 2] = last.map(|last| Arc::new(AtomicU64::new(last)));
        let writers: Vec<_> = KINDS
            .into_iter()
            .zip(&told)
            .map(|(kind, told)| {
                let (told, port) = (Arc::clone(told), process.port);
                tokio::spawn(async move {
                    let Some(mut client) = Client::connect(port).await else { return };
                    let path = format!("/policies/{kind}?api-version=2025-06-01");
                    for number in told.load(Ordering::SeqCst) + 1.. {
                        match client.send("PUT", &path, policy(number)).await {
                            Some((StatusCode::OK, _)) => told.store(number, Ordering::SeqCst),
                            Some((status, body)) => panic!("{status}: {body}"),
                            None => return,
                        }
                    }
                })
            })
            .collect();
        // How many can be set in a time is the disk's to say.
        let told_now = || told.iter().map(|told| told.load(Ordering::SeqCst)).sum::<u64>();
        eventually(async || told_now() >= last.iter().sum::<u64>() + 4).await;
        tokio::time::sleep(Duration::from_millis(random.below(150) as u64)).await;
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
        for (last, told) in last.iter_mut().zip(&told) {
            let told = told.load(Ordering::SeqCst);
            acknowledged_in_all += told - *last;
            *last = told;
        }
    }
    assert!(acknowledged_in_all > 100, "only {acknowledged_in_all} policies were set");
}

/// Waits until something is so, for a minute at most.
async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so().await {
        assert!(Instant::now() < until, "it never was");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_hand_is_finished_when_the_service_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    configuration(folder.path(), "");
    let mut process = Process::start(folder.path());
    let mut client = Client::connect(process.port).await.unwrap();
    // A body that comes slowly: begun before the service is told to stop, complete after.
    let body = policy(7);
    let (head, rest) = body.split_at(10);
    let (head, rest) = (head.to_owned(), rest.to_owned());
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let stream = in_two_parts(head, gone, rest);
    let request = Request::put(POLICY).header("host", "localhost").header("content-length", body.len());
    let answer = client.0.send_request(request.body(stream).unwrap());
    let answer = tokio::spawn(answer);
    // For the service to have begun with it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    process.signal("TERM");
    // New connections are no longer accepted.
    eventually(async || Client::connect(process.port).await.is_none()).await;
    go.send(()).unwrap();
    assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK);
    let status = tokio::task::block_in_place(|| process.child.wait()).unwrap();
    assert!(status.success(), "{status}");
    let again = Process::start(folder.path());
    let mut client = Client::connect(again.port).await.unwrap();
    assert_eq!(policy_there_is(&mut client, "SgxEnclave").await, 7);
}

/// A body of two parts, the second when it may.
fn in_two_parts(head: String, gone: tokio::sync::oneshot::Receiver<()>, rest: String) -> Body {
    let (mut sender, body) = tokio::io::duplex(64);
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        sender.write_all(head.as_bytes()).await.unwrap();
        gone.await.unwrap();
        sender.write_all(rest.as_bytes()).await.unwrap();
    });
    Body::from_stream(tokio_util::io::ReaderStream::new(body))
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_json_and_keep_secrets_and_metrics_count() {
    let folder = tempfile::tempdir().unwrap();
    configuration(folder.path(), "limits = { body_bytes = 20000 }");
    let mut process = Process::start(folder.path());
    println!("start: {:.0} ms", process.started_in.as_secs_f64() * 1e3);
    let mut client = Client::connect(process.port).await.unwrap();
    let secret = "correct-horse-battery-staple";
    let attest = "/attest/SgxEnclave?api-version=2022-08-01";
    let body = json!({ "quote": base64url(QUOTE), "nonce": secret }).to_string();
    let (status, answer) = client.send("POST", attest, body).await.unwrap();
    assert_eq!(status, StatusCode::OK, "{answer}");
    for (method, path, body, status) in [
        ("POST", format!("{attest}&code={secret}"), secret.to_owned(), 400),
        ("PUT", format!("{POLICY}&code={secret}"), secret.to_owned(), 400),
        ("GET", format!("/{secret}"), String::new(), 404),
        ("POST", attest.to_owned(), "x".repeat(20_001), 413),
    ] {
        let mut client = Client::connect(process.port).await.unwrap();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {secret}"));
        let response = client.0.send_request(request.body(Body::from(body)).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert!(response.headers().contains_key("x-ms-request-id"));
        let body = to_bytes(Body::new(response.into_body()), 1 << 20).await.unwrap();
        let error: Value = serde_json::from_slice(&body).unwrap();
        assert!(error["error"]["code"].is_string() && error["error"]["message"].is_string(), "{error}");
    }
    let (_, metrics) = client.send("GET", "/metrics", String::new()).await.unwrap();
    for line in [
        "enclos_attestation_requests_total{route=\"attest\",status=\"2xx\"} 1",
        "enclos_attestation_requests_total{route=\"attest\",status=\"4xx\"} 2",
        "enclos_attestation_requests_total{route=\"set_policy\",status=\"4xx\"} 1",
        "enclos_attestation_requests_total{route=\"none\",status=\"4xx\"} 1",
        "enclos_attestation_request_seconds_count{route=\"attest\"} 3",
        "enclos_attestation_signing_keys 1",
        "enclos_attestation_collateral_platforms 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    drop(client);
    process.signal("INT");
    assert!(process.child.wait().unwrap().success());
    let lines: Vec<String> = std::iter::from_fn(|| {
        let mut line = String::new();
        (process.log.read_line(&mut line).unwrap() > 0).then_some(line)
    })
    .collect();
    assert!(lines.len() >= 6);
    for line in lines {
        assert!(!line.contains(secret), "{line}");
        serde_json::from_str::<Value>(&line).unwrap();
    }
}
