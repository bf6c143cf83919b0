//! Bearer tokens of who manages policies: JWTs (RFC 7519) signed by an issuer whose keys are in a file, or are found by
//! OpenID Connect Discovery 1.0 at the issuer.
//!
//! Algorithms are pinned: RS256 and ES256, each with keys of its type only, whatever a token's header says.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use axum::{
    body::{Body, to_bytes},
    http::{Request, Uri, header, uri::Scheme},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, sync::Mutex};
use tokio_rustls::TlsConnector;

use crate::{
    config::{Authentication, ConfigError, is_loopback},
    jws::decode_base64,
    tls,
};

/// How far clocks may differ, seconds.
const CLOCK_SKEW: u64 = 60;
/// How long an issuer may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer of an issuer, bytes.
const FETCH_LIMIT: usize = 1 << 20;
/// How long keys that were found are used without asking again.
const FRESH: Duration = Duration::from_secs(3600);
/// How long keys are still used while the issuer does not answer.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How long after a fetch the issuer is not asked again, whatever tokens name.
const PAUSE: Duration = Duration::from_secs(10);

/// Checks bearer tokens.
pub struct Authenticator {
    issuer: String,
    audience: String,
    keys: Keys,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// Where the issuer's keys come from.
enum Keys {
    File(Arc<Vec<Key>>),
    Discovered(Box<Discovery>),
}

/// Why a bearer token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// There is none.
    #[error("the request has no bearer token; send Authorization: Bearer <token>")]
    Missing,
    /// It is not a JWT this service reads.
    #[error("the bearer token is not a JWT signed with RS256 or ES256")]
    Malformed,
    /// No key of the issuer made its signature.
    #[error("the bearer token is not signed by a key of the configured issuer")]
    Signature,
    /// A claim is not what it must be.
    #[error("the bearer token has another {0} than this service demands")]
    Claim(&'static str),
    /// It is not valid at this time.
    #[error("the bearer token is expired or not valid yet")]
    Time,
    /// It cannot be told: the issuer does not say its keys.
    #[error("the keys of the issuer of bearer tokens cannot be had at present; try again later")]
    Issuer,
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515, section 4.1.11); none is.
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Payload {
    iss: String,
    aud: Audience,
    exp: u64,
    #[serde(default)]
    nbf: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Authenticator {
    /// Reads the issuer's keys, or prepares to find them. The issuer is first asked when a token is to be checked: that
    /// it does not answer must not keep the service from attesting.
    ///
    /// # Errors
    /// [`ConfigError`] when the file is not a key set with a usable key, or the issuer has no usable address.
    pub fn new(configuration: &Authentication) -> Result<Self, ConfigError> {
        let Authentication { issuer, audience, jwks, ca } = configuration;
        let keys = match jwks {
            Some(path) => {
                let text =
                    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
                let keys =
                    key_set(&text).map_err(|reason| ConfigError::Content { path: path.clone(), reason })?;
                Keys::File(Arc::new(keys))
            }
            None => Keys::Discovered(Box::new(Discovery::new(issuer, ca.as_ref())?)),
        };
        Ok(Self { issuer: issuer.clone(), audience: audience.clone(), keys })
    }

    /// Checks an `Authorization` header as of `now`, seconds since 1970.
    ///
    /// # Errors
    /// [`BearerError`] when the token is not the issuer's, for this audience, and in force.
    pub async fn check(&self, header: Option<&str>, now: u64) -> Result<(), BearerError> {
        let (scheme, token) = header.and_then(|header| header.split_once(' ')).ok_or(BearerError::Missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(BearerError::Missing);
        }
        let token = token.trim();
        let parts: Vec<_> = token.split('.').collect();
        let [header, payload, signature] = parts[..] else { return Err(BearerError::Malformed) };
        let decode = |text| decode_base64(text).map_err(|_| BearerError::Malformed);
        let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
        let header: Header = parse(&decode(header)?)?;
        if header.crit.is_some() {
            return Err(BearerError::Malformed);
        }
        let signature = decode(signature)?;
        let keys = self.keys.get(header.kid.as_deref()).await?;
        let verified = keys
            .iter()
            .filter(|key| header.kid.is_none() || key.kid.is_none() || key.kid == header.kid)
            .any(|key| key.material.verifies(&header.alg, signed, &signature));
        if !verified {
            return Err(BearerError::Signature);
        }
        let payload: Payload = parse(&decode(payload)?)?;
        let for_us = match &payload.aud {
            Audience::One(audience) => *audience == self.audience,
            Audience::Many(audiences) => audiences.contains(&self.audience),
        };
        if payload.iss != self.issuer {
            return Err(BearerError::Claim("issuer"));
        }
        if !for_us {
            return Err(BearerError::Claim("audience"));
        }
        if now > payload.exp.saturating_add(CLOCK_SKEW) || now.saturating_add(CLOCK_SKEW) < payload.nbf {
            return Err(BearerError::Time);
        }
        Ok(())
    }
}

impl Keys {
    /// The keys there are, asked for anew when a token names one that is not among them.
    async fn get(&self, wanted: Option<&str>) -> Result<Arc<Vec<Key>>, BearerError> {
        match self {
            Self::File(keys) => Ok(Arc::clone(keys)),
            Self::Discovered(discovery) => discovery.keys(wanted).await.ok_or(BearerError::Issuer),
        }
    }
}

/// An issuer that says its keys (OpenID Connect Discovery 1.0, section 4).
struct Discovery {
    issuer: String,
    address: Uri,
    tls: TlsConnector,
    found: RwLock<Option<(Instant, Arc<Vec<Key>>)>>,
    /// When it was asked last; held while it is asked, so that many requests ask once.
    asked: Mutex<Option<Instant>>,
}

/// What is read of `/.well-known/openid-configuration`.
#[derive(Deserialize)]
struct ProviderMetadata {
    issuer: String,
    jwks_uri: String,
}

impl Discovery {
    fn new(issuer: &str, ca: Option<&PathBuf>) -> Result<Self, ConfigError> {
        let refuse = |reason| ConfigError::Issuer { issuer: issuer.to_owned(), reason };
        let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let address = checked(&address).map_err(refuse)?;
        let tls = tls::client(ca.map(PathBuf::as_path)).map_err(refuse)?;
        Ok(Self {
            issuer: issuer.to_owned(),
            address,
            tls: TlsConnector::from(Arc::new(tls)),
            found: RwLock::default(),
            asked: Mutex::default(),
        })
    }

    fn found(&self) -> Option<(Instant, Arc<Vec<Key>>)> {
        self.found.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn keys(&self, wanted: Option<&str>) -> Option<Arc<Vec<Key>>> {
        let usable = |found: Option<(Instant, Arc<Vec<Key>>)>, age: Duration| {
            found.filter(|(at, _)| at.elapsed() < age).map(|(_, keys)| keys)
        };
        let named = |keys: &Arc<Vec<Key>>| {
            wanted.is_none_or(|wanted| keys.iter().any(|key| key.kid.as_deref().is_none_or(|k| k == wanted)))
        };
        if let Some(keys) = usable(self.found(), FRESH).filter(named) {
            return Some(keys);
        }
        let mut asked = self.asked.lock().await;
        // Another request may have asked meanwhile; and who sends nonsense must not make us ask all the time.
        if asked.is_none_or(|at| at.elapsed() >= PAUSE) {
            let outcome = tokio::time::timeout(FETCH_TIMEOUT, self.discover()).await;
            *asked = Some(Instant::now());
            match outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))) {
                Ok(keys) => {
                    let found = Some((Instant::now(), Arc::new(keys)));
                    *self.found.write().unwrap_or_else(PoisonError::into_inner) = found;
                }
                Err(reason) => {
                    tracing::warn!(issuer = self.issuer, reason, "the issuer's keys cannot be had");
                }
            }
        }
        usable(self.found(), STALE)
    }

