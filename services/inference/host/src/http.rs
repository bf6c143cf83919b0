//! HTTP: addresses, bounds, and errors as RFC 9457 has them.
//!
//! | address | what it is |
//! |---|---|
//! | `GET /.well-known/ohttp-gateway` | the key configuration offered, `application/ohttp-keys` (RFC 9540, RFC 9458 section 3) |
//! | `POST /.well-known/ohttp-gateway` | an encapsulated request, answered by an encapsulated response |
//! | `POST /score` | the same for clients of Azure's confidential inferencing (PyPI's `ohttpy`): the response is one chunk |
//! | `GET /.well-known/enclos-inference` | the offer, JSON: [`enclos_inference::Offer::to_json`] |
//! | `GET /v2/health/live`, `/v2/health/ready` | in plain, for probes |
//! | `GET /metrics` | Prometheus |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody as _, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enclos_inference::{OFFER_PATH, Offer, ServiceError};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::metrics::{Gauges, Metrics};
use crate::service::{Service, Unavailable};
use crate::{Config, Events, Limits, ServeError, Start};

/// Where the gateway is (RFC 9540, section 4).
const GATEWAY_PATH: &str = "/.well-known/ohttp-gateway";
/// Media types of RFC 9458, section 9.
const KEYS: &str = "application/ohttp-keys";
const REQUEST: &str = "message/ohttp-req";
const RESPONSE: &str = "message/ohttp-res";
/// Where Azure's clients send, whatever the address that they are given.
const SCORE_PATH: &str = "/score";
/// Media types of chunked Oblivious HTTP (draft-ietf-ohai-chunked-ohttp).
const CHUNKED_REQUEST: &str = "message/ohttp-chunked-req";
const CHUNKED_RESPONSE: &str = "message/ohttp-chunked-res";
/// The problem that tells clients to get another key configuration (RFC 9458, section 5.3).
const KEY_PROBLEM: &str = "https://iana.org/assignments/http-problem-types#ohttp-key";
/// Identifiers of key, KEM, KDF and AEAD, which a request begins with (RFC 9458, section 4.3).
const REQUEST_HEADER: usize = 7;
const KIB: usize = 1024;

/// A service that is ready to serve.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    service: Arc<Service>,
    limits: Limits,
    inside: Arc<Semaphore>,
    parallel: usize,
    /// Memory for bodies, a permit a KiB.
    memory: Arc<Semaphore>,
    /// Requests that have come and are not in the enclave yet.
    waiting: AtomicUsize,
    metrics: Metrics,
}

