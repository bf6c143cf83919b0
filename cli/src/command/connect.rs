//! `enclos connect`

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use enclos_attested_tls::{CollateralSource, OfflineCollateral, Peer, PeerVerifier, Refusal};
use enclos_verifier::{Collateral, Policy};
use rustls::pki_types::ServerName;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use super::{Error, Outcome, read, say_json};
use crate::provisioning::Provisioning;
use crate::ui::{BAD, GOOD, Ui, WARN, say};

/// The peer is refused.
const REFUSED: u8 = 4;
/// How long a peer may take to connect, and for each answer of the handshake.
const PATIENCE: Duration = Duration::from_secs(20);

const EXAMPLES: &str = "\
Examples:
  enclos connect localhost:8443 --policy policy.toml --collateral collateral.json
  enclos connect localhost:8443 --policy policy.toml --collateral c.json --check --json
  enclos connect localhost:8443 --policy policy.toml --pccs https://localhost:8081/sgx/certification/v4/
  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | enclos connect localhost:8443 --policy p.toml --collateral c.json

The server must show evidence in its certificate (docs/attested-tls.md). Without a policy everything has its strictest value;
emulated servers are refused unless the policy names their root. What the server is goes to standard error (with --check to
standard output); then standard input and output are the connection's.

Exit codes:
  0    accepted, and the connection ended in order
  1    no connection, or a file that is not usable
  2    wrong usage
  4    the server is refused; the reasons are said";

/// Connect to an attested TLS server, say what it is and why it is trusted, and talk to it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// HOST:PORT
    address: String,
    /// The policy, TOML (or JSON, if it is called *.json); default: the strictest
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Collateral of the server's platform, JSON
    #[arg(long, value_name = "FILE", conflicts_with = "pccs", required_unless_present = "pccs")]
    collateral: Option<PathBuf>,
    #[command(flatten)]
    provisioning: Provisioning,
    /// Say what the server is, and send nothing
    #[arg(long)]
    check: bool,
    /// What the server is as JSON, on standard output; needs --check
    #[arg(long, requires = "check")]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let verifier = Arc::new(verifier(args)?);
    let mut stream = connect(args, &verifier)?;
    while stream.conn.is_handshaking() {
        let shaken = stream.conn.complete_io(&mut stream.sock);
        match shaken.as_ref().err().map(|error| (error, Refusal::of_io(error))) {
            None => {}
            Some((_, Some(refusal))) => return Ok(refused(refusal, ui)),
            Some((error, None)) => return Err(failed(args, "the TLS handshake failed", error)),
        }
    }
    let peer = match verifier.peer(&stream.conn) {
        Ok(peer) => peer,
        Err(refusal) => return Ok(refused(&refusal, ui)),
    };
    accepted(args, &stream.conn, &peer, ui);
    if args.check {
        stream.conn.send_close_notify();
        // The answer is known; whether the server hears the farewell does not matter.
        let _ = stream.conn.complete_io(&mut stream.sock);
        return Ok(ExitCode::SUCCESS);
    }
    relay(stream).map_err(|error| failed(args, "the connection failed", &error))?;
    Ok(ExitCode::SUCCESS)
}

fn verifier(args: &Args) -> Result<PeerVerifier, Error> {
    let unusable = |path: &PathBuf, cause: &dyn std::fmt::Display| {
        Error::Peer(format!("{} is not usable: {cause}", path.display()))
    };
    let policy = match &args.policy {
        None => Policy::default(),
        Some(path) => {
            let text = String::from_utf8(read(path)?).map_err(|e| unusable(path, &e))?;
            let parsed = match path.extension().is_some_and(|e| e == "json") {
                true => Policy::from_json(&text),
                false => Policy::from_toml(&text),
            };
            parsed.map_err(|e| unusable(path, &e))?
        }
    };
    let source: Arc<dyn CollateralSource> = match (args.provisioning.source(&policy)?, &args.collateral) {
        (Some(source), _) => source,
        (None, Some(path)) => {
            let collateral = Collateral::from_json(&read(path)?).map_err(|e| unusable(path, &e))?;
            Arc::new(OfflineCollateral(Arc::new(collateral)))
        }
        (None, None) => return Err(Error::Usage("give --collateral or --pccs".into())),
    };
    Ok(PeerVerifier::new(policy, source, Arc::new(DefaultTimeProvider)))
}

fn connect(
    args: &Args,
    verifier: &Arc<PeerVerifier>,
) -> Result<StreamOwned<ClientConnection, TcpStream>, Error> {
    let usage = || Error::Usage(format!("{} is not HOST:PORT", args.address));
    let (host, _) = args.address.rsplit_once(':').ok_or_else(usage)?;
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| usage())?;
    let no = |error: &io::Error| failed(args, "cannot connect", error);
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in args.address.to_socket_addrs().map_err(|e| no(&e))? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).map_err(|e| no(&e))?;
                let config = verifier.client_config(None);
                let connection = config.and_then(|config| ClientConnection::new(Arc::new(config), name));
                let connection = connection.map_err(|e| no(&io::Error::other(e)))?;
                return Ok(StreamOwned::new(connection, stream));
            }
            Err(error) => refused = error,
        }
    }
    Err(no(&refused))
}

