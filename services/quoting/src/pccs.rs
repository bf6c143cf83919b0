//! The emulated platform's provisioning certificate caching service (PCCS): what software written for SGX nodes asks for
//! collateral.
//!
//! Addresses, parameters, headers and status codes are those of Intel's PCCS and of the PCS API, versions 3 and 4. All it
//! gives is public; nobody has to prove anything, and nothing can be changed.

use std::{future::Future, io, net::TcpListener, sync::Arc};

use axum::{
    Router,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use enclos_verifier::{Collateral, Time};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;

use crate::{EmulatedQuoting, FMSPC, PCE_ID, PCE_SVN, QuotingError, collateral};

/// Serves collateral over HTTP on a listening socket, until `stop` is done.
///
/// Addresses below `/sgx/certification/v3/` and `/v4/`: `tcb`, `qe/identity`, `pckcrl`, `pckcert`, `rootcacrl`, `crl`.
/// There is no emulated TDX and no quote verification enclave: their addresses answer that there are no data.
///
/// # Errors
/// Those of the socket, and of starting the runtime.
pub fn serve_pccs(
    listener: TcpListener,
    quoting: Arc<EmulatedQuoting>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        axum::serve(listener, router(quoting)).with_graceful_shutdown(stop).await
    })
}

type Shared = State<Arc<EmulatedQuoting>>;
type Answer = Result<Response, Refusal>;

fn router(quoting: Arc<EmulatedQuoting>) -> Router {
    let versions = Router::new()
        .route("/sgx/certification/{version}/tcb", get(tcb))
        .route("/sgx/certification/{version}/qe/identity", get(qe_identity))
        .route("/sgx/certification/{version}/qve/identity", get(no_data))
        .route("/sgx/certification/{version}/pckcrl", get(pck_crl))
        .route("/sgx/certification/{version}/pckcert", get(pck_certificate))
        .route("/sgx/certification/{version}/rootcacrl", get(root_ca_crl))
        .route("/sgx/certification/{version}/crl", get(crl_by_uri))
        .route("/tdx/certification/{version}/tcb", get(no_data))
        .route("/tdx/certification/{version}/qe/identity", get(no_data));
    versions
        .fallback(|| async { Refusal::NotFound })
        .layer(axum::middleware::map_response(with_request_id))
        .with_state(quoting)
}

/// Version of the API.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum Version {
    #[serde(rename = "v3")]
    V3,
    #[serde(rename = "v4")]
    V4,
}

#[derive(Deserialize)]
struct TcbQuery {
    fmspc: String,
    #[serde(default, rename = "tcbEvaluationDataNumber")]
    number: Option<u32>,
}

async fn tcb(State(quoting): Shared, Path(version): Path<Version>, query: Query<TcbQuery>) -> Answer {
    let fmspc = fixed::<6>(&query.fmspc)?;
    let collateral = quoting.collateral(Time::now())?;
    if fmspc != FMSPC || query.number.is_some_and(|number| number != collateral::EVALUATION_DATA_NUMBER) {
        return Err(Refusal::NoData);
    }
    let (issuer_header, info, signature) = match version {
        Version::V3 => {
            let (info, signature) = collateral::tcb_info_v2(&quoting.hierarchy, &collateral)?;
            ("sgx-tcb-info-issuer-chain", info, signature)
        }
        Version::V4 => ("tcb-info-issuer-chain", collateral.tcb_info, collateral.tcb_info_signature),
    };
    Ok(signed("tcbInfo", &info, &signature, issuer_header, &collateral.tcb_info_issuer_chain))
}

async fn qe_identity(State(quoting): Shared, Path(_): Path<Version>) -> Answer {
    let c = quoting.collateral(Time::now())?;
    let header = "sgx-enclave-identity-issuer-chain";
    Ok(signed(
        "enclaveIdentity",
        &c.qe_identity,
        &c.qe_identity_signature,
        header,
        &c.qe_identity_issuer_chain,
    ))
}

#[derive(Deserialize)]
struct CrlQuery {
    ca: String,
    #[serde(default)]
    encoding: Option<String>,
}

async fn pck_crl(State(quoting): Shared, Path(_): Path<Version>, query: Query<CrlQuery>) -> Answer {
    match &*query.ca {
        "platform" => {}
        "processor" => return Err(Refusal::NoData),
        _ => return Err(Refusal::Invalid),
    }
    let Collateral { pck_crl, pck_crl_issuer_chain, .. } = quoting.collateral(Time::now())?;
    let issuer = ("sgx-pck-crl-issuer-chain", percent_encoded(&pck_crl_issuer_chain));
    Ok(match query.encoding.as_deref() {
        Some(encoding) if encoding.eq_ignore_ascii_case("der") => with(issuer, (CRL, pck_crl)),
        // Where Intel's service would answer PEM, a PCCS answers hexadecimal text.
        _ => with(issuer, (CRL, hex::encode(pck_crl))),
    })
}

