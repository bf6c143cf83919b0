//! A verifying proxy: programs on this machine speak the plain Open Inference Protocol with it, and it verifies the enclave,
//! encrypts for it, and asks by the versions that the evidence vouches for. Programs need no knowledge of any of that.
//!
//! What programs send to it is plain text, so it belongs on the machine, and to the user, of the programs that ask. Pages of
//! other origins cannot read what it answers, nor reach it by a name of their own ([`is_local`]). Its own page encrypts by
//! itself: for it, the proxy verifies, and relays what it cannot read.
//!
//! | address | what it is |
//! |---|---|
//! | `/v2…` | the Open Inference Protocol, answered by the enclave |
//! | `GET /verdict` | who answers, why it was accepted, and the offer that was; 502 if nobody is. With `?anew`, judged now |
//! | `POST /ohttp` | a relay resource (RFC 9458): passes `message/ohttp-req` on to the server's gateway |
//! | `GET /` | a page on which to draw a digit, for models that take 8 by 8 pixels; it shows who answered |
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enclos_inference::client::{self, Client, ClientError, ENCAPSULATED, HostResponse, Http, Verified};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Headers that mean something to the protocol; others stay here.
const CARRIED: [&str; 3] = ["content-type", "content-encoding", "inference-header-content-length"];
/// Who answered: on each response of the enclave's.
const ANSWERED_BY: HeaderName = HeaderName::from_static("enclos-mrenclave");
/// `true` where the platform proves nothing.
const EMULATED: HeaderName = HeaderName::from_static("enclos-emulated");

/// How a browser's request relates to the page that caused it; "none": the user did.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Where encapsulated requests are taken.
const RELAY_PATH: &str = "/ohttp";
/// Errors of gateways (RFC 9457).
const PROBLEM: &str = "application/problem+json";
/// Longest error of a gateway that is passed on, in bytes.
const MAX_PROBLEM: usize = 64 << 10;

/// The page: path, type and text of everything it consists of.
const PAGE: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("../page/index.html")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("../page/page.js")),
    ("/offer.js", "text/javascript; charset=utf-8", include_str!("../page/offer.js")),
    ("/ohttp.js", "text/javascript; charset=utf-8", include_str!("../page/ohttp.js")),
    ("/style.css", "text/css; charset=utf-8", include_str!("../page/style.css")),
];
/// It may load its own parts and ask this proxy, and nothing else; nobody may frame it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// What is served, and within which bounds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Where; port 0: any that is free.
    pub listen: SocketAddr,
    /// Longest body in bytes.
    pub body: usize,
    /// Requests at once; more wait.
    pub parallel: usize,
    /// Connections at once; more wait in the kernel's queue.
    pub connections: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8091).into(), body: 16 << 20, parallel: 16, connections: 256 }
    }
}

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The address.
    #[error("cannot listen at {address}: {source}; choose another port (0: any that is free)")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The operating system has no threads to spare.
    #[error("cannot start: {0}")]
    Threads(std::io::Error),
    /// The server is named by another way in than the one that the proxy speaks.
    #[error(
        "{server} has no gateway for encapsulated requests, which is what the proxy and its page send: TLS ends in the enclave \
         there; give the service's http:// address, or ask with `enclos infer`"
    )]
    NoGateway {
        /// As it was given.
        server: String,
    },
}

/// The server at this URL, if its kind has a gateway.
///
/// # Errors
/// [`ProxyError::NoGateway`] for attested TLS.
pub fn gateway_at(url: &str) -> Result<Http, ProxyError> {
    match url.get(.."attested-tls:".len()) {
        Some(scheme) if scheme.eq_ignore_ascii_case("attested-tls:") => {
            Err(ProxyError::NoGateway { server: url.to_owned() })
        }
        _ => Ok(Http::at(url)),
    }
}

/// Serves until the process is asked to stop (SIGTERM or interrupt). `ready` is told where.
///
/// # Errors
/// When it cannot begin.
pub fn run(config: Config, client: Client<Http>, ready: impl FnOnce(SocketAddr)) -> Result<(), ProxyError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(ProxyError::Threads)?.block_on(async {
        let failed = |source| ProxyError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stopped = enclos_http::stopped();
        ready(address);
        let shared = Shared {
            client: Arc::new(client),
            address,
            body: config.body,
            parallel: Arc::new(Semaphore::new(config.parallel.max(1))),
        };
        let router = Router::new().fallback(answer).with_state(shared);
        enclos_http::serve(listener, None, router, config.connections, stopped).await;
        Ok(())
    })
}

