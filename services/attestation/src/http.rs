//! The REST interface: addresses, versions, bounds and errors as Azure Attestation has them.

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt::Write as _,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Extension, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::{
    authentication::{Authenticator, BearerError},
    config::{Config, Limits, Tls},
    inspector::{InspectRequest, MAX_EVIDENCE},
    service::{
        AttestRequest, AttestationType, Service, ServiceError, StartError, TenantContext, TokenFormat,
    },
    store::StoreError,
    tokens::KeyError,
};

/// How long open connections may finish their requests when the service is told to stop.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether a signing key is due to be succeeded.
const KEY_INTERVAL: Duration = Duration::from_secs(3600);
/// The description served at `/openapi.json`.
const OPENAPI: &str = include_str!("openapi.json");
/// The evidence inspector: address, type and text of everything it consists of.
const PAGE: [(&str, &str, &str); 5] = [
    ("", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
    ("picture.js", "text/javascript; charset=utf-8", include_str!("page/picture.js")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];
/// The page may load its own parts and ask its own service, and nothing else, even if something got into it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
/// Longest request to inspect evidence, bytes: evidence in base64, collateral, and their names.
const MAX_INSPECTION: usize = 2 * MAX_EVIDENCE + 256 * 1024;

/// A service that is ready to serve.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

struct Shared {
    service: Service,
    tenants: Vec<TenantContext>,
    authenticator: Option<Authenticator>,
    limits: Limits,
    judging: Arc<Semaphore>,
    waiting: AtomicUsize,
    clients: RateLimiter,
    metrics: Metrics,
}

impl Server {
    /// Opens everything the configuration names, and the address.
    ///
    /// # Errors
    /// [`StartError`] when something is not usable.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let config = config.checked()?;
        let tls = config.tls.as_ref().map(tls_acceptor).transpose()?;
        let opened = config.clone();
        // Stores block.
        let service = tokio::task::spawn_blocking(move || Service::open(&opened))
            .await
            .map_err(|error| StartError::Threads { source: std::io::Error::other(error) })??;
        let authenticator = config.authentication.as_ref().map(Authenticator::new).transpose()?;
        let failed = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let (scheme, usual) = if tls.is_some() { ("https", 443) } else { ("http", 80) };
        let tenants = config
            .tenants
            .iter()
            .map(|tenant| {
                let host = tenant.host.to_lowercase();
                let authority = if port == usual { host.clone() } else { format!("{host}:{port}") };
                TenantContext {
                    issuer: tenant.issuer.clone().unwrap_or(format!("{scheme}://{authority}")),
                    isolated: tenant.policy_signers.is_some(),
                    name: host,
                }
            })
            .collect();
        tracing::info!(
            address = %config.listen,
            port,
            tls = tls.is_some(),
            tenants = config.tenants.len(),
            platforms = service.platforms(),
            authentication = authenticator.is_some(),
            "attestation service ready"
        );
        let shared = Shared {
            service,
            tenants,
            authenticator,
            limits: config.limits,
            judging: Arc::new(Semaphore::new(config.limits.concurrent.max(1))),
            waiting: AtomicUsize::new(0),
            clients: RateLimiter::new(config.limits.client_requests_per_second),
            metrics: Metrics::default(),
        };
        Ok(Self { listener, tls, shared: Arc::new(shared) })
    }

    /// Where it serves.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is done, then lets open requests finish.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let Self { listener, tls, shared } = self;
        let router: Router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let graceful = GracefulShutdown::new();
        let connections = Arc::new(Semaphore::new(shared.limits.connections.max(1)));
        let mut keys = tokio::time::interval(KEY_INTERVAL);
        let mut stop = std::pin::pin!(stop);
        loop {
            let permit = tokio::select! {
                () = &mut stop => break,
                _ = keys.tick() => {
                    let shared = Arc::clone(&shared);
                    tokio::task::spawn_blocking(move || {
                        if let Err(error) = shared.service.rotate_keys() {
                            tracing::error!(%error, "signing keys could not be rotated");
                        }
                    });
                    continue;
                }
                permit = Arc::clone(&connections).acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, say: others will be closed.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let (tls, watcher, router) = (tls.clone(), graceful.watcher(), router.clone());
            let timeout = Duration::from_secs(shared.limits.request_seconds.max(1));
            tokio::spawn(async move {
                let _permit = permit;
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new()).header_read_timeout(timeout);
                builder.http2().timer(TokioTimer::new()).keep_alive_interval(timeout);
                let service = TowerToHyperService::new(router.layer(Extension(client.ip())));
                let result = match tls {
                    None => {
                        let connection = builder.serve_connection(TokioIo::new(stream), service);
                        watcher.watch(connection.into_owned()).await
                    }
                    Some(tls) => match tokio::time::timeout(timeout, tls.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let connection = builder.serve_connection(TokioIo::new(stream), service);
                            watcher.watch(connection.into_owned()).await
                        }
                        // Port scanners and clients without our root: nothing to be done here.
                        Ok(Err(_)) | Err(_) => return,
                    },
                };
                if let Err(error) = result {
                    tracing::debug!(error = %error, "connection ended");
                }
            });
        }
        drop(listener);
        if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were cut off at shutdown");
        }
    }
}

