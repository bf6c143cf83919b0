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
//! `GET /…` greets, `POST /…` answers with the body in reverse, `POST /shutdown` ends the server.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Where it listens unless told otherwise.
const ADDRESS: &str = "127.0.0.1:8443";
/// Largest request body in bytes.
const MAX_BODY: usize = 16 << 20;
/// How long a client may take for its handshake.
const PATIENCE: Duration = Duration::from_secs(10);

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
}

fn main() -> std::process::ExitCode {
    let address = std::env::args().nth(1).unwrap_or_else(|| ADDRESS.to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(Error::Start).and_then(|r| r.block_on(serve(&address))) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("https-server: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn serve(address: &str) -> Result<(), Error> {
    let listen = |source| Error::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    print!("{}", own.cert.pem());
    println!("listening on https://{}", listener.local_addr().map_err(listen)?);
    let done = Arc::new(Notify::new());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = done.notified() => return Ok(()),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Too many open at once, for example: those that are open go on.
                eprintln!("https-server: cannot accept: {e}");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            // Small answers must not wait for acknowledgements.
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else {
                return;
            };
            let service = service_fn(|request| answer(request, done.clone()));
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
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
        Method::POST => match Limited::new(request.into_body(), MAX_BODY).collect().await {
            Ok(body) => {
                let mut body = body.to_bytes().to_vec();
                body.reverse();
                (StatusCode::OK, body.into())
            }
            Err(_) => (StatusCode::PAYLOAD_TOO_LARGE, Bytes::from_static(b"too large, or cut short\n")),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"GET or POST\n")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}
