//! The server inside when it is crowded: ten thousand connections, clients that stall, and a host that has run out of
//! descriptors. The host is a process of its own, with its own limit of descriptors.
#![forbid(unsafe_code)]

mod support;

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use enclos_host::{Enclave, PlatformChoice};
use support::{Captured, image};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// Tells a process started by a test what it is for: the image's path, then the program's arguments, one a line.
const HOST: &str = "ENCLOS_TEST_HOST";
/// Likewise: this is the process in which a test has as many descriptors as it needs.
const RAISED: &str = "ENCLOS_TEST_RAISED";

/// This test's program, to run the one test of that name, with this limit of descriptors.
fn in_a_process(test: &str, descriptors: u32) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n \"$1\" && shift && exec \"$@\"", "sh"])
        .arg(descriptors.to_string())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--include-ignored", "--nocapture"]);
    command
}

/// A host with the server inside.
struct Host {
    process: Child,
    address: String,
    roots: Arc<ClientConfig>,
    err: Captured,
    _folder: tempfile::TempDir,
}

impl Host {
    fn start(heap: &'static str, descriptors: u32, connections: u32, patience: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("https-server.enclave");
        std::fs::write(&path, image(heap)).unwrap();
        let mut process = in_a_process("a_host_process", descriptors)
            .env(HOST, format!("{}\n127.0.0.1:0\n{connections}\n{patience}", path.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (err, mut from) = (Captured::default(), process.stderr.take().unwrap());
        let mut to = err.clone();
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        let (mut text, mut out) = (String::new(), BufReader::new(process.stdout.take().unwrap()));
        while !text.ends_with('\n') || !text.contains("listening on") {
            assert_ne!(out.read_line(&mut text).unwrap(), 0, "it ended:\n{text}\n{}", err.text());
        }
        let (before, address) = text.split_once("listening on https://").unwrap();
        let certificate = &before[before.find("-----BEGIN").unwrap()..];
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
        let roots = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let address = address.trim().to_owned();
        // Whatever else it prints, somebody reads it.
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        Self { process, address, roots: Arc::new(roots), err, _folder: folder }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// A connection after its handshake.
    fn client(&self) -> Tls {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream =
            StreamOwned::new(ClientConnection::new(self.roots.clone(), name).unwrap(), self.connect());
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// One request on a connection that stays open.
fn get(stream: &mut Tls, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let expected = format!("Hello from {path}\n");
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(expected.as_bytes()) {
        let n = stream.read(&mut buffer).unwrap();
        assert_ne!(n, 0, "it closed: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..n]);
    }
}

fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    // Something to read (TLS 1.3 sends tickets after the handshake), or nothing yet; not the end.
    match peeked {
        Ok(n) => n != 0,
        Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// Not a test but what the others start.
#[test]
#[ignore = "the other tests start it in a process of its own"]
fn a_host_process() {
    let Ok(what) = std::env::var(HOST) else { return };
    let mut lines = what.lines();
    let image = std::path::Path::new(lines.next().unwrap());
    let enclave = Enclave::builder(image).platform(PlatformChoice::Emulated).args(lines).start().unwrap();
    assert_eq!(enclave.wait(), Ok(0));
}

/// The beginning of a ClientHello of 512 bytes.
const HALF_A_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 7, 7, 7, 7, 7, 7, 7];

#[test]
fn ten_thousand_connections_do_not_disturb_others() {
    const ALL: usize = 10_000;
    const DESCRIPTORS: u32 = 10_500;
    if std::env::var_os(RAISED).is_none() {
        let status = in_a_process("ten_thousand_connections_do_not_disturb_others", DESCRIPTORS)
            .env(RAISED, "1")
            .status()
            .unwrap();
        assert!(status.success(), "if the limit could not be set: it needs `ulimit -Hn` of {DESCRIPTORS}");
        return;
    }
    let host = Host::start("384 MiB", DESCRIPTORS, 11_000, 600);
    let mut first = host.client();
    get(&mut first, "/first");
    let begun = Instant::now();
    let mut stalled = Vec::new();
    for i in 0..ALL - 200 {
        let mut stream = host.connect();
        if i % 2 == 0 {
            stream.write_all(HALF_A_HELLO).unwrap();
        }
        stalled.push(stream);
        // A queue of connections to accept that is full costs whoever comes next a second.
        if i % 64 == 0 {
            get(&mut first, "/pace");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut half: Vec<Tls> = (0..195).map(|_| host.client()).collect();
    for stream in &mut half {
        stream.write_all(b"GET /half HTTP/1.1\r\nHost: loc").unwrap();
    }
    // These ask for megabytes and do not read them.
    let body = vec![0x55; 4 << 20];
    let mut deaf: Vec<Tls> = (0..5).map(|_| host.client()).collect();
    for stream in &mut deaf {
        write!(stream, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len())
            .unwrap();
        stream.write_all(&body).unwrap();
    }
    let connected = begun.elapsed();

    let begun = Instant::now();
    get(&mut first, "/still-here");
    for i in 0..50 {
        get(&mut host.client(), &format!("/{i}"));
    }
    let served = begun.elapsed();
    let open = stalled.iter().filter(|s| is_open(s)).count()
        + half.iter().filter(|s| is_open(&s.sock)).count()
        + deaf.len();
    assert_eq!(open, ALL, "{}", host.err.text());
    println!("{ALL} connections in {connected:.1?}, then 50 clients served in {served:.1?}");
    // Those who stalled may go on at any time.
    for stream in half.iter_mut().step_by(40) {
        stream.write_all(b"alhost\r\n\r\n").unwrap();
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..n]));
    }
    let mut reversed = Vec::new();
    let mut buffer = vec![0; 65536];
    while reversed.len() < body.len() {
        let n = deaf[0].read(&mut buffer).unwrap();
        assert_ne!(n, 0);
        reversed.extend_from_slice(&buffer[..n]);
    }
    assert!(reversed.ends_with(&[0x55; 1 << 20]));
}

#[test]
fn a_client_that_stalls_is_dropped() {
    // On a busy machine, those who do not stall must be served within it as well.
    let host = Host::start("96 MiB", 1000, 1000, 5);
    let (mut half_a_hello, silent) = (host.connect(), host.connect());
    half_a_hello.write_all(HALF_A_HELLO).unwrap();
    let mut half_a_request = host.client();
    half_a_request.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    get(&mut host.client(), "/meanwhile");
    for mut stream in [half_a_hello, silent, half_a_request.sock] {
        // Whatever it says before it closes, it closes.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    get(&mut host.client(), "/afterwards");
}

#[test]
fn a_host_out_of_descriptors_goes_on() {
    let host = Host::start("96 MiB", 60, 1000, 600);
    let mut first = host.client();
    get(&mut first, "/first");
    // More than it can accept; the rest waits in the kernel's queue.
    let crowd: Vec<_> = (0..100).map(|_| host.connect()).collect();
    let until = Instant::now() + Duration::from_secs(20);
    while !host.err.text().contains("cannot accept: Too many open files") {
        assert!(Instant::now() < until, "{}", host.err.text());
        std::thread::sleep(Duration::from_millis(5));
    }
    get(&mut first, "/meanwhile");
    drop(crowd);
    get(&mut host.client(), "/afterwards");
    get(&mut first, "/still-here");
}