    async fn discover(&self) -> Result<Vec<Key>, String> {
        let metadata = self.get(&self.address).await?;
        let metadata: ProviderMetadata = serde_json::from_slice(&metadata)
            .map_err(|error| format!("{} is not OpenID provider metadata: {error}", self.address))?;
        // Section 4.3: it must be the issuer that was asked.
        if metadata.issuer != self.issuer {
            return Err(format!("{} is of the issuer {:?}", self.address, metadata.issuer));
        }
        let address = checked(&metadata.jwks_uri)?;
        key_set(&self.get(&address).await?).map_err(|reason| format!("{address}: {reason}"))
    }

    async fn get(&self, address: &Uri) -> Result<Vec<u8>, String> {
        let failed = |error: &dyn fmt::Display| format!("{address}: {error}");
        let host = address.host().unwrap_or_default();
        let secured = address.scheme() == Some(&Scheme::HTTPS);
        let port = address.port_u16().unwrap_or(if secured { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, port)).await.map_err(|error| failed(&error))?;
        let path = address.path_and_query().map_or("/", |path| path.as_str());
        let authority = address.authority().map_or(host, |authority| authority.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| failed(&error))?;
        let response = if secured {
            let name = rustls_pki_types::ServerName::try_from(bare.to_owned()).map_err(|e| failed(&e))?;
            let stream = self.tls.connect(name, stream).await.map_err(|error| failed(&error))?;
            exchange(stream, request).await
        } else {
            exchange(stream, request).await
        };
        let response = response.map_err(|error| failed(&error))?;
        if response.status() != hyper::StatusCode::OK {
            return Err(format!("{address} answers {}", response.status()));
        }
        let body = to_bytes(Body::new(response.into_body()), FETCH_LIMIT).await;
        body.map(|body| body.to_vec()).map_err(|error| failed(&error))
    }
}