#[derive(Clone)]
struct Shared {
    client: Arc<Client<Http>>,
    address: SocketAddr,
    body: usize,
    parallel: Arc<Semaphore>,
}

async fn answer(State(shared): State<Shared>, request: Request) -> Result<Response, Infallible> {
    let is_of_page = PAGE.iter().any(|(part, ..)| *part == request.uri().path());
    // A link on another site may lead to the page, but nothing there may ask for more.
    if !is_local(request.headers(), shared.address) || (!is_of_page && is_foreign(request.headers())) {
        let reason = "this proxy answers its own pages, and by its address only: not by a name that a page may have given it";
        return Ok(error(StatusCode::FORBIDDEN, reason));
    }
    let path = request.uri().path();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    Ok(match path {
        "/verdict" if is_read => verdict(shared, request.uri().query() == Some("anew")).await,
        RELAY_PATH if request.method() == Method::POST => relay(shared, request).await,
        RELAY_PATH => {
            let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "encapsulated requests come with POST");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
            refused
        }
        _ if path == "/v2" || path.starts_with("/v2/") => infer(shared, request).await,
        _ => match PAGE.iter().find(|(part, ..)| is_read && path == *part) {
            Some((_, kind, text)) => page(kind, text),
            None => error(StatusCode::NOT_FOUND, "there are /v2, /verdict, /ohttp and, for a browser, /"),
        },
    })
}

fn page(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// Is it asked for by an address, or as localhost, and by no page of another origin? A name that somebody else's page has
/// pointed here would let that page read answers (DNS rebinding).
fn is_local(headers: &HeaderMap, address: SocketAddr) -> bool {
    let text = |name| headers.get(name).map(|v: &HeaderValue| v.to_str().unwrap_or_default());
    let Some(host) = text(header::HOST) else { return true };
    if text(header::ORIGIN).is_some_and(|origin| origin.strip_prefix("http://") != Some(host)) {
        return false;
    }
    let name = host.strip_suffix(&format!(":{}", address.port())).unwrap_or(host);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}

/// Does a browser say that a page of another site caused it? Its images and links come without an origin (Fetch Metadata).
fn is_foreign(headers: &HeaderMap) -> bool {
    let own = ["same-origin", "none"];
    headers.get(SEC_FETCH_SITE).is_some_and(|site| !own.iter().any(|own| site == *own))
}

async fn infer(shared: Shared, request: Request) -> Response {
    let carried = CARRIED.iter().filter_map(|name| {
        let value = request.headers().get(*name)?.to_str().ok()?;
        Some(((*name).to_owned(), value.to_owned()))
    });
    let headers = carried.collect();
    let method = request.method().as_str().to_owned();
    let path = request.uri().path_and_query().map_or("/v2", |p| p.as_str()).to_owned();
    let body = match read_body(&shared, request).await {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let request = client::Request { method, path, headers, body };
    match ask(&shared, move |client| client.ask(&request)).await {
        Ok((response, verified)) => relayed(response, &verified),
        Err(failed) => *failed,
    }
}

async fn read_body(shared: &Shared, request: Request) -> Result<Vec<u8>, Box<Response>> {
    to_bytes(Body::new(request.into_body()), shared.body).await.map(|body| body.to_vec()).map_err(|_| {
        let reason = format!("the body did not arrive whole, or is longer than {} bytes", shared.body);
        Box::new(error(StatusCode::PAYLOAD_TOO_LARGE, &reason))
    })
}

async fn verdict(shared: Shared, is_anew: bool) -> Response {
    let question = if is_anew { Client::verified_anew } else { Client::verified };
    match ask(&shared, question).await {
        Ok(verified) => {
            let mut said = describe(&verified);
            // The rest of the offer, for who checks what the evidence vouches for: all of its models, of which demands may leave
            // fewer to be asked.
            let mut offer: Value = verified.offer().to_json().parse().unwrap_or_default();
            for (name, part) in
                [("key_config", "key_config"), ("evidence", "evidence"), ("offered_models", "models")]
            {
                said[name] = offer[part].take();
            }
            json_response(StatusCode::OK, &said)
        }
        Err(failed) => *failed,
    }
}

/// Passes an encapsulated request on unread, and its answer back. Nothing of the request but its body goes on: who asked stays
/// here.
async fn relay(shared: Shared, request: Request) -> Response {
    let [expected, answered] = ENCAPSULATED;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(expected) {
        let reason =
            format!("requests are encapsulated here (RFC 9458), and their content type is {expected}");
        return error(StatusCode::UNSUPPORTED_MEDIA_TYPE, &reason);
    }
    let body = match read_body(&shared, request).await {
        Ok(body) => body,
        Err(refused) => return *refused,
    };
    let response = match ask(&shared, move |client| client.relay(&body)).await {
        Ok(response) => response,
        Err(failed) => return *failed,
    };
    if response.status == 200 && response.is_of(answered) {
        return passed(StatusCode::OK, answered, response.body);
    }
    match StatusCode::from_u16(response.status) {
        Ok(status) if is_problem(status, &response) => passed(status, PROBLEM, response.body),
        _ => {
            let reason = format!(
                "the server's gateway answers {} with {:?}, which is neither an encapsulated response nor a problem",
                response.status, response.content_type
            );
            error(StatusCode::BAD_GATEWAY, &reason)
        }
    }
}

fn is_problem(status: StatusCode, response: &HostResponse) -> bool {
    (status.is_client_error() || status.is_server_error())
        && response.is_of(PROBLEM)
        && response.body.len() <= MAX_PROBLEM
        && serde_json::from_slice::<Value>(&response.body).is_ok_and(|problem| problem.is_object())
}

fn passed(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, body).into_response()
}

/// Asks on a thread that may block.
async fn ask<T: Send + 'static>(
    shared: &Shared,
    question: impl FnOnce(&Client<Http>) -> Result<T, ClientError> + Send + 'static,
) -> Result<T, Box<Response>> {
    let permit = shared.parallel.clone().acquire_owned().await;
    let client = shared.client.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let answer = question(&client);
        drop(permit);
        answer
    });
    match asked.await {
        Ok(answer) => answer.map_err(|e| Box::new(failed(&e))),
        Err(e) => Err(Box::new(error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()))),
    }
}

