//! The REST interface: addresses, versions, bounds and errors as Azure Attestation has them.

mod metrics;
mod provisioning;
mod rate;
mod refusal;
mod route;

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Extension, Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;

use self::{
    metrics::{Metrics, gauges},
    provisioning::Provisioning,
    rate::RateLimiter,
    refusal::Refusal,
    route::{PAGE, Route, Version, token_format},
};
use crate::{
    authentication::Authenticator,
    config::{Config, Limits, StartError, Tls},
    engine::{Engine, Operation, RefusalKind, Refused, Settings, Status},
    inspector::MAX_EVIDENCE,
    service::{Service, TenantContext},
};

/// An engine that several threads ask.
pub type SharedEngine = Arc<dyn Engine + Send + Sync>;

/// How long open connections may finish their requests when the service is told to stop.
const GRACE: Duration = Duration::from_secs(10);
/// The description served at `/openapi.json`.
const OPENAPI: &str = include_str!("../openapi.json");
/// The page may load its own parts and ask its own service, and nothing else, even if something got into it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
/// Longest request to inspect evidence, bytes: evidence in base64, collateral, and their names.
const MAX_INSPECTION: usize = 2 * MAX_EVIDENCE + 256 * 1024;
/// Type of most answers.
const JSON: &str = "application/json; charset=utf-8";

/// A service that is ready to serve.
pub struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
}

