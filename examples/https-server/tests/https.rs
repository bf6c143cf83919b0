//! The server inside an enclave, driven by curl and openssl from outside, while the host writes down all it sees.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use enclos_host::{Enclave, PlatformChoice};
use enclos_pack::{Config, Date, SigningKey, build_application};

/// In every request and answer; must be in nothing that the host sees.
const SECRET: &str = "attorney-client-privilege";

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn image() -> Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(build).clone()
}

fn build() -> Vec<u8> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::load(&project.join("enclos.toml")).unwrap();
    let mut image = build_application(project, &config, &mut |_| {}).unwrap();
    let pem = include_str!("../../vault/host/tests/data/test-only-signer.pem");
    image.sign(&SigningKey::from_pem(pem).unwrap(), Date::from_unix(1_700_000_000)).unwrap();
    image.to_file_bytes()
}

struct Server {
    enclave: Enclave,
    address: String,
    certificate: PathBuf,
}

impl Server {
    fn curl(&self, arguments: &[&str], path: &str, body: Option<&[u8]>) -> Output {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(&self.certificate);
        command.args(arguments).arg(format!("https://{}{path}", self.address));
        if body.is_some() {
            command.args(["--data-binary", "@-"]).stdin(Stdio::piped());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let (Some(body), Some(mut to)) = (body, child.stdin.take()) {
            to.write_all(body).unwrap();
        }
        child.wait_with_output().unwrap()
    }

    fn get(&self, path: &str) -> String {
        let out = self.curl(&[], path, None);
        assert!(out.status.success(), "{}\n{:?}", String::from_utf8_lossy(&out.stderr), self.enclave.end());
        String::from_utf8(out.stdout).unwrap()
    }
}

#[test]
fn the_host_relays_what_it_cannot_read() {
    let out = Captured::default();
    let (seen_plain, seen_cipher) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (plain, cipher) = (seen_plain.clone(), seen_cipher.clone());
    let reversed: String = SECRET.chars().rev().collect();
    let host_sees = move |call: &mut enclos_host::HostCall<'_>| {
        // All that the enclave shares with the host, at every request: 64 KiB of frame.
        for needle in [SECRET.as_bytes(), reversed.as_bytes()] {
            if call.frame.windows(needle.len()).any(|w| w == needle) {
                plain.store(true, Ordering::Relaxed);
            }
        }
        let is_data = [enclos::abi::hostcall::SEND, enclos::abi::hostcall::RECV].contains(&call.number);
        cipher.fetch_add(if is_data { call.result.max(0) as u64 } else { 0 }, Ordering::Relaxed);
        call.result
    };
    let enclave = Enclave::builder(image())
        .platform(PlatformChoice::Emulated)
        .arg("127.0.0.1:0")
        .stdout(out.clone())
        .inspect_host_calls(host_sees)
        .start()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while !out.text().contains("listening on") {
        assert!(enclave.end().is_none() && Instant::now() < until, "{:?}\n{}", enclave.end(), out.text());
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = out.text();
    let (certificate, rest) = text.split_once("listening on https://").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("certificate.pem");
    std::fs::write(&path, certificate).unwrap();
    let server = Server { enclave, address: rest.trim().to_owned(), certificate: path };

    assert_eq!(server.get(&format!("/{SECRET}")), format!("Hello from /{SECRET}\n"));
    let body: Vec<u8> = SECRET.bytes().cycle().take(300_000).collect();
    let answer = server.curl(&["--http1.1"], "/", Some(&body)).stdout;
    assert!(answer.iter().eq(body.iter().rev()), "{} bytes", answer.len());
    let answer = server.curl(&["--tls-max", "1.2"], &format!("/{SECRET}"), None);
    assert!(answer.status.success());
    // Many at once, and clients that stall or talk nonsense.
    let stalled: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(&server.address).unwrap()).collect();
    let mut nonsense = std::net::TcpStream::connect(&server.address).unwrap();
    nonsense.write_all(&[0x16; 4096]).unwrap();
    std::thread::scope(|s| {
        for i in 0..8 {
            let server = &server;
            s.spawn(move || assert_eq!(server.get(&format!("/{i}")), format!("Hello from /{i}\n")));
        }
    });
    drop(stalled);
    let openssl = Command::new("openssl")
        .args(["s_client", "-brief", "-tls1_3", "-verify_return_error", "-CAfile"])
        .arg(&server.certificate)
        .args(["-connect", &server.address])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&openssl.stderr).into_owned();
    assert!(openssl.status.success() && said.contains("TLSv1.3"), "{said}");

    assert_eq!(server.curl(&["--request", "POST"], "/shutdown", None).stdout, b"bye\n");
    assert_eq!(server.enclave.wait(), Ok(0));
    assert!(seen_cipher.load(Ordering::Relaxed) > 600_000, "the host did relay it");
    assert!(!seen_plain.load(Ordering::Relaxed), "the host saw what was said");
}

#[test]
fn other_addresses_are_refused() {
    let (err, logged) = (Captured::default(), Captured::default());
    let log = logged.0.clone();
    let enclave = Enclave::builder(image())
        .platform(PlatformChoice::Emulated)
        .arg("0.0.0.0:0")
        .stderr(err.clone())
        .log(move |_, text| log.lock().unwrap().extend_from_slice(text.as_bytes()))
        .start()
        .unwrap();
    assert_eq!(enclave.wait(), Ok(1));
    assert!(err.text().contains("Permission denied"), "{}", err.text());
    assert!(logged.text().contains("does not permit to listen on 0.0.0.0:0"), "{}", logged.text());
}