fn tls_acceptor(tls: &Tls) -> Result<TlsAcceptor, StartError> {
    let failed = |path: &std::path::Path, error: &dyn std::fmt::Display| {
        StartError::Tls(format!("{}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&tls.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| failed(&tls.key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| failed(&tls.certificate, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Attest(AttestationType),
    GetPolicy(AttestationType),
    SetPolicy(AttestationType),
    ResetPolicy(AttestationType),
    Certificates,
    ChangeCertificate { present: bool },
    TcbBaselines(AttestationType),
    Keys,
    OpenIdConfiguration,
    OpenApi,
    Metrics,
    Health,
    Page(usize),
    Inspect,
}

impl Route {
    fn name(self) -> &'static str {
        match self {
            Self::Attest(_) => "attest",
            Self::GetPolicy(_) => "get_policy",
            Self::SetPolicy(_) => "set_policy",
            Self::ResetPolicy(_) => "reset_policy",
            Self::Certificates => "certificates",
            Self::ChangeCertificate { .. } => "change_certificate",
            Self::TcbBaselines(_) => "tcb_baselines",
            Self::Keys => "keys",
            Self::OpenIdConfiguration => "openid_configuration",
            Self::OpenApi => "openapi",
            Self::Metrics => "metrics",
            Self::Health => "health",
            Self::Page(_) => "page",
            Self::Inspect => "inspect",
        }
    }

    /// Whether the address has versions.
    fn is_versioned(self) -> bool {
        !matches!(
            self,
            Self::Keys
                | Self::OpenIdConfiguration
                | Self::OpenApi
                | Self::Metrics
                | Self::Health
                | Self::Page(_)
                | Self::Inspect
        )
    }

    /// Whether it is for who manages policies.
    fn is_management(self) -> bool {
        matches!(
            self,
            Self::GetPolicy(_)
                | Self::SetPolicy(_)
                | Self::ResetPolicy(_)
                | Self::Certificates
                | Self::ChangeCertificate { .. }
        )
    }

    /// The first version that has it.
    fn since(self) -> Version {
        match self {
            Self::TcbBaselines(_) => Version::V2025,
            Self::Attest(kind) | Self::GetPolicy(kind) | Self::SetPolicy(kind) | Self::ResetPolicy(kind) => {
                match kind {
                    AttestationType::SgxEnclave | AttestationType::OpenEnclave => Version::V2020,
                    AttestationType::SevSnpVm => Version::V2022,
                    AttestationType::TdxVm => Version::V2025,
                }
            }
            _ => Version::V2020,
        }
    }

    fn of(method: &Method, path: &str) -> Result<Self, Refusal> {
        let mut parts = path.trim_matches('/').split('/');
        let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let kind = |name: &str| {
            AttestationType::of(name).ok_or_else(|| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "InvalidParameter",
                    format!(
                        "attestation type {:?} is not served; SgxEnclave, OpenEnclave, TdxVm and SevSnpVm are",
                        name.chars().take(40).collect::<String>()
                    ),
                )
            })
        };
        let nothing = || {
            Refusal::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is nothing at this address; see /openapi.json",
            )
        };
        let (allowed, route): (&[Method], _) = match (first, second, third) {
            ("attest", Some(name), None) => (&[Method::POST], Self::Attest(kind(name)?)),
            ("policies", Some(name), None) => match name.strip_suffix(":reset") {
                Some(name) => (&[Method::POST], Self::ResetPolicy(kind(name)?)),
                None if method == Method::PUT => (&[Method::PUT], Self::SetPolicy(kind(name)?)),
                None => (&[Method::GET, Method::PUT], Self::GetPolicy(kind(name)?)),
            },
            ("certificates", None, None) => (&[Method::GET], Self::Certificates),
            ("certificates:add", None, None) => (&[Method::POST], Self::ChangeCertificate { present: true }),
            ("certificates:remove", None, None) => {
                (&[Method::POST], Self::ChangeCertificate { present: false })
            }
            ("tcbbaselines", Some(name), None) => (&[Method::GET], Self::TcbBaselines(kind(name)?)),
            ("certs", None, None) => (&[Method::GET], Self::Keys),
            (".well-known", Some("openid-configuration"), None) => {
                (&[Method::GET], Self::OpenIdConfiguration)
            }
            ("openapi.json", None, None) => (&[Method::GET], Self::OpenApi),
            ("metrics", None, None) => (&[Method::GET], Self::Metrics),
            ("health", None, None) => (&[Method::GET], Self::Health),
            ("inspect", None, None) => (&[Method::POST], Self::Inspect),
            ("inspector", part, None) => {
                let part = part.unwrap_or_default();
                let index = PAGE.iter().position(|(name, _, _)| *name == part);
                (&[Method::GET], Self::Page(index.ok_or_else(nothing)?))
            }
            _ => return Err(nothing()),
        };
        if allowed.contains(method) {
            return Ok(route);
        }
        let names: Vec<_> = allowed.iter().map(Method::as_str).collect();
        Err(Refusal {
            allow: Some(names.join(", ")),
            ..Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                format!("use {} at this address", names.join(" or ")),
            )
        })
    }
}

