//! An HTTPS server of tokio, hyper and rustls: the same program inside an enclave and outside.
//!
//! It makes its key when it starts. Inside, the key never leaves the enclave, and what goes through the host is TLS: the
//! host relays it and cannot read it. The certificate goes to standard output, so that clients can be told to trust it;
//! who must not trust the host for that takes it from attested TLS or a quote.
//!
//! ```text
//! enclos run examples/https-server -- 127.0.0.1:8443
//! curl --cacert certificate.pem https://localhost:8443/hello
//! ```
//! `GET /…` greets, `POST /…` answers with the body in reverse, `POST /shutdown`, SIGINT and SIGTERM end the server.
//!
//! More arguments: how many connections it serves at once (others wait in the kernel's queue), and for how many seconds it
//! has patience with a client that stalls in its handshake or in the head of a request. In a body it has a minute's. A
//! client that does not read its answer keeps its place and disturbs nobody.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Where it listens unless told otherwise.
const ADDRESS: &str = "127.0.0.1:8443";
/// Largest request body in bytes.
const MAX_BODY: usize = 16 << 20;
/// Connections served at once unless told otherwise: with large requests they need the most of 96 MiB of heap.
const CONNECTIONS: usize = 1000;
/// How long a client may take for its handshake, and for the head of a request, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for the body.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot configure TLS: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    #[error("cannot listen on {address}: {source}; inside, [network] in enclos.toml must list it")]
    Listen { address: String, source: std::io::Error },
    #[error("cannot start: {0}")]
    Start(std::io::Error),
    #[error("{0:?} is not a number above 0; usage: https-server [ADDRESS [CONNECTIONS [SECONDS]]]")]
    Number(String),
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("https-server: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| ADDRESS.to_owned());
    let connections = number(2)?.map_or(CONNECTIONS, |n| n as usize);
    let patience = number(3)?.map_or(PATIENCE, |n| Duration::from_secs(n.into()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(Error::Start)?.block_on(serve(&address, connections, patience))
}

/// An argument that is a number, if it is there.
fn number(index: usize) -> Result<Option<u32>, Error> {
    let Some(text) = std::env::args().nth(index) else { return Ok(None) };
    match text.parse() {
        Ok(n) if n != 0 => Ok(Some(n)),
        _ => Err(Error::Number(text)),
    }
}

async fn serve(address: &str, connections: usize, patience: Duration) -> Result<(), Error> {
    let listen = |source| Error::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(Error::Start)?;
    print!("{}", own.cert.pem());
    println!("listening on https://{}", listener.local_addr().map_err(listen)?);
    let done = Arc::new(Notify::new());
    let places = Arc::new(Semaphore::new(connections));
    let mut has_failed = false;
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>((place, listener.accept().await?.0))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = done.notified() => return Ok(()),
            _ = interrupted.recv() => return Ok(()),
            _ = terminated.recv() => return Ok(()),
        };
        let (place, stream) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Too many open at once, for example: those that are open go on, and the others wait. Said once in a row.
                if !std::mem::replace(&mut has_failed, true) {
                    eprintln!("https-server: cannot accept: {e}");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        has_failed = false;
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            let _place = place;
            // Small answers must not wait for acknowledgements.
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(patience, acceptor.accept(stream)).await else {
                return;
            };
            let service = service_fn(|request| answer(request, done.clone()));
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(patience)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, done: Arc<Notify>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let (status, body) = match *request.method() {
        Method::GET => (StatusCode::OK, format!("Hello from {path}\n").into()),
        Method::POST if path == "/shutdown" => {
            done.notify_one();
            (StatusCode::OK, Bytes::from_static(b"bye\n"))
        }
        Method::POST => {
            match tokio::time::timeout(BODY_PATIENCE, Limited::new(request.into_body(), MAX_BODY).collect())
                .await
            {
                Ok(Ok(body)) => {
                    let mut body = body.to_bytes().to_vec();
                    body.reverse();
                    (StatusCode::OK, body.into())
                }
                Ok(Err(_)) => {
                    (StatusCode::PAYLOAD_TOO_LARGE, Bytes::from_static(b"too large, or cut short\n"))
                }
                Err(_) => (StatusCode::REQUEST_TIMEOUT, Bytes::from_static(b"too slow\n")),
            }
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"GET or POST\n")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}