struct Shared {
    engine: SharedEngine,
    provisioning: Option<Arc<Provisioning>>,
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
        Self::bind_with(config, |config, settings| {
            let store = config.open_store()?;
            Ok(Arc::new(Service::start(settings, store, None)?))
        })
        .await
    }

    /// As [`Server::bind`], with the engine that `start` gives, such as one in an enclave. It may block.
    ///
    /// # Errors
    /// [`StartError`] when something is not usable, or `start` gives none.
    pub async fn bind_with(
        config: Config,
        start: impl FnOnce(&Config, Settings) -> Result<SharedEngine, StartError> + Send + 'static,
    ) -> Result<Self, StartError> {
        let config = config.checked()?;
        let tls = config.tls.as_ref().map(tls_acceptor).transpose()?;
        let authenticator = config.authentication.as_ref().map(Authenticator::new).transpose()?;
        let provisioning = config.pccs.as_ref().map(|pccs| Provisioning::new(pccs, &config)).transpose()?;
        let failed = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let opened = config.clone();
        // Stores block.
        let (engine, tenants, status) = tokio::task::spawn_blocking(move || -> Result<_, StartError> {
            let settings = opened.settings(port)?;
            let tenants = settings.tenants.iter().map(TenantContext::from).collect();
            let engine = start(&opened, settings)?;
            let status = engine.status().map_err(|refused| StartError::Engine(refused.into()))?;
            Ok((engine, tenants, status))
        })
        .await
        .map_err(|error| StartError::Threads { source: std::io::Error::other(error) })??;
        tracing::info!(
            address = %config.listen,
            port,
            tls = tls.is_some(),
            tenants = config.tenants.len(),
            platforms = status.platforms,
            authentication = authenticator.is_some(),
            "attestation service ready"
        );
        let shared = Shared {
            engine,
            provisioning: provisioning.map(Arc::new),
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
        let upkeep = tokio::spawn(upkeep(Arc::clone(&shared)));
        let mut stop = std::pin::pin!(stop);
        loop {
            let permit = tokio::select! {
                () = &mut stop => break,
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
        upkeep.abort();
        if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were cut off at shutdown");
        }
    }
}

/// What is to be done from time to time, whether anybody asks or not.
async fn upkeep(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(Duration::from_secs(shared.limits.upkeep_seconds.max(1)));
    loop {
        interval.tick().await;
        let shared = Arc::clone(&shared);
        let done = tokio::task::spawn_blocking(move || {
            if let Err(error) = shared.engine.rotate_keys() {
                tracing::error!(%error, "signing keys could not be rotated");
            }
            if let Some(provisioning) = &shared.provisioning {
                provisioning.renew(&shared.engine);
            }
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "signing keys and collateral were not looked at");
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
            let text = shared.metrics.text() + &gauges_now(shared).await;
            return Ok(text_response("text/plain; version=0.0.4", text));
        }
        Route::Health => {
            return match ask(shared, |engine| engine.status()).await {
                Ok(_) => Ok(text_response("text/plain", "ok\n".to_owned())),
                Err(error) => {
                    tracing::error!(%error, "the store cannot be used");
                    Err(Refusal::unavailable())
                }
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
        Route::Engine(Operation::Inspect) => shared.limits.body_bytes.min(MAX_INSPECTION),
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
            let kind = if jwk { "application/jwk+json" } else { JSON };
            let keys = ask(shared, |engine| engine.published_keys()).await?;
            Ok(json_response(StatusCode::OK, kind, keys))
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
            Ok(json_response(StatusCode::OK, JSON, configuration.to_string()))
        }
        Route::Engine(operation) => {
            let operation = match operation {
                Operation::Attest(kind, _) => Operation::Attest(kind, token_format(&parts.uri)?),
                other => other,
            };
            let (engine, provisioning) = (Arc::clone(&shared.engine), shared.provisioning.clone());
            let work = move || {
                let answer = engine.answer(&tenant.name, operation, &body);
                match (answer, provisioning) {
                    (Err(refused), Some(provisioning)) if refused.kind == RefusalKind::NoCollateral => {
                        match provisioning.provide(&engine, &body) {
                            Ok(()) => engine.answer(&tenant.name, operation, &body),
                            Err(reason) => {
                                let message = format!("{}: {reason}", refused.message);
                                Err(Refused { message, ..refused })
                            }
                        }
                    }
                    (answer, _) => answer,
                }
            };
            Ok(json_response(StatusCode::OK, JSON, judged(shared, work).await??))
        }
        Route::OpenApi | Route::Metrics | Route::Health | Route::Page(_) => {
            unreachable!("answered without a tenant")
        }
    }
}

/// Asks the engine on a thread that may block. Not among the attestations: that the service is busy does not make it
/// unusable.
async fn ask<T: Send + 'static>(
    shared: &Shared,
    question: impl FnOnce(&SharedEngine) -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let engine = Arc::clone(&shared.engine);
    let answered = tokio::task::spawn_blocking(move || question(&engine)).await;
    answered.unwrap_or_else(|error| {
        Err(Refused { kind: RefusalKind::Internal, message: format!("a thread ended early: {error}") })
    })
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

fn json_response(status: StatusCode, kind: &'static str, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body).into_response()
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

/// How much is going on at present; what the engine says only while it answers.
async fn gauges_now(shared: &Arc<Shared>) -> String {
    let judging = shared.limits.concurrent.max(1).saturating_sub(shared.judging.available_permits());
    let waiting = shared.waiting.load(Ordering::Relaxed);
    let mut all = vec![
        ("requests_judged", "Requests being worked on.", judging as u64),
        ("requests_waiting", "Requests that wait for others to be worked on.", waiting as u64),
    ];
    if let Ok(Status { platforms, keys, signing_key_age }) = ask(shared, |engine| engine.status()).await {
        all.push(("collateral_platforms", "Platforms there is collateral for.", platforms));
        all.push(("signing_keys", "Keys tokens can be validated with.", keys));
        all.push(("signing_key_age_seconds", "Age of the key that signs tokens.", signing_key_age));
    }
    gauges(&all)
}

/// Names a request in the answer and in the log.
fn request_id() -> String {
    let mut id = [0; 16];
    // Without randomness requests are not told apart, and that is all.
    let _ = SecureRandom::fill(&SystemRandom::new(), &mut id);
    hex::encode(id)
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use serde_json::Value;

    use super::{metrics::ROUTES, *};

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
}
