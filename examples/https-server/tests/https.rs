//! The server inside an enclave, driven by curl and openssl from outside, while the host writes down all it sees.
#![forbid(unsafe_code)]

mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use enclos::abi::hostcall;
use enclos_host::{Enclave, HostCall, PlatformChoice};
use support::{Captured, image};

/// In every request and answer; must be in nothing that the host sees.
const SECRET: &str = "attorney-client-privilege";

struct Server {
    enclave: Enclave,
    address: String,
    certificate: PathBuf,
    _folder: tempfile::TempDir,
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

/// Starts the server with a host that does with requests what the function says.
fn start(sees: impl Fn(&mut HostCall<'_>) -> i64 + Send + Sync + 'static, err: Captured) -> Server {
    let out = Captured::default();
    let enclave = Enclave::builder(image("96 MiB"))
        .platform(PlatformChoice::Emulated)
        .arg("127.0.0.1:0")
        .stdout(out.clone())
        .stderr(err)
        .inspect_host_calls(sees)
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
    Server { enclave, address: rest.trim().to_owned(), certificate: path, _folder: folder }
}

/// What the host saw, in each direction.
#[derive(Default)]
struct Seen {
    /// The secret, anywhere.
    secret: AtomicBool,
    /// What TLS does not hide, as a proof that the search finds what is there: the protocol name in a ClientHello
    /// (RFC 7301), and before TLS 1.3 the name in the server's certificate.
    plain: [AtomicBool; 2],
    bytes: [AtomicU64; 2],
}

#[test]
fn the_host_relays_what_it_cannot_read() {
    let seen = Arc::new(Seen::default());
    let reversed: String = SECRET.chars().rev().collect();
    let sees = seen.clone();
    let server = start(
        move |call| {
            let has = |what: &[u8]| call.frame.windows(what.len()).any(|w| w == what);
            // All that the enclave shares with the host, at every request: 64 KiB of frame.
            if has(SECRET.as_bytes()) || has(reversed.as_bytes()) {
                sees.secret.store(true, Ordering::Relaxed);
            }
            let (direction, public) = match call.number {
                hostcall::RECV => (0, "http/1.1"),
                hostcall::SEND => (1, "rcgen self signed cert"),
                _ => return call.result,
            };
            sees.bytes[direction].fetch_add(call.result.max(0) as u64, Ordering::Relaxed);
            sees.plain[direction].fetch_or(has(public.as_bytes()), Ordering::Relaxed);
            call.result
        },
        Captured::default(),
    );
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
    for direction in [0, 1] {
        assert!(seen.bytes[direction].load(Ordering::Relaxed) > 300_000, "the host did relay it");
        assert!(seen.plain[direction].load(Ordering::Relaxed), "what is plain was not found: {direction}");
    }
    assert!(!seen.secret.load(Ordering::Relaxed), "the host saw what was said");
}

#[test]
fn a_host_without_room_for_more_is_an_error_that_passes() {
    const TIMES: u64 = 6;
    let (err, told) = (Captured::default(), AtomicU64::new(0));
    let server = start(
        move |call| match call.number {
            // No connection is lost by it: there was none.
            hostcall::ACCEPT if call.result == -i64::from(libc::EAGAIN) => {
                match told.fetch_add(1, Ordering::Relaxed) {
                    n @ ..TIMES => -i64::from([libc::ENFILE, libc::ENOMEM, libc::ENOBUFS][n as usize % 3]),
                    _ => call.result,
                }
            }
            _ => call.result,
        },
        err.clone(),
    );
    for i in 0..4 {
        assert_eq!(server.get(&format!("/{i}")), format!("Hello from /{i}\n"));
    }
    assert!(err.text().contains("cannot accept: Too many open files in system"), "{}", err.text());
}

#[test]
fn the_host_may_ask_it_to_stop() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let server = start(|call| call.result, Captured::default());
        assert_eq!(server.get("/"), "Hello from /\n");
        server.enclave.signal(signal).unwrap();
        assert_eq!(server.enclave.wait(), Ok(0));
    }
}

#[test]
fn other_addresses_are_refused() {
    let (err, logged) = (Captured::default(), Arc::new(Mutex::new(String::new())));
    let log = logged.clone();
    let enclave = Enclave::builder(image("96 MiB"))
        .platform(PlatformChoice::Emulated)
        .arg("0.0.0.0:0")
        .stderr(err.clone())
        .log(move |_, text| log.lock().unwrap().push_str(text))
        .start()
        .unwrap();
    assert_eq!(enclave.wait(), Ok(1));
    assert!(err.text().contains("Permission denied"), "{}", err.text());
    let logged = logged.lock().unwrap();
    assert!(logged.contains("does not permit to listen on 0.0.0.0:0"), "{logged}");
}