/// Versions of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V2020,
    V2022,
    V2025,
}

impl Version {
    const ALL: [(&str, Self); 3] =
        [("2020-10-01", Self::V2020), ("2022-08-01", Self::V2022), ("2025-06-01", Self::V2025)];

    fn of(uri: &Uri) -> Result<Self, Refusal> {
        let names = "2020-10-01, 2022-08-01 and 2025-06-01";
        let refuse = |reason: String| Err(Refusal::new(StatusCode::BAD_REQUEST, "InvalidParameter", reason));
        let asked = query(uri, "api-version");
        let Some(asked) = asked else {
            return refuse(format!("the query has no api-version; there are {names}"));
        };
        match Self::ALL.into_iter().find(|(name, _)| *name == asked) {
            Some((_, version)) => Ok(version),
            None => refuse(format!(
                "api-version {:?} is not served; {names} are",
                asked.chars().take(40).collect::<String>()
            )),
        }
    }
}

/// An answer that is an error.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    allow: Option<String>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), allow: None }
    }

    /// What the service is nothing without is away, and may come back.
    fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            "the service cannot reach its store at present; try again later",
        )
    }
}

impl From<BearerError> for Refusal {
    fn from(error: BearerError) -> Self {
        let (status, code) = match error {
            BearerError::Issuer => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            _ => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<ServiceError> for Refusal {
    fn from(error: ServiceError) -> Self {
        let bad = StatusCode::BAD_REQUEST;
        let (status, code) = match &error {
            ServiceError::InvalidParameter(_) => (bad, "InvalidParameter"),
            ServiceError::InvalidOperation(_) => (bad, "InvalidOperation"),
            ServiceError::PolicyParsing(_) => (bad, "PolicyParsingError"),
            ServiceError::PolicyEvaluation(_) => (bad, "PolicyEvaluationError"),
            ServiceError::Store(StoreError::Postgres { .. })
            | ServiceError::Key(KeyError::Store(StoreError::Postgres { .. })) => {
                tracing::error!(%error, "the store cannot be used");
                return Self::unavailable();
            }
            ServiceError::Store(_) | ServiceError::Key(_) => {
                // What exactly is for the log: paths are no business of callers.
                tracing::error!(%error, "internal error");
                return Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "InternalError",
                    "the service cannot reach its store; its log says why",
                );
            }
        };
        Self::new(status, code, error.to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.code, "message": self.message } });
        let mut response = json_response(self.status, "application/json; charset=utf-8", &body);
        let headers = response.headers_mut();
        if let Some(allow) = self.allow.and_then(|allow| allow.parse().ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Extension(client): Extension<IpAddr>,
    request: Request,
) -> Result<Response, Infallible> {
    let started = Instant::now();
    let method = request.method().clone();
    let route = Route::of(&method, request.uri().path());
    let name = route.as_ref().map_or("none", |route| route.name());
    let limit = Duration::from_secs(shared.limits.request_seconds.max(1));
    let outcome = match route {
        Err(refusal) => Err(refusal),
        Ok(_) if !shared.clients.admits(client, started) => Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "this address makes more requests than it may; try again in a second",
        )),
        Ok(route) => match tokio::time::timeout(limit, respond(&shared, route, request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Refusal::new(
                StatusCode::REQUEST_TIMEOUT,
                "RequestTimeout",
                format!("the request took longer than {} s", limit.as_secs()),
            )),
        },
    };
    let code = outcome.as_ref().err().map(|refusal| refusal.code);
    let mut response = outcome.unwrap_or_else(IntoResponse::into_response);
    let id = request_id();
    if let Ok(value) = id.parse() {
        response.headers_mut().insert("x-ms-request-id", value);
    }
    let elapsed = started.elapsed();
    shared.metrics.count(name, response.status(), elapsed);
    // Neither bodies, nor queries, nor headers: they may carry secrets.
    tracing::info!(
        id,
        %method,
        route = name,
        status = response.status().as_u16(),
        code,
        microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        "request"
    );
    Ok(response)
}