/// One request on a connection of its own, which ends with the answer.
async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> hyper::Result<hyper::Response<hyper::body::Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// An address keys may be had from: nobody on the way may change them.
fn checked(address: &str) -> Result<Uri, String> {
    let uri: Uri = address.parse().map_err(|error| format!("{address:?} is not an address: {error}"))?;
    let host = uri.host().ok_or_else(|| format!("{address:?} names no host"))?;
    if uri.scheme() == Some(&Scheme::HTTPS) || uri.scheme() == Some(&Scheme::HTTP) && is_loopback(host) {
        return Ok(uri);
    }
    Err(format!("{address:?} is neither https nor http on loopback"))
}

fn key_set(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: JwkSet =
        serde_json::from_slice(text).map_err(|error| format!("not a JSON Web Key Set: {error}"))?;
    let keys: Vec<_> = set.keys.into_iter().filter_map(Jwk::usable).collect();
    if keys.is_empty() {
        return Err(
            "no RSA key with n and e, nor EC key on P-256 with x and y, for signatures is in it".into()
        );
    }
    Ok(keys)
}

fn parse<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Result<T, BearerError> {
    serde_json::from_slice(json).map_err(|_| BearerError::Malformed)
}

impl Jwk {
    /// The key, when it is one for signatures of the pinned algorithms.
    fn usable(self) -> Option<Key> {
        if self.usage.is_some_and(|usage| usage != "sig") {
            return None;
        }
        let is_for = |name: &str| self.alg.as_deref().is_none_or(|alg| alg == name);
        let part = |text: Option<String>| text.and_then(|text| decode_base64(&text).ok());
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) if is_for("RS256") => Material::Rsa { n: part(self.n)?, e: part(self.e)? },
            ("EC", Some("P-256")) if is_for("ES256") => {
                let point = [vec![4], part(self.x)?, part(self.y)?].concat();
                (point.len() == 65).then_some(Material::P256(point))?
            }
            _ => return None,
        };
        Some(Key { kid: self.kid, material })
    }
}

impl Material {
    fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, "RS256") => RsaPublicKeyComponents { n, e }
                .verify(&signature::RSA_PKCS1_2048_8192_SHA256, signed, signature)
                .is_ok(),
            (Self::P256(point), "ES256") => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok()
            }
            _ => false,
        }
    }
}