impl Server {
    /// Takes the address, starts the enclave and loads the models. In a tokio runtime.
    ///
    /// # Errors
    /// [`ServeError`] when something is not usable.
    pub async fn bind(config: Config, start: Start, events: Events) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (limits, watch) = (config.limits, config.watch);
        let begun = tokio::task::spawn_blocking(move || {
            let service = Service::begin(&config, start, events)?;
            let threads = service.status()?.threads as usize;
            Ok::<_, ServeError>((service, threads))
        });
        let (service, threads) = begun.await.map_err(|e| ServeError::Threads(std::io::Error::other(e)))??;
        if let Some(interval) = watch {
            service.watch(interval);
        }
        // Two threads are left for offers, models and the like.
        let parallel = limits.parallel.clamp(1, threads.saturating_sub(2).max(1));
        let shared = Shared {
            service,
            limits,
            inside: Arc::new(Semaphore::new(parallel)),
            parallel,
            memory: Arc::new(Semaphore::new(limits.memory.div_ceil(KIB).min(Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            metrics: Metrics::default(),
        };
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves.
    pub fn service(&self) -> &Arc<Service> {
        &self.shared.service
    }

    /// Serves until `stop` is done, then lets open requests finish and ends the enclave.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let Self { listener, shared, .. } = self;
        let router: Router = Router::new().fallback(answer).with_state(shared.clone());
        enclos_http::serve(listener, None, router, shared.limits.connections, stop).await;
        let service = shared.service.clone();
        let _ = tokio::task::spawn_blocking(move || service.end()).await;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Infallible> {
    let path = request.uri().path().to_owned();
    let allowed = match &*path {
        GATEWAY_PATH => "GET, HEAD, POST, OPTIONS",
        SCORE_PATH => "POST, OPTIONS",
        _ => "GET, HEAD, OPTIONS",
    };
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = match (&*path, request.method()) {
        (GATEWAY_PATH, &Method::POST) => infer(&shared, request, Form::Whole).await,
        (SCORE_PATH, &Method::POST) => infer(&shared, request, Form::OneChunk).await,
        (GATEWAY_PATH, _) if is_read => offer(&shared, KEYS, keys).await,
        (OFFER_PATH, _) if is_read => offer(&shared, "application/json", |o| o.to_json().into_bytes()).await,
        ("/v2/health/live", _) if is_read => json_response(StatusCode::OK, &json!({ "live": true })),
        ("/v2/health/ready", _) if is_read => ready(&shared).await,
        ("/metrics", _) if is_read => metrics(&shared).await,
        (GATEWAY_PATH | SCORE_PATH | OFFER_PATH | "/v2/health/live" | "/v2/health/ready" | "/metrics", method) => {
            let status = match *method {
                Method::OPTIONS => StatusCode::NO_CONTENT,
                _ => StatusCode::METHOD_NOT_ALLOWED,
            };
            (status, [(header::ALLOW, allowed)]).into_response()
        }
        _ => Problem::new(
            "malformed",
            StatusCode::NOT_FOUND,
            "not found",
            "in plain there are the gateway, the offer, health and metrics; inference is asked for inside an encapsulated request",
        )
        .into_response(),
    };
    let headers = response.headers_mut();
    // Pages of any origin may ask: nothing depends on who asks, and everything that matters is verified or encrypted.
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("content-type"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The list of key configurations (RFC 9458, section 3.2): one, the offered.
fn keys(offer: &Offer) -> Vec<u8> {
    let length = u16::try_from(offer.key_config.len()).unwrap_or_default();
    [&length.to_be_bytes()[..], &offer.key_config].concat()
}

async fn offer(shared: &Shared, kind: &'static str, form: fn(&Offer) -> Vec<u8>) -> Response {
    match ask(shared, Service::offer).await {
        Ok(Ok(offer)) => ([(header::CONTENT_TYPE, kind)], form(&offer)).into_response(),
        Ok(Err(e)) => Problem::from(&e).into_response(),
        Err(e) => Problem::from(&e).into_response(),
    }
}

async fn ready(shared: &Shared) -> Response {
    let is_ready = ask(shared, Service::status).await.is_ok_and(|status| !status.models.is_empty());
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({ "ready": is_ready }))
}

async fn metrics(shared: &Shared) -> Response {
    let status = ask(shared, Service::status).await.ok();
    let (restarts, files_refused) = shared.service.counts();
    let gauges = Gauges {
        inside: shared.parallel - shared.inside.available_permits(),
        waiting: shared.waiting.load(Ordering::Relaxed),
        restarts,
        files_refused,
        status,
    };
    let text = shared.metrics.text(&gauges);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// Asks the enclave on a thread that may block.
async fn ask<T: Send + 'static>(
    shared: &Shared,
    question: impl FnOnce(&Service) -> Result<T, Unavailable> + Send + 'static,
) -> Result<T, Unavailable> {
    let service = shared.service.clone();
    let asked = tokio::task::spawn_blocking(move || question(&service)).await;
    asked.unwrap_or_else(|e| Err(Unavailable::Failed { reason: e.to_string() }))
}

/// How a response is framed. The enclave knows one form; the other differs in a length that it needs no key for.
#[derive(Clone, Copy)]
enum Form {
    /// RFC 9458, section 4.
    Whole,
    /// One chunk, and no final one: as `ohttpy` reads draft-ohai-chunked-ohttp-01. Its requests are those of RFC 9458, whole.
    /// Nothing is lost by it: one AEAD covers all of the response.
    OneChunk,
}

impl Form {
    fn media_types(self) -> [&'static str; 2] {
        match self {
            Self::Whole => [REQUEST, RESPONSE],
            Self::OneChunk => [CHUNKED_REQUEST, CHUNKED_RESPONSE],
        }
    }

    /// The enclave's response to a request with this beginning.
    fn frame(self, request_header: [u8; REQUEST_HEADER], mut response: Vec<u8>) -> Vec<u8> {
        if matches!(self, Self::Whole) {
            return response;
        }
        // The response nonce (RFC 9458, section 4.4) is as long as the AEAD's key: AES-128-GCM's, or another's (RFC 9180, 7.3).
        let [.., high, low] = request_header;
        let nonce = if u16::from_be_bytes([high, low]) == 1 { 16 } else { 32 };
        let chunk = response.split_off(nonce.min(response.len()));
        let mut length = chunk.len();
        // Seven bits a byte, the least first.
        while length > 0x7f {
            response.push(length as u8 | 0x80);
            length >>= 7;
        }
        response.push(length as u8);
        response.extend(chunk);
        response
    }
}

async fn infer(shared: &Arc<Shared>, request: Request, form: Form) -> Response {
    let begun = Instant::now();
    let mut length = 0;
    let limit = shared.limits.request;
    let relayed = tokio::time::timeout(limit, relay(shared, request, form, &mut length)).await;
    let answer = relayed.unwrap_or_else(|_| {
        let detail = format!("the request took longer than {} s", limit.as_secs_f32());
        Err(Problem::new("timed_out", StatusCode::GATEWAY_TIMEOUT, "too slow", detail))
    });
    let (outcome, sent) = match &answer {
        Ok(answer) => ("answered", answer.len()),
        Err(problem) => (problem.outcome, 0),
    };
    shared.metrics.count(outcome, begun.elapsed(), length, sent);
    let [_, kind] = form.media_types();
    answer.map(|answer| ([(header::CONTENT_TYPE, kind)], answer)).into_response()
}

async fn relay(
    shared: &Arc<Shared>,
    request: Request,
    form: Form,
    length: &mut usize,
) -> Result<Vec<u8>, Problem> {
    let [kind, _] = form.media_types();
    check_type(request.headers(), kind)?;
    let body = request.into_body();
    // What the client says that it sends, or all that it may. Taken before it is read, and kept while it is there.
    let hint =
        body.size_hint().upper().map_or(shared.limits.body, |n| usize::try_from(n).unwrap_or(usize::MAX));
    let blocks = u32::try_from(hint.min(shared.limits.body).div_ceil(KIB)).unwrap_or(u32::MAX);
    let memory = shared.memory.clone().try_acquire_many_owned(blocks).map_err(|_| Problem::busy())?;
    let body = read_body(body, shared.limits.body).await?;
    *length = body.len();
    let header = body.first_chunk().copied().unwrap_or_default();
    let place = Waiting::take(shared).ok_or_else(Problem::busy)?;
    let permit = shared.inside.clone().acquire_owned().await.map_err(|e| Problem::failed(&e))?;
    drop(place);
    let service = shared.service.clone();
    // The call holds its permit itself: it goes on when its client has gone, or waits no longer.
    let called = tokio::task::spawn_blocking(move || {
        let answer = service.infer(&body);
        drop((permit, body, memory));
        answer
    });
    match called.await.map_err(|e| Problem::failed(&e))? {
        Ok(answer) => answer.map(|answer| form.frame(header, answer)).map_err(|e| Problem::from(&e)),
        Err(e) => Err(Problem::from(&e)),
    }
}

/// A place in the queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn take(shared: &'a Shared) -> Option<Self> {
        let before = shared.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Self(&shared.waiting);
        // Those that go in at once pass through the queue as well.
        (before < shared.limits.queue + shared.inside.available_permits()).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn check_type(headers: &HeaderMap, expected: &str) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let detail = format!("requests are encapsulated (RFC 9458), and their content type here is {expected}");
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Err(Problem::new("malformed", status, "not an encapsulated request", detail))
}

async fn read_body(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || {
        let detail = format!("a request has at most {limit} bytes");
        Problem::new("malformed", StatusCode::PAYLOAD_TOO_LARGE, "too large", detail)
    };
    // Before anything is read, where the client says how much it would send.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    to_bytes(body, limit).await.map_err(|error| match std::error::Error::source(&error) {
        Some(source) if source.is::<hyper::Error>() => {
            let detail = "the body did not arrive whole";
            Problem::new("malformed", StatusCode::BAD_REQUEST, "incomplete", detail)
        }
        _ => too_large(),
    })
}

/// Why there is no encapsulated response (RFC 9457). It says nothing about the inside of a request, which only the enclave
/// knows.
#[derive(Debug)]
struct Problem {
    /// For the metrics.
    outcome: &'static str,
    status: StatusCode,
    /// A registered type; `None`: what the status says.
    kind: Option<&'static str>,
    title: &'static str,
    detail: String,
}

impl Problem {
    fn new(
        outcome: &'static str,
        status: StatusCode,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self { outcome, status, kind: None, title, detail: detail.into() }
    }

    fn busy() -> Self {
        let detail = "as many requests wait as may; try again in a second";
        Self::new("busy", StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    }

    fn failed(error: &dyn std::fmt::Display) -> Self {
        Self::new("failed", StatusCode::INTERNAL_SERVER_ERROR, "failed", error.to_string())
    }
}

impl From<&ServiceError> for Problem {
    fn from(error: &ServiceError) -> Self {
        let (outcome, status, title) = match error {
            ServiceError::UnknownKey => ("key", StatusCode::BAD_REQUEST, "key identifier unknown"),
            ServiceError::KeyUsedUp => ("key", StatusCode::BAD_REQUEST, "key used up"),
            ServiceError::Undecryptable => ("undecryptable", StatusCode::BAD_REQUEST, "not decryptable"),
            ServiceError::Replayed => ("replayed", StatusCode::CONFLICT, "replayed"),
            ServiceError::TooLarge => ("malformed", StatusCode::PAYLOAD_TOO_LARGE, "too large"),
            ServiceError::NoModel => ("failed", StatusCode::SERVICE_UNAVAILABLE, "no model"),
            other => return Self::failed(other),
        };
        let kind = (outcome == "key").then_some(KEY_PROBLEM);
        Self { kind, ..Self::new(outcome, status, title, error.to_string()) }
    }
}

impl From<&Unavailable> for Problem {
    fn from(error: &Unavailable) -> Self {
        let (outcome, status) = match error {
            Unavailable::Busy => return Self::busy(),
            Unavailable::TimedOut { .. } => ("timed_out", StatusCode::GATEWAY_TIMEOUT),
            Unavailable::Ended | Unavailable::NotStarted { .. } => {
                ("failed", StatusCode::SERVICE_UNAVAILABLE)
            }
            Unavailable::Failed { .. } => return Self::failed(error),
        };
        Self::new(outcome, status, "the enclave is not available", error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({ "title": self.title, "status": self.status.as_u16(), "detail": self.detail });
        if let Some(kind) = self.kind {
            body["type"] = json!(kind);
        }
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, body.to_string()).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