async fn respond(shared: &Arc<Shared>, route: Route, request: Request) -> Result<Response, Refusal> {
    match route {
        Route::OpenApi => return Ok(text_response("application/json", OPENAPI.to_owned())),
        Route::Metrics => {
            let text = shared.metrics.text() + &gauges(shared);
            return Ok(text_response("text/plain; version=0.0.4", text));
        }
        Route::Health => {
            let asked = Arc::clone(shared);
            // Not among the attestations: that the service is busy does not make it unusable.
            let outcome = tokio::task::spawn_blocking(move || asked.service.check_store()).await;
            return match outcome {
                Ok(Ok(())) => Ok(text_response("text/plain", "ok\n".to_owned())),
                Ok(Err(error)) => {
                    tracing::error!(%error, "the store cannot be used");
                    Err(Refusal::unavailable())
                }
                Err(_) => Err(Refusal::unavailable()),
            };
        }
        Route::Page(index) => return Ok(page_response(index)),
        _ => {}
    }
    let (parts, body) = request.into_parts();
    let tenant = tenant(shared, &parts.headers, &parts.uri)?.clone();
    if route.is_versioned() {
        let version = Version::of(&parts.uri)?;
        if version < route.since() {
            let since =
                Version::ALL.iter().find(|(_, known)| *known == route.since()).map_or("", |(name, _)| name);
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "InvalidParameter",
                format!("this address is served from api-version {since} on"),
            ));
        }
    }
    if route.is_management()
        && let Some(authenticator) = &shared.authenticator
    {
        let given = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        authenticator.check(given, enclos_verifier::Time::now().0).await?;
    }
    let limit = match route {
        Route::Inspect => shared.limits.body_bytes.min(MAX_INSPECTION),
        _ => shared.limits.body_bytes,
    };
    let body = read_body(body, limit).await?;
    match route {
        Route::Keys => {
            let accepted = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
            // Azure's JavaScript SDK accepts both and understands only the common one.
            let jwk = accepted.is_some_and(|accepted| {
                accepted.contains("application/jwk+json") && !accepted.contains("application/json")
            });
            let kind = if jwk { "application/jwk+json" } else { "application/json; charset=utf-8" };
            Ok(json_response(StatusCode::OK, kind, &shared.service.published_keys()))
        }
        Route::OpenIdConfiguration => {
            let issuer = &tenant.issuer;
            let configuration = json!({
                "issuer": issuer,
                "jwks_uri": format!("{issuer}/certs"),
                "response_types_supported": ["token", "none"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "revocation_endpoint": format!("{issuer}/revoke"),
                "claims_supported": CLAIMS_SUPPORTED,
            });
            Ok(json_response(StatusCode::OK, "application/json; charset=utf-8", &configuration))
        }
        route => {
            let work = Arc::clone(shared);
            let format = token_format(&parts.uri)?;
            let result =
                judged(shared, move || work_on(&work.service, &tenant, route, format, &body)).await??;
            Ok(json_response(StatusCode::OK, "application/json; charset=utf-8", &result))
        }
    }
}

