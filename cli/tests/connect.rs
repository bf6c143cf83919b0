//! `enclos connect` against an attested server on the emulated platform.
#![forbid(unsafe_code)]

#[path = "../../verifier/tls/tests/common/mod.rs"]
mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use common::{Clock, Platform};
use enclos_attested_tls::{AttestedIdentity, CertificateOptions};
use enclos_verifier::Time;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// A server that answers with what it is sent while it is sent, for so many connections; its port.
fn echo(platform: &Arc<Platform>, connections: usize) -> u16 {
    let clock = Clock::at(Time::now().0);
    let identity = AttestedIdentity::new(platform.attester(), CertificateOptions::default(), clock).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(identity));
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for _ in 0..connections {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let mut bytes = [0; 16 * 1024];
            // A client that refuses, or only checks, goes away; what arrives is for the test to say.
            loop {
                match stream.read(&mut bytes) {
                    Ok(0) | Err(_) => break,
                    Ok(count) if stream.write_all(&bytes[..count]).is_err() => break,
                    Ok(_) => {}
                }
            }
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    port
}

fn connect(folder: &Path, port: u16, more: &[&str], input: &[u8]) -> Output {
    connect_with(&["--collateral", "collateral.json"], folder, port, more, input)
}

fn connect_with(collateral: &[&str], folder: &Path, port: u16, more: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_enclos"))
        .current_dir(folder)
        .args(["connect", &format!("127.0.0.1:{port}")])
        .args(collateral)
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        // Who refuses reads nothing.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

#[test]
fn judges_says_why_and_relays() {
    let platform = Platform::new();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let collateral = platform.quoting.collateral(Time::now()).unwrap();
    fs::write(here.join("collateral.json"), serde_json::to_vec(&collateral).unwrap()).unwrap();
    fs::write(here.join("strict.toml"), "any_identity = true\n").unwrap();
    let root = platform.quoting.root_key_id();
    fs::write(here.join("told.toml"), format!("any_identity = true\nemulated_roots = [\"{root}\"]\n"))
        .unwrap();
    let port = echo(&platform, 5);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();

    // Refused by default, with reasons, and nothing was sent or received.
    for policy in [&[][..], &["--policy", "strict.toml"]] {
        let output = connect(here, port, policy, b"secret");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains("REFUSED") && said.contains("unknown root"), "{said}");
        assert!(output.stdout.is_empty());
    }
    let output = connect(here, port, &["--policy", "strict.toml", "--check", "--json"], b"");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &said["accepted"]), (Some(4), &Value::Bool(false)));
    assert!(said["verdict"]["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{said}");

    // Told the root: accepted, and said to be emulated.
    let output = connect(here, port, &["--policy", "told.toml", "--check", "--json"], b"");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said["verdict"]["emulated"], true);
    assert_eq!(said["tls"]["version"], "TLSv1_3");

    // More than fits into a record or a socket's buffer.
    let input: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let output = connect(here, port, &["--policy", "told.toml"], &input);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("EMULATED") && said.contains("TLSv1_3"), "{said}");
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
}

#[cfg(feature = "pccs")]
#[test]
fn collateral_comes_from_a_provisioning_service() {
    let platform = Platform::new();
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let root = platform.quoting.root_key_id();
    fs::write(here.join("strict.toml"), "any_identity = true\n").unwrap();
    fs::write(here.join("told.toml"), format!("any_identity = true\nemulated_roots = [\"{root}\"]\n"))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/sgx/certification/v4/", listener.local_addr().unwrap());
    let quoting = platform.quoting.clone();
    thread::spawn(move || enclos_quoting::serve_pccs(listener, quoting, std::future::pending()));
    let port = echo(&platform, 3);
    let pccs = ["--pccs", &url, "--pccs-cache", "kept"];
    let output = connect_with(&pccs, here, port, &["--policy", "strict.toml"], b"secret");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("REFUSED") && output.stdout.is_empty(), "{said}");
    // The second time from what is kept.
    for _ in 0..2 {
        let output = connect_with(&pccs, here, port, &["--policy", "told.toml"], b"secret");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains("EMULATED"), "{said}");
        assert_eq!(output.stdout, b"secret");
    }
    assert_eq!(fs::read_dir(here.join("kept")).unwrap().count(), 1);
}

#[test]
fn failures_have_their_own_codes() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("collateral.json"), "{}").unwrap();
    let output = connect(folder.path(), 1, &[], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("collateral.json is not usable"));
    assert_eq!(connect(folder.path(), 1, &["--json"], b"").status.code(), Some(2), "--json needs --check");
}