/// Who answers, and why it was accepted.
pub fn describe(verified: &Verified) -> Value {
    let models: Vec<_> =
        verified.models().iter().map(|m| json!({ "name": m.name, "sha256": m.version() })).collect();
    json!({ "verdict": verified.verdict(), "models": models, "not_after": verified.not_after() })
}

/// The enclave's answer, and who gave it.
fn relayed(response: client::Response, verified: &Verified) -> Response {
    let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut relayed = (status, response.body).into_response();
    let headers = relayed.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    for (name, value) in response.headers.iter().filter(|(name, _)| CARRIED.contains(&&**name)) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    if let Some(mrenclave) = verified.mr_enclave().and_then(|hex| HeaderValue::try_from(hex).ok()) {
        headers.insert(ANSWERED_BY, mrenclave);
    }
    let emulated = if verified.verdict().emulated { "true" } else { "false" };
    headers.insert(EMULATED, HeaderValue::from_static(emulated));
    relayed
}

/// Errors as the Open Inference Protocol has them.
fn failed(cause: &ClientError) -> Response {
    let status = match cause {
        ClientError::OtherModel { .. } => StatusCode::NOT_FOUND,
        ClientError::Host { status: 503 | 504, .. } => StatusCode::SERVICE_UNAVAILABLE,
        ClientError::Host { status: 413, .. } => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::BAD_GATEWAY,
    };
    let mut body = json!({ "error": cause.to_string() });
    if let ClientError::Refused(verdict) = cause {
        body["verdict"] = json!(verdict);
    }
    json_response(status, &body)
}

fn error(status: StatusCode, reason: &str) -> Response {
    json_response(status, &json!({ "error": reason }))
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_page_may_have_are_refused() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8091));
        for (host, expected) in [
            ("localhost:8091", true),
            ("LOCALHOST", true),
            ("127.0.0.1:8091", true),
            ("[::1]:8091", true),
            ("attacker.example:8091", false),
            ("127.0.0.1.attacker.example", false),
            ("localhost:8092", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
            assert_eq!(is_local(&headers, address), expected, "{host}");
        }
        for (origin, expected) in [
            ("http://127.0.0.1:8091", true),
            ("http://localhost:8091", false),
            ("https://attacker.example", false),
            ("null", false),
        ] {
            let headers = [(header::HOST, "127.0.0.1:8091"), (header::ORIGIN, origin)];
            let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
            assert_eq!(is_local(&HeaderMap::from_iter(headers), address), expected, "{origin}");
        }
        for (site, expected) in [
            (None, false),
            (Some("same-origin"), false),
            (Some("none"), false),
            (Some("same-site"), true),
            (Some("cross-site"), true),
        ] {
            let headers = site.map(|site| (SEC_FETCH_SITE, HeaderValue::from_static(site)));
            assert_eq!(is_foreign(&HeaderMap::from_iter(headers)), expected, "{site:?}");
        }
    }
}