/// The form of token the query asks for; Azure Attestation has one only.
fn token_format(uri: &Uri) -> Result<TokenFormat, Refusal> {
    match query(uri, "tokenformat") {
        None => Ok(TokenFormat::Maa),
        Some(name) if name.eq_ignore_ascii_case("maa") => Ok(TokenFormat::Maa),
        Some(name) if name.eq_ignore_ascii_case("ear") => Ok(TokenFormat::Ear),
        Some(_) => Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "InvalidParameter",
            "tokenFormat in the query is neither maa nor ear",
        )),
    }
}

/// A value of the query, which none of ours needs escapes for.
fn query<'a>(uri: &'a Uri, wanted: &str) -> Option<&'a str> {
    uri.query().unwrap_or_default().split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case(wanted).then_some(value)
    })
}

/// What takes the processor or the disk.
fn work_on(
    service: &Service,
    tenant: &TenantContext,
    route: Route,
    format: TokenFormat,
    body: &[u8],
) -> Result<Value, Refusal> {
    let invalid = |reason: String| Refusal::new(StatusCode::BAD_REQUEST, "InvalidParameter", reason);
    let text =
        || std::str::from_utf8(body).map_err(|error| invalid(format!("the body is not UTF-8 text: {error}")));
    let result = match route {
        Route::Attest(kind) => {
            let request: AttestRequest = serde_json::from_slice(body).map_err(|error| {
                invalid(format!("the body is not an attestation request in JSON: {error}"))
            })?;
            service.attest(tenant, kind, &request, format)
        }
        Route::GetPolicy(kind) => service.policy(tenant, kind),
        Route::SetPolicy(kind) => service.set_policy(tenant, kind, text()?),
        Route::ResetPolicy(kind) => service.reset_policy(tenant, kind, text()?),
        Route::Certificates => service.certificates(tenant),
        Route::ChangeCertificate { present } => {
            // A JSON string that holds the JWS; some send the JWS itself.
            let jws = serde_json::from_slice::<String>(body).or_else(|_| text().map(str::to_owned))?;
            service.change_certificate(tenant, &jws, present)
        }
        Route::TcbBaselines(kind) => Ok(service.tcb_baselines(kind)),
        Route::Inspect => {
            let request: InspectRequest = serde_json::from_slice(body)
                .map_err(|error| invalid(format!("the body is not a request to inspect in JSON: {error}")))?;
            service.inspect(tenant, &request).map(|inspection| json!(inspection))
        }
        Route::Keys
        | Route::OpenIdConfiguration
        | Route::OpenApi
        | Route::Metrics
        | Route::Health
        | Route::Page(_) => unreachable!("answered without work"),
    };
    Ok(result?)
}

