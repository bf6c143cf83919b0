//! HTTP of the broker: addresses, bounds, and errors as RFC 9457 has them.
//!
//! | address | what it is |
//! |---|---|
//! | `POST /nonce` | a nonce for one request: `{"nonce": "...", "expires_in": 60}` |
//! | `POST /keys/NAME/release` | a [`KeyRequest`], answered by a [`crate::release::KeyRelease`] |
//! | `GET /health` | whether it serves |
//!
//! Keys are added and revoked in the store, not here: there is nothing to log in to. TLS is for the sake of who relays; what is
//! released is encrypted for the enclave whether or not there is TLS.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::broker::NONCE_LIFETIME;
use crate::release::KeyRequest;
use crate::store::StoreError;
use crate::{Broker, Refusal};

/// Longest request in bytes: evidence, and collateral if it comes along.
const MAX_BODY: usize = 1 << 20;
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 256;
/// Requests appraised at once; more wait.
const APPRAISALS: usize = 4;

/// The certificate to serve with.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why the broker cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address.
    #[error("cannot listen at {address}: {source}; choose another port (0: any that is free)")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key.
    #[error("{} is not usable for TLS: {reason}", path.display())]
    Tls {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The operating system has no threads to spare.
    #[error("cannot start: {0}")]
    Threads(io::Error),
}

struct Shared {
    broker: Broker,
    appraising: Arc<Semaphore>,
}

/// Serves until the process is asked to stop (SIGTERM or interrupt), then lets open requests finish. `ready` is called with the
/// address once it serves.
///
/// # Errors
/// [`ServeError`] when it cannot begin.
pub fn run(
    broker: Broker,
    listen: SocketAddr,
    tls: Option<&Tls>,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let tls = tls.map(acceptor).transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(ServeError::Threads)?.block_on(async {
        // Before it says that it is ready: who hears that may ask it to stop at once.
        let stopped = enclos_http::stopped();
        let failed = |source| ServeError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        ready(listener.local_addr().map_err(failed)?);
        serve(broker, listener, tls, stopped).await;
        Ok(())
    })
}

/// Serves on a listener until `stop` is done, then lets open requests finish.
pub async fn serve(
    broker: Broker,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    stop: impl Future<Output = ()> + Send,
) {
    let shared = Arc::new(Shared { broker, appraising: Arc::new(Semaphore::new(APPRAISALS)) });
    let router: Router = Router::new().fallback(answer).with_state(shared);
    enclos_http::serve(listener, tls, router, CONNECTIONS, stop).await;
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Extension(from): Extension<SocketAddr>,
    request: Request,
) -> Response {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let mut response = match segments[..] {
        ["health"] if method == Method::GET => json_response(StatusCode::OK, &json!({ "status": "ok" })),
        ["nonce"] if method == Method::POST => match shared.broker.nonce() {
            Ok(nonce) => {
                let seconds = NONCE_LIFETIME.as_secs();
                json_response(
                    StatusCode::OK,
                    &json!({ "nonce": BASE64URL.encode(nonce), "expires_in": seconds }),
                )
            }
            Err(refusal) => problem(&refusal),
        },
        ["keys", key_id, "release"] if method == Method::POST => {
            release(shared, key_id.to_owned(), from, request.into_body()).await
        }
        ["health"] => not_allowed("GET"),
        ["nonce"] | ["keys", _, "release"] => not_allowed("POST"),
        _ => problem_response(
            StatusCode::NOT_FOUND,
            "not found",
            "there are /nonce, /keys/NAME/release and /health",
        ),
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn release(shared: Arc<Shared>, key_id: String, from: SocketAddr, body: Body) -> Response {
    let body = match read(body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let request: KeyRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(e) => {
            let detail = format!("the body is no request for a key: {e}");
            return problem_response(StatusCode::BAD_REQUEST, "malformed", &detail);
        }
    };
    let permit = shared.appraising.clone().acquire_owned().await;
    // The work holds its permit itself: it goes on when its client has gone, and what it decides is recorded.
    let decided = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        shared.broker.release(&key_id, &request, Some(from.ip().to_string()))
    });
    match decided.await {
        Ok(Ok(release)) => match serde_json::to_value(&release) {
            Ok(release) => json_response(StatusCode::OK, &release),
            Err(e) => problem_response(StatusCode::INTERNAL_SERVER_ERROR, "failed", &e.to_string()),
        },
        Ok(Err(refusal)) => problem(&refusal),
        Err(e) => problem_response(StatusCode::INTERNAL_SERVER_ERROR, "failed", &e.to_string()),
    }
}

async fn read(body: Body) -> Result<Bytes, Response> {
    match tokio::time::timeout(enclos_http::PATIENCE, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let detail = format!("the body did not arrive whole, or is longer than {MAX_BODY} bytes");
            Err(problem_response(StatusCode::PAYLOAD_TOO_LARGE, "too large", &detail))
        }
        Err(_) => Err(problem_response(StatusCode::REQUEST_TIMEOUT, "too slow", "the body took too long")),
    }
}

/// What is said of a refusal. Paths and disks are for the owner, not for who asks.
fn problem(refusal: &Refusal) -> Response {
    let (status, title) = match refusal {
        Refusal::Store(StoreError::Unknown { key_id, .. }) => {
            let detail = format!("there is no key {key_id}");
            return problem_response(StatusCode::NOT_FOUND, "no such key", &detail);
        }
        Refusal::Store(StoreError::KeyId(_)) => (StatusCode::NOT_FOUND, "no such key"),
        Refusal::Revoked { .. } => (StatusCode::FORBIDDEN, "revoked"),
        Refusal::Evidence(_) => (StatusCode::FORBIDDEN, "refused"),
        Refusal::Nonce | Refusal::NonceUsed => (StatusCode::FORBIDDEN, "not fresh"),
        Refusal::NoCollateral { .. } => (StatusCode::BAD_REQUEST, "no collateral"),
        Refusal::Collateral(_) | Refusal::Mismatch(_) | Refusal::PublicKey(_) => {
            (StatusCode::BAD_REQUEST, "malformed")
        }
        Refusal::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
        Refusal::Store(_) | Refusal::Audit(_) | Refusal::Random => {
            eprintln!("error: {refusal}");
            let detail = "the broker failed at this request; its standard error says why";
            return problem_response(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail);
        }
    };
    problem_response(status, title, &refusal.to_string())
}

fn problem_response(status: StatusCode, title: &str, detail: &str) -> Response {
    let body = json!({ "title": title, "status": status.as_u16(), "detail": detail });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

fn not_allowed(methods: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, methods)]).into_response()
}

fn json_response(status: StatusCode, value: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// TLS with a certificate from files.
///
/// # Errors
/// [`ServeError::Tls`] when one of them is not usable.
pub fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let failed = |path: &Path, reason: String| ServeError::Tls { path: path.into(), reason };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.certificate)
        .map_err(|e| failed(&tls.certificate, e.to_string()))?
        .collect();
    let chain = chain.map_err(|e| failed(&tls.certificate, e.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| failed(&tls.key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| failed(&tls.certificate, e.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