fn failed(args: &Args, what: &str, cause: &io::Error) -> Error {
    Error::Peer(format!("{what}: {}: {cause}", args.address))
}

/// Says why a server is refused.
pub(super) fn refused(refusal: &Refusal, ui: Ui) -> ExitCode {
    let verdict = match refusal {
        Refusal::Policy(verdict) => Some(verdict),
        _ => None,
    };
    if ui.json() {
        say_json(&json!({ "accepted": false, "reason": refusal.to_string(), "verdict": verdict }));
    } else {
        match verdict {
            Some(verdict) => anstream::eprintln!("{verdict}"),
            None => anstream::eprintln!("{BAD}REFUSED{BAD:#}\n  - {refusal}"),
        }
    }
    ExitCode::from(REFUSED)
}

fn accepted(args: &Args, connection: &ClientConnection, peer: &Peer, ui: Ui) {
    let version = connection.protocol_version().and_then(|v| v.as_str()).unwrap_or("TLS");
    let suite = connection.negotiated_cipher_suite();
    let cipher = suite.and_then(|s| s.suite().as_str()).unwrap_or("unknown");
    if ui.json() {
        return say_json(&json!({
            "accepted": true,
            "tls": { "version": version, "cipher": cipher, "key": peer.evidence.key, "certificate": peer.certificate },
            "verdict": peer.verdict,
        }));
    }
    if ui.quiet() {
        return;
    }
    let style = if peer.verdict.emulated { WARN } else { GOOD };
    let text = format!(
        "{}\n{style}{version}{style:#} {cipher}; SHA-256 of the server's key {}",
        peer.verdict.to_string().trim_end(),
        peer.evidence.key
    );
    if args.check { say!("{text}") } else { anstream::eprintln!("{text}") }
}

/// Bytes for the socket; the sender is dropped when they are written.
type Outgoing = (Vec<u8>, Option<mpsc::Sender<()>>);

/// Standard input to the server, and what it sends to standard output, until it closes.
///
/// Three threads: one reads standard input, one writes to the socket, this one reads from it. The TLS state is locked
/// only for work in memory, never while waiting, so a server that answers before it has read everything blocks nobody.
fn relay(stream: StreamOwned<ClientConnection, TcpStream>) -> io::Result<()> {
    let StreamOwned { conn, sock } = stream;
    sock.set_read_timeout(None)?;
    let mut incoming = sock.try_clone()?;
    let (outgoing, queue) = mpsc::channel::<Outgoing>();
    // A socket that takes nothing more ends the threads; this one sees on reading why.
    thread::spawn(move || queue.into_iter().try_for_each(|(bytes, _written)| (&sock).write_all(&bytes)));
    let connection = Arc::new(Mutex::new(conn));
    let (input, sending) = (Arc::clone(&connection), outgoing.clone());
    // Ends with the process: reading standard input cannot be interrupted.
    thread::spawn(move || send_input(&input, &sending));
    let mut bytes = [0; 16 * 1024];
    loop {
        let count = incoming.read(&mut bytes)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server ended the connection without TLS's close: what it sent may be cut short",
            ));
        }
        let (plain, closed) = receive(&mut lock(&connection), &bytes[..count], &outgoing)?;
        io::stdout().write_all(&plain)?;
        io::stdout().flush()?;
        if closed {
            return Ok(());
        }
    }
}

fn send_input(connection: &Mutex<ClientConnection>, outgoing: &mpsc::Sender<Outgoing>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let count = io::stdin().read(&mut buffer)?;
        let (done, written) = mpsc::channel();
        {
            let mut connection = lock(connection);
            match count {
                0 => connection.send_close_notify(),
                count => connection.writer().write_all(&buffer[..count])?,
            }
            forward(&mut connection, outgoing, Some(done))?;
        }
        // Nothing is ever sent here: it ends when the bytes are written, or never will be.
        let _ = written.recv();
        if count == 0 {
            return Ok(());
        }
    }
}

/// What bytes of the server say, and whether it has closed.
fn receive(
    connection: &mut ClientConnection,
    mut bytes: &[u8],
    outgoing: &mpsc::Sender<Outgoing>,
) -> io::Result<(Vec<u8>, bool)> {
    let (mut plain, mut closed) = (Vec::new(), false);
    while !bytes.is_empty() && !closed {
        connection.read_tls(&mut bytes)?;
        let state = connection.process_new_packets().map_err(io::Error::other)?;
        closed = state.peer_has_closed();
        let from = plain.len();
        plain.resize(from + state.plaintext_bytes_to_read(), 0);
        connection.reader().read_exact(&mut plain[from..])?;
    }
    forward(connection, outgoing, None)?;
    Ok((plain, closed))
}

/// Queues what the TLS state has to send. Called under its lock, so that records stay in order.
fn forward(
    connection: &mut ClientConnection,
    outgoing: &mpsc::Sender<Outgoing>,
    written: Option<mpsc::Sender<()>>,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes)?;
    }
    // When the writing thread has ended, reading says why.
    let _ = outgoing.send((bytes, written));
    Ok(())
}

fn lock(connection: &Mutex<ClientConnection>) -> MutexGuard<'_, ClientConnection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