#[derive(Deserialize)]
struct PckQuery {
    qeid: String,
    #[serde(default)]
    encrypted_ppid: Option<String>,
    cpusvn: String,
    pcesvn: String,
    pceid: String,
}

async fn pck_certificate(State(quoting): Shared, Path(_): Path<Version>, query: Query<PckQuery>) -> Answer {
    let cpu_svn = fixed::<16>(&query.cpusvn)?;
    let pce_svn = u16::from_le_bytes(fixed(&query.pcesvn)?);
    let pce_id = fixed::<2>(&query.pceid)?;
    if let Some(ppid) = query.encrypted_ppid.as_deref().filter(|ppid| !ppid.is_empty()) {
        // Of any contents: the emulated PCE encrypts none.
        fixed::<384>(ppid)?;
    }
    if fixed::<16>(&query.qeid)? != quoting.qe_id || pce_id != PCE_ID {
        return Err(Refusal::UnknownPlatform);
    }
    let own = quoting.cpu_svn();
    // The certificate is for the platform's TCB, which a lower one than its cannot vouch for.
    if pce_svn < PCE_SVN || cpu_svn.iter().zip(own).any(|(asked, own)| *asked < own) {
        return Err(Refusal::NoCertificate);
    }
    let mut response = (PEM, quoting.hierarchy.pck_pem().to_owned()).into_response();
    let chain = percent_encoded(&quoting.hierarchy.pck_issuer_chain());
    let tcbm = hex::encode_upper([&own[..], &PCE_SVN.to_le_bytes()].concat());
    for (name, value) in [
        ("sgx-pck-certificate-issuer-chain", chain),
        ("sgx-tcbm", tcbm),
        ("sgx-fmspc", hex::encode_upper(FMSPC)),
        ("sgx-pck-certificate-ca-type", "platform".into()),
    ] {
        put(response.headers_mut(), name, &value);
    }
    Ok(response)
}

async fn root_ca_crl(State(quoting): Shared, Path(_): Path<Version>) -> Answer {
    let crl = quoting.collateral(Time::now())?.root_ca_crl;
    Ok((CRL, hex::encode(crl)).into_response())
}

#[derive(Deserialize)]
struct UriQuery {
    uri: String,
}

/// By the distribution point that the root certificate names.
async fn crl_by_uri(State(quoting): Shared, Path(_): Path<Version>, query: Query<UriQuery>) -> Answer {
    if query.uri != crate::hierarchy::ROOT_CRL {
        return Err(Refusal::NoData);
    }
    let crl = quoting.collateral(Time::now())?.root_ca_crl;
    Ok((CRL, crl).into_response())
}

async fn no_data() -> Refusal {
    Refusal::NoData
}

/// Every answer has an identifier, as Intel's have.
async fn with_request_id(mut response: Response) -> Response {
    let mut id = [0; 16];
    if SystemRandom::new().fill(&mut id).is_ok() {
        put(response.headers_mut(), "request-id", &hex::encode(id));
    }
    response
}

/// Why there is no answer, with the status codes and words of Intel's PCCS.
enum Refusal {
    NotFound,
    Invalid,
    NoData,
    UnknownPlatform,
    NoCertificate,
    Failed(QuotingError),
}

impl From<QuotingError> for Refusal {
    fn from(error: QuotingError) -> Self {
        Self::Failed(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NotFound => (404, "There is nothing at this address.".into()),
            Self::Invalid => (400, "Invalid request parameters.".into()),
            Self::NoData => (404, "No cache data for this platform.".into()),
            Self::UnknownPlatform => (461, "The platform was not found in the cache.".into()),
            Self::NoCertificate => (462, "Certificates are not available for certain TCBs.".into()),
            Self::Failed(error) => (500, error.to_string()),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, text).into_response()
    }
}

const CRL: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/pkix-crl")];
const PEM: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/x-pem-file")];
const JSON: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];

/// A document with its signature around it: the bytes signed are those given.
fn signed(
    name: &str,
    document: &str,
    signature: &[u8],
    issuer_header: &'static str,
    chain: &str,
) -> Response {
    let body = format!("{{\"{name}\":{document},\"signature\":\"{}\"}}", hex::encode(signature));
    with((issuer_header, percent_encoded(chain)), (JSON, body))
}

fn with((name, value): (&'static str, String), response: impl IntoResponse) -> Response {
    let mut response = response.into_response();
    put(response.headers_mut(), name, &value);
    response
}

/// All values put here are hexadecimal or percent-encoded.
fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// As `encodeURIComponent`, with which Intel's PCCS encodes.
fn percent_encoded(chain: &str) -> String {
    const KEPT: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    utf8_percent_encode(chain, &KEPT).to_string()
}

/// Hexadecimal digits, of either case, of exactly so many bytes.
fn fixed<const N: usize>(text: &str) -> Result<[u8; N], Refusal> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| Refusal::Invalid)?;
    Ok(bytes)
}
