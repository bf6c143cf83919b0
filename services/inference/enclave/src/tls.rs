//! Attested TLS, the second way in: TLS ends here, and the certificate carries evidence for its key (docs/attested-tls.md).
//!
//! Inside is the same protocol as in encapsulated requests, at the same paths. The evidence is about the enclave and its key,
//! not about models: certificates last longer than sets of models do. What is measured answers under a version's path only with
//! the file of that hash, so a client who asks for `/v2/models/NAME/versions/SHA256/…` knows what it gets. TLS refuses replays,
//! and shows how long messages are; whoever minds that uses the other way.
//!
//! Connections, bodies and calls are bounded, since this side has the enclave's memory only.

use std::convert::Infallible;
use std::io::Cursor;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bhttp::{Message, Mode};
use enclos_attested_tls::{AttestedIdentity, CertificateOptions};
use enclos_inference::{OFFER_PATH, ServiceError};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::time_provider::DefaultTimeProvider;

use crate::{Service, protocol};

/// Threads that answer: so many requests at once.
const CALLS: usize = 4;
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Longest body in bytes.
const MAX_BODY: usize = 16 << 20;
/// Bodies at once, in KiB.
const MEMORY: usize = 64 << 10;
/// How long a client may take for its handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// Serves attested TLS at an address that the manifest permits, from now on. Says where: port 0 is one of the host's choice.
pub(crate) fn serve(service: Arc<Service>, address: &str) -> Result<SocketAddr, ServiceError> {
    let failed = |e: &dyn std::fmt::Display| ServiceError::Listen { reason: format!("{address}: {e}") };
    let listener = TcpListener::bind(address).map_err(|e| failed(&e))?;
    listener.set_nonblocking(true).map_err(|e| failed(&e))?;
    let bound = listener.local_addr().map_err(|e| failed(&e))?;
    let attester = |data: &[u8; 64]| Ok(enclos_enclave::attest(data)?.into_quote());
    let clock = Arc::new(DefaultTimeProvider);
    let identity = AttestedIdentity::new(attester, CertificateOptions::default(), clock);
    let identity = Arc::new(identity.map_err(|e| ServiceError::Evidence { reason: e.to_string() })?);
    let renewal = identity.keep_renewed().map_err(|e| failed(&e))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_cert_resolver(identity);
    // Clients judge every connection, so nothing is kept for resuming one.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(CALLS).build();
    let runtime = runtime.map_err(|e| failed(&e))?;
    let thread = std::thread::Builder::new().name("attested-tls".into());
    let serving = thread.spawn(move || {
        let _renewal = renewal;
        runtime.block_on(accept(listener, TlsAcceptor::from(Arc::new(config)), service));
    });
    serving.map_err(|e| failed(&e)).map(|_| bound)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, service: Arc<Service>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(e) => return enclos_enclave::log(enclos_enclave::LogLevel::Error, &format!("attested TLS: {e}")),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let memory = Arc::new(Semaphore::new(MEMORY));
    loop {
        let place = places.clone().acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open at once, for example: others will be closed.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (acceptor, service, memory) = (acceptor.clone(), service.clone(), memory.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else {
                return;
            };
            let answering = service_fn(|request| {
                let (service, memory) = (service.clone(), memory.clone());
                async move { Ok::<_, Infallible>(answer(request, service, memory).await) }
            });
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), answering)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    service: Arc<Service>,
    memory: Arc<Semaphore>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if (&head.method, head.uri.path()) == (&Method::GET, OFFER_PATH) {
        let offer = tokio::task::spawn_blocking(move || service.current_offer(false)).await;
        return match offer {
            Ok(Ok(offer)) => response(StatusCode::OK, offer.to_json().into_bytes()),
            Ok(Err(e)) => error(StatusCode::SERVICE_UNAVAILABLE, &e.to_string()),
            Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
        };
    }
    // Taken before the body is read, and kept while it is there.
    let length = body.size_hint().upper().map_or(MAX_BODY, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let blocks = u32::try_from(length.min(MAX_BODY).div_ceil(1024)).unwrap_or(u32::MAX);
    let Ok(memory) = memory.try_acquire_many_owned(blocks) else {
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            "as many requests are served as may; try again in a second",
        );
    };
    let content = match tokio::time::timeout(BODY_PATIENCE, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(content)) => content.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            return error(StatusCode::PAYLOAD_TOO_LARGE, &format!("a request has at most {MAX_BODY} bytes"));
        }
        Ok(Err(_)) => return error(StatusCode::BAD_REQUEST, "the body did not arrive whole"),
        Err(_) => return error(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"),
    };
    let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let of = |text: &str| text.as_bytes().to_vec();
    let mut message = Message::request(of(head.method.as_str()), of("https"), of("enclave"), of(target));
    for (name, value) in &head.headers {
        message.put_header(name.as_str(), value.as_bytes());
    }
    message.write_content(&content);
    drop(content);
    let answered = tokio::task::spawn_blocking(move || {
        let mut plain = Vec::new();
        // Writing into memory does not fail; what is cut short is refused as such.
        let _ = message.write_bhttp(Mode::KnownLength, &mut plain);
        drop(message);
        let answer = protocol::answer(&service.models, &plain);
        drop(memory);
        Message::read_bhttp(&mut Cursor::new(answer))
    });
    match answered.await {
        Ok(Ok(message)) => of_message(&message),
        _ => error(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be answered"),
    }
}

/// Binary HTTP as HTTP.
fn of_message(message: &Message) -> Response<Full<Bytes>> {
    let status = message.control().status().and_then(|s| StatusCode::from_u16(s.code()).ok());
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(message.content())));
    *response.status_mut() = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for field in message.header().iter() {
        let name = hyper::header::HeaderName::from_bytes(field.name());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value())) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn error(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, serde_json::json!({ "error": text }).to_string().into_bytes())
}

fn response(status: StatusCode, json: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(json.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