/// Runs work on a thread that may block, with as many at a time as configured.
async fn judged<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    struct Waiting<'a>(&'a AtomicUsize);
    impl Drop for Waiting<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let waiting = shared.waiting.fetch_add(1, Ordering::Relaxed);
    let guard = Waiting(&shared.waiting);
    if waiting >= shared.limits.waiting {
        return Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "the service is busy; try again in a second",
        ));
    }
    let failed = || {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "the request could not be served")
    };
    let permit = Arc::clone(&shared.judging).acquire_owned().await.map_err(|_| failed())?;
    drop(guard);
    // The permit is held by the work, which goes on even when nobody waits for its answer any more.
    tokio::task::spawn_blocking(move || {
        let result = work();
        drop(permit);
        result
    })
    .await
    .map_err(|error| {
        tracing::error!(%error, "a request failed unexpectedly");
        failed()
    })
}

fn tenant<'a>(shared: &'a Shared, headers: &HeaderMap, uri: &Uri) -> Result<&'a TenantContext, Refusal> {
    let authority = uri
        .authority()
        .map(axum::http::uri::Authority::as_str)
        .or_else(|| headers.get(header::HOST).and_then(|host| host.to_str().ok()))
        .unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    shared.tenants.iter().find(|tenant| tenant.name.eq_ignore_ascii_case(host)).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("no attestation instance is named {:?}", host.chars().take(80).collect::<String>()),
        )
    })
}

async fn read_body(body: Body, limit: usize) -> Result<Bytes, Refusal> {
    to_bytes(body, limit).await.map_err(|_| {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestTooLarge",
            format!("the body did not arrive whole, or is longer than {limit} bytes"),
        )
    })
}

const CLAIMS_SUPPORTED: [&str; 26] = [
    "cnf",
    "nonce",
    "x-ms-ver",
    "x-ms-attestation-type",
    "x-ms-policy-hash",
    "x-ms-policy-signer",
    "x-ms-runtime",
    "x-ms-inittime",
    "x-ms-sgx-is-debuggable",
    "x-ms-sgx-mrenclave",
    "x-ms-sgx-mrsigner",
    "x-ms-sgx-product-id",
    "x-ms-sgx-svn",
    "x-ms-sgx-ehd",
    "x-ms-sgx-collateral",
    "x-ms-sgx-report-data",
    "x-ms-sgx-config-id",
    "x-ms-sgx-config-svn",
    "is-debuggable",
    "sgx-mrsigner",
    "sgx-mrenclave",
    "product-id",
    "svn",
    "tee",
    "x-ms-sevsnpvm-launchmeasurement",
    "tdx_mrtd",
];

fn json_response(status: StatusCode, kind: &'static str, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body.to_string())
        .into_response()
}

fn text_response(kind: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

fn page_response(index: usize) -> Response {
    let (_, kind, text) = PAGE[index];
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

/// Names a request in the answer and in the log.
fn request_id() -> String {
    let mut id = [0; 16];
    // Without randomness requests are not told apart, and that is all.
    let _ = SecureRandom::fill(&SystemRandom::new(), &mut id);
    hex::encode(id)
}

/// A bucket a client address: filled at its rate, emptied by requests, holding ten seconds' worth.
#[derive(Debug)]
struct RateLimiter {
    rate: f64,
    buckets: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

/// Addresses remembered; when there are more, those that have not been seen for long are forgotten.
const CLIENTS: usize = 100_000;
const SECONDS_HELD: f64 = 10.0;

impl RateLimiter {
    fn new(requests_per_second: u32) -> Self {
        Self { rate: requests_per_second.into(), buckets: Mutex::default() }
    }

    fn admits(&self, client: IpAddr, now: Instant) -> bool {
        if self.rate == 0.0 {
            return true;
        }
        let full = self.rate * SECONDS_HELD;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CLIENTS && !buckets.contains_key(&client) {
            // A bucket not touched for so long is full again, as a new one would be.
            buckets.retain(|_, (_, seen)| now.duration_since(*seen).as_secs_f64() < SECONDS_HELD);
            if buckets.len() >= CLIENTS {
                return false;
            }
        }
        let (tokens, seen) = buckets.entry(client).or_insert((full, now));
        *tokens = (*tokens + now.duration_since(*seen).as_secs_f64() * self.rate).min(full);
        *seen = now;
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }
}

/// How much is going on at present, in the text form Prometheus reads.
fn gauges(shared: &Shared) -> String {
    let judging = shared.limits.concurrent.max(1).saturating_sub(shared.judging.available_permits());
    let waiting = shared.waiting.load(Ordering::Relaxed);
    let (keys, age) = shared.service.signing_key_age();
    let mut text = String::new();
    for (name, help, value) in [
        ("requests_judged", "Requests being worked on.", judging as u64),
        ("requests_waiting", "Requests that wait for others to be worked on.", waiting as u64),
        ("collateral_platforms", "Platforms there is collateral for.", shared.service.platforms() as u64),
        ("signing_keys", "Keys tokens can be validated with.", keys as u64),
        ("signing_key_age_seconds", "Age of the key that signs tokens.", age.as_secs()),
    ] {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "# HELP enclos_attestation_{name} {help}\n# TYPE enclos_attestation_{name} gauge\n\
             enclos_attestation_{name} {value}"
        );
    }
    text
}

/// Counters in the text form Prometheus reads.
#[derive(Debug, Default)]
struct Metrics {
    routes: [RouteMetrics; ROUTES.len()],
}

const ROUTES: [&str; 15] = [
    "attest",
    "get_policy",
    "set_policy",
    "reset_policy",
    "certificates",
    "change_certificate",
    "tcb_baselines",
    "keys",
    "openid_configuration",
    "openapi",
    "metrics",
    "health",
    "page",
    "inspect",
    "none",
];
/// Upper bounds of the duration histogram, microseconds.
const BUCKETS: [u64; 8] = [500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000];

#[derive(Debug, Default)]
struct RouteMetrics {
    /// By hundreds of the status: 2xx, 4xx, 5xx.
    answers: [AtomicU64; 3],
    buckets: [AtomicU64; BUCKETS.len()],
    microseconds: AtomicU64,
}

impl Metrics {
    fn count(&self, route: &str, status: StatusCode, elapsed: Duration) {
        let index = ROUTES.iter().position(|name| *name == route).unwrap_or(ROUTES.len() - 1);
        let route = &self.routes[index];
        let class = match status.as_u16() {
            ..400 => 0,
            400..500 => 1,
            _ => 2,
        };
        route.answers[class].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        route.microseconds.fetch_add(microseconds, Ordering::Relaxed);
        for (bucket, bound) in route.buckets.iter().zip(BUCKETS) {
            if microseconds <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for people's eyes")]
    fn text(&self) -> String {
        let mut text = String::from(
            "# HELP enclos_attestation_requests_total Requests answered.\n# TYPE enclos_attestation_requests_total counter\n",
        );
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // Writing to a string does not fail.
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            for (class, count) in ["2xx", "4xx", "5xx"].iter().zip(&route.answers) {
                let _ = writeln!(
                    text,
                    "enclos_attestation_requests_total{{route=\"{name}\",status=\"{class}\"}} {}",
                    load(count)
                );
            }
        }
        text.push_str(
            "# HELP enclos_attestation_request_seconds Time to answer.\n# TYPE enclos_attestation_request_seconds histogram\n",
        );
        for (name, route) in ROUTES.iter().zip(&self.routes) {
            let total: u64 = route.answers.iter().map(load).sum();
            for (bucket, bound) in route.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(
                    text,
                    "enclos_attestation_request_seconds_bucket{{route=\"{name}\",le=\"{}\"}} {}",
                    bound as f64 / 1e6,
                    load(bucket)
                );
            }
            let _ = writeln!(
                text,
                "enclos_attestation_request_seconds_bucket{{route=\"{name}\",le=\"+Inf\"}} {total}\n\
                 enclos_attestation_request_seconds_sum{{route=\"{name}\"}} {}\n\
                 enclos_attestation_request_seconds_count{{route=\"{name}\"}} {total}",
                load(&route.microseconds) as f64 / 1e6
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_limited_apart_and_recover() {
        let limiter = RateLimiter::new(2);
        let (one, other) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let start = Instant::now();
        let admitted = (0..30).filter(|_| limiter.admits(one, start)).count();
        assert_eq!(admitted, 20);
        assert!(limiter.admits(other, start));
        assert!(!limiter.admits(one, start + Duration::from_millis(400)));
        assert!(limiter.admits(one, start + Duration::from_millis(600)));
        assert!(!limiter.admits(one, start + Duration::from_millis(700)));
        let unlimited = RateLimiter::new(0);
        assert!((0..10_000).all(|_| unlimited.admits(one, start)));
    }

    #[test]
    fn the_description_has_every_address_and_no_other() {
        let description: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = std::collections::BTreeSet::from(["none", "openapi"]);
        for (path, operations) in description["paths"].as_object().unwrap() {
            let path = path.replace("{attestationType}", "TdxVm");
            for method in operations.as_object().unwrap().keys().filter(|name| *name != "parameters") {
                let method: Method = method.to_uppercase().parse().unwrap();
                let route = Route::of(&method, &path)
                    .unwrap_or_else(|refusal| panic!("{method} {path}: {}", refusal.message));
                described.insert(route.name());
            }
        }
        assert_eq!(described, std::collections::BTreeSet::from(ROUTES));
    }

    #[test]
    fn addresses_lead_where_they_should() {
        let route = |method: &str, path: &str| {
            Route::of(&method.parse().unwrap(), path).map_err(|refusal| refusal.status.as_u16())
        };
        assert_eq!(route("POST", "/attest/SgxEnclave"), Ok(Route::Attest(AttestationType::SgxEnclave)));
        assert_eq!(route("POST", "/attest/sgxenclave/"), Ok(Route::Attest(AttestationType::SgxEnclave)));
        assert_eq!(route("PUT", "/policies/TdxVm"), Ok(Route::SetPolicy(AttestationType::TdxVm)));
        assert_eq!(route("POST", "/policies/TdxVm:reset"), Ok(Route::ResetPolicy(AttestationType::TdxVm)));
        assert_eq!(route("POST", "/certificates:remove"), Ok(Route::ChangeCertificate { present: false }));
        assert_eq!(route("GET", "/inspector"), Ok(Route::Page(0)));
        assert_eq!(route("POST", "/inspect"), Ok(Route::Inspect));
        for (method, path, status) in [
            ("GET", "/attest/SgxEnclave", 405),
            ("GET", "/policies/TdxVm:reset", 405),
            ("DELETE", "/policies/TdxVm", 405),
            ("POST", "/attest/Tpm", 400),
            ("POST", "/attest", 404),
            ("POST", "/attest/SgxEnclave/more", 404),
            ("GET", "/", 404),
            ("GET", "/inspector/other.js", 404),
            ("POST", "/inspector", 405),
            ("GET", "/inspect", 405),
        ] {
            assert_eq!(route(method, path), Err(status), "{method} {path}");
        }
    }
}
