//! The client: verifies what is offered, then encrypts. There is no way to encrypt for what was not accepted.
//!
//! [`Verified`] is one accepted offer, without any transport. [`Client`] keeps one over a [`Transport`] to the host, which is
//! believed in nothing: it verifies before the first request, anew when the key or the verdict grows old, and asks for the very
//! versions of models that the evidence vouches for. [`Http`] (feature `http`) is a transport.

#[cfg(feature = "attested-tls")]
pub mod attested_tls;
#[cfg(feature = "http")]
mod http;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bhttp::{Message, Mode};
use enclos_verifier::{
    AnyCollateral, Bytes, Collateral, CollateralMismatch, Evidence, Identity, Policy, PolicyError, Time,
    Verdict, appraise,
};
use ohttp::{ClientRequest, ClientResponse};

#[cfg(feature = "http")]
pub use self::http::Http;
use crate::{DocumentError, OFFER_PATH, Offer, OfferedModel, SMALLEST_BUCKET, padded, report_data};

/// Where hosts take encapsulated requests (RFC 9540, section 4).
pub const GATEWAY_PATH: &str = "/.well-known/ohttp-gateway";
/// Media types of encapsulated requests and responses (RFC 9458, section 9).
pub const ENCAPSULATED: [&str; 2] = ["message/ohttp-req", "message/ohttp-res"];
/// How long a verdict is relied on: in between, collateral may have expired, and models have newer versions.
const VERDICT_LASTS: Duration = Duration::from_secs(600);
/// How much of a message is JSON, if binary tensors follow.
const HEADER_LENGTH: &str = "inference-header-content-length";

/// Why a client does not send, or has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server has another model than the client wants.
    #[error("the server does not have the model {wanted}; it has {}", .offered.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(", "))]
    OtherModel {
        /// Name or hash.
        wanted: String,
        /// What there is.
        offered: Vec<OfferedModel>,
    },
    /// The policy demands report data itself; here they are given by what is offered.
    #[error("the policy demands report data itself: leave that to the client")]
    ReportData,
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The collateral is not for this evidence.
    #[error(transparent)]
    Mismatch(#[from] CollateralMismatch),
    /// The evidence is refused.
    #[error("the server is refused: {}", .0.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Box<Verdict>),
    /// The key configuration is malformed, or the response is not this request's.
    #[error("the encapsulation is not valid: {0}")]
    Encapsulation(#[from] ohttp::Error),
    /// What was decrypted is no binary HTTP.
    #[error("the message inside is not valid: {0}")]
    Message(#[from] bhttp::Error),
    /// What was decrypted is no response.
    #[error("the message inside is no response")]
    NoResponse,
    /// The host cannot be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The host publishes no offer.
    #[error("the host's offer: {0}")]
    Offer(#[from] DocumentError),
    /// The collateral cannot be had.
    #[error("no collateral: {0}")]
    Collateral(String),
    /// The host answers in the enclave's place. What it says is its word only.
    #[error("the host answers {status} instead of the enclave: {detail}")]
    Host {
        /// HTTP status.
        status: u16,
        /// What it says.
        detail: String,
    },
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {reason}")]
pub struct TransportError {
    /// What was asked.
    pub url: String,
    /// Why.
    pub reason: String,
}

/// Carries messages to a host and back. What it brings is checked by the client.
pub trait Transport: Send + Sync {
    /// `GET` of a path of the host.
    ///
    /// # Errors
    /// When no HTTP response came back.
    fn get(&self, path: &str) -> Result<HostResponse, TransportError>;

    /// `POST` to a path of the host.
    ///
    /// # Errors
    /// When no HTTP response came back.
    fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<HostResponse, TransportError>;
}

/// What a host answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostResponse {
    /// HTTP status.
    pub status: u16,
    /// Of the header Content-Type; empty if there is none.
    pub content_type: String,
    /// All of it.
    pub body: Vec<u8>,
}

impl HostResponse {
    /// Is its body of this media type, whatever the parameters?
    pub fn is_of(&self, media_type: &str) -> bool {
        let kind = self.content_type.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case(media_type)
    }

    fn expect(self, media_type: &str) -> Result<Vec<u8>, ClientError> {
        match self.status == 200 && self.is_of(media_type) {
            true => Ok(self.body),
            false => Err(ClientError::Host { status: self.status, detail: self.detail() }),
        }
    }

    /// `detail` of a problem (RFC 9457), or the beginning of whatever it is.
    fn detail(&self) -> String {
        let problem = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let detail = problem.as_ref().and_then(|p| p["detail"].as_str()).map(str::to_owned);
        let detail = detail.unwrap_or_else(|| match self.body.is_empty() {
            true => format!("nothing, as {:?}", self.content_type),
            false => String::from_utf8_lossy(&self.body).into_owned(),
        });
        detail.chars().take(500).collect()
    }
}

/// A request of the Open Inference Protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// Such as `/v2/models/digits/infer`.
    pub path: String,
    /// Names in lower case. All of them are encrypted.
    pub headers: Vec<(String, String)>,
    /// JSON, or JSON and binary tensors behind it.
    pub body: Vec<u8>,
}

impl Request {
    /// Without a body.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET".into(), path: path.into(), ..Self::default() }
    }

    /// With JSON.
    pub fn post(path: impl Into<String>, json: Vec<u8>) -> Self {
        let headers = vec![("content-type".into(), "application/json".into())];
        Self { method: "POST".into(), path: path.into(), headers, body: json }
    }

    /// With JSON of a length, and binary tensors behind it.
    pub fn post_binary(path: impl Into<String>, json: usize, body: Vec<u8>) -> Self {
        let headers = vec![
            ("content-type".into(), "application/octet-stream".into()),
            (HEADER_LENGTH.into(), json.to_string()),
        ];
        Self { method: "POST".into(), path: path.into(), headers, body }
    }
}

/// The enclave's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// JSON, or JSON and binary tensors behind it.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    /// JSON, and the binary tensors behind it.
    ///
    /// # Errors
    /// When it says of itself what cannot be.
    pub fn parts(&self) -> Result<(&[u8], &[u8]), ClientError> {
        let Some(length) = self.header(HEADER_LENGTH) else { return Ok((&self.body, &[])) };
        let length = length.parse().ok();
        length.and_then(|length| self.body.split_at_checked(length)).ok_or(ClientError::NoResponse)
    }
}

/// An accepted server.
#[derive(Debug)]
pub struct Verified {
    /// As it was judged: the evidence vouches for all of its models, also those that are not wanted.
    offer: Offer,
    /// Those of its models that may be asked.
    models: Vec<OfferedModel>,
    verdict: Verdict,
}

impl Verified {
    /// Judges an offer: its evidence by the policy, and that it vouches for this key and these models. Emulated platforms are
    /// refused unless the policy names their root.
    ///
    /// # Errors
    /// When anything of it is not accepted; [`ClientError::Refused`] has the reasons.
    pub fn verify(
        offer: &Offer,
        policy: &Policy,
        collateral: &Collateral,
        time: Time,
    ) -> Result<Self, ClientError> {
        if policy.report_data.is_some() || policy.report_data_prefix.is_some() {
            return Err(ClientError::ReportData);
        }
        let bound = Bytes(report_data(&offer.key_config, &offer.models).to_vec());
        let policy = Policy { report_data_prefix: Some(bound), ..policy.clone() }.checked()?;
        let collateral = AnyCollateral::Dcap(Box::new(collateral.clone()));
        let verdict = appraise(Evidence::detect(&offer.evidence), &collateral, time, &policy)?;
        if !verdict.accepted {
            return Err(ClientError::Refused(Box::new(verdict)));
        }
        Ok(Self { offer: offer.clone(), models: offer.models.clone(), verdict })
    }

    /// Why the server was accepted, and whether it is emulated.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The measurement of the enclave, if it is one of SGX.
    pub fn mr_enclave(&self) -> Option<String> {
        match &self.verdict.appraisal.identity {
            Some(Identity::Sgx { mr_enclave, .. }) => Some(mr_enclave.to_string()),
            _ => None,
        }
    }

    /// What was accepted, whole: what somebody else needs who verifies it as well.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The models that the evidence vouches for, and that may be asked; of a name, the newest last.
    pub fn models(&self) -> &[OfferedModel] {
        &self.models
    }

    /// The model with this hash, wherever it is served; by name, its newest version; the only one, if nothing is given.
    ///
    /// # Errors
    /// When there is none, or several where nothing is given.
    pub fn model(&self, name: Option<&str>, sha256: Option<&[u8; 32]>) -> Result<&OfferedModel, ClientError> {
        let is_wanted = |m: &&OfferedModel| {
            name.is_none_or(|name| name == m.name) && sha256.is_none_or(|sha256| *sha256 == m.sha256)
        };
        let found = self.models.iter().rfind(is_wanted);
        let is_clear = |m: &&OfferedModel| {
            name.is_some() || sha256.is_some() || self.models.iter().all(|other| other.name == m.name)
        };
        found.filter(is_clear).ok_or_else(|| {
            let hash = sha256.map(crate::version);
            let wanted = [name.map(str::to_owned), hash].into_iter().flatten().collect::<Vec<_>>().join("@");
            let wanted = if wanted.is_empty() { "that would be the only one".to_owned() } else { wanted };
            ClientError::OtherModel { wanted, offered: self.models.clone() }
        })
    }

    /// When to ask for another offer, seconds since 1970; an allegation.
    pub fn not_after(&self) -> u64 {
        self.offer.not_after
    }

    /// Encrypts a request with JSON or without a body, padded ([`padded`]).
    ///
    /// # Errors
    /// When the key configuration has nothing that this client can use.
    pub fn seal(&self, method: &str, path: &str, json: Vec<u8>) -> Result<(Vec<u8>, Reply), ClientError> {
        let mut request = match json.is_empty() {
            true => Request::get(path),
            false => Request::post(path, json),
        };
        request.method = method.into();
        self.seal_request(&request)
    }

    /// Encrypts one request, padded ([`padded`]).
    ///
    /// # Errors
    /// When the key configuration has nothing that this client can use.
    pub fn seal_request(&self, request: &Request) -> Result<(Vec<u8>, Reply), ClientError> {
        let of = |text: &str| text.as_bytes().to_vec();
        let mut message =
            Message::request(of(&request.method), of("https"), of("enclave"), of(&request.path));
        for (name, value) in &request.headers {
            message.put_header(name.to_ascii_lowercase(), value.as_bytes());
        }
        if !request.body.is_empty() {
            message.write_content(&request.body);
        }
        let mut plain = Vec::new();
        message.write_bhttp(Mode::KnownLength, &mut plain)?;
        let plain = padded(plain, SMALLEST_BUCKET);
        let (sealed, response) =
            ClientRequest::from_encoded_config(&self.offer.key_config)?.encapsulate(&plain)?;
        Ok((sealed, Reply(response)))
    }

    /// Asks once. A model without a version is asked for by the version that the evidence vouches for.
    ///
    /// # Errors
    /// When no answer of the enclave's comes back. What is wrong with the request, the [`Response`] says.
    pub fn ask(&self, transport: &impl Transport, request: &Request) -> Result<Response, ClientError> {
        let request = Request { path: self.pinned(&request.path)?, ..request.clone() };
        let (sealed, reply) = self.seal_request(&request)?;
        let [request, response] = ENCAPSULATED;
        reply.response(&transport.post(GATEWAY_PATH, request, &sealed)?.expect(response)?)
    }

    /// The path with the very version of the model that the evidence vouches for, where it names a model and no version.
    fn pinned(&self, path: &str) -> Result<String, ClientError> {
        let Some(rest) = path.strip_prefix("/v2/models/") else { return Ok(path.to_owned()) };
        let (name, asked) = match rest.find(['/', '?']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        if let Some(version) = asked.strip_prefix("/versions/") {
            let version = version.split(['/', '?']).next().unwrap_or_default();
            let is_asked = |m: &OfferedModel| m.name == name && m.version() == version;
            return match self.models.iter().any(is_asked) {
                true => Ok(path.to_owned()),
                false => Err(ClientError::OtherModel {
                    wanted: format!("{name}@{version}"),
                    offered: self.models.clone(),
                }),
            };
        }
        Ok(format!("{}{asked}", self.model(Some(name), None)?.path()))
    }
}

/// The only key to one reply.
pub struct Reply(ClientResponse);

impl Reply {
    /// Decrypts the reply: HTTP status and body.
    ///
    /// # Errors
    /// When it was altered, or answers another request.
    pub fn open(self, sealed: &[u8]) -> Result<(u16, Vec<u8>), ClientError> {
        self.response(sealed).map(|response| (response.status, response.body))
    }

    /// Decrypts the reply.
    ///
    /// # Errors
    /// When it was altered, or answers another request.
    pub fn response(self, sealed: &[u8]) -> Result<Response, ClientError> {
        let plain = self.0.decapsulate(sealed)?;
        let message = Message::read_bhttp(&mut std::io::Cursor::new(plain))?;
        let status = message.control().status().ok_or(ClientError::NoResponse)?.code();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.header().iter().map(|f| (text(f.name()), text(f.value())));
        Ok(Response { status, headers: headers.collect(), body: message.content().to_vec() })
    }
}

/// What a host offers, for [`Verified::verify`] to judge.
///
/// # Errors
/// When it cannot be reached, or publishes no offer.
pub fn fetch_offer(transport: &impl Transport) -> Result<Offer, ClientError> {
    Ok(Offer::from_json(&transport.get(OFFER_PATH)?.expect("application/json")?)?)
}

/// What a client demands of whoever answers.
pub struct Demands {
    /// Of the evidence; it must leave report data alone.
    pub policy: Policy,
    /// Where collateral comes from, asked at each verification.
    pub collateral: Box<dyn Fn() -> Result<Collateral, String> + Send + Sync>,
    /// Models by the SHA-256 of their files: no others are ever asked. Empty: those that the server's owner chose.
    pub models: Vec<[u8; 32]>,
}

/// Asks an enclave through a host that it does not believe. Nothing is sent before the enclave is accepted, and nothing but
/// encrypted for it.
pub struct Client<T> {
    transport: T,
    demands: Demands,
    /// Locked while another is fetched, so that one request at a time does that.
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    verified: Arc<Verified>,
    since: Instant,
}

impl<T: Transport> Client<T> {
    /// Sends nothing yet.
    pub fn new(transport: T, demands: Demands) -> Self {
        Self { transport, demands, current: Mutex::default() }
    }

    /// The server that is accepted now. Verifies it if none is, if the key's time is over, or if the last verdict is old.
    ///
    /// # Errors
    /// When none can be had, or it is refused.
    pub fn verified(&self) -> Result<Arc<Verified>, ClientError> {
        self.other_than(None)
    }

    /// The server that is accepted now, whatever was accepted before.
    ///
    /// # Errors
    /// When none can be had, or it is refused.
    pub fn verified_anew(&self) -> Result<Arc<Verified>, ClientError> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.verified()
    }

    /// One accepted server that is not this one: verified before, while this one was asked, or now.
    fn other_than(&self, stale: Option<&Arc<Verified>>) -> Result<Arc<Verified>, ClientError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stale = |c: &Current| {
            stale.is_some_and(|stale| Arc::ptr_eq(stale, &c.verified))
                || c.since.elapsed() > VERDICT_LASTS
                || now() > c.verified.not_after()
        };
        if let Some(current) = current.as_ref().filter(|c| !is_stale(c)) {
            return Ok(current.verified.clone());
        }
        // Whatever comes of it, what was accepted before is not relied on any longer.
        *current = None;
        let verified = Arc::new(self.verify()?);
        *current = Some(Current { verified: verified.clone(), since: Instant::now() });
        Ok(verified)
    }

    fn verify(&self) -> Result<Verified, ClientError> {
        let offer = fetch_offer(&self.transport)?;
        let collateral = (self.demands.collateral)().map_err(ClientError::Collateral)?;
        let mut verified = Verified::verify(&offer, &self.demands.policy, &collateral, Time::now())?;
        let wanted = &self.demands.models;
        if let Some(missing) = wanted.iter().find(|w| verified.models.iter().all(|m| m.sha256 != **w)) {
            return Err(ClientError::OtherModel {
                wanted: crate::version(missing),
                offered: verified.models,
            });
        }
        if !wanted.is_empty() {
            verified.models.retain(|m| wanted.contains(&m.sha256));
        }
        Ok(verified)
    }

    /// Asks, and tells who answered. A model without a version is asked for by the version that the evidence vouches for.
    ///
    /// When the host says that it cannot be decrypted (its key's time is over, or the enclave was restarted), or that version is
    /// gone, the request is encrypted once more, for a server verified anew.
    ///
    /// # Errors
    /// When the server is refused, or no answer of the enclave's comes back. What is wrong with the request, the
    /// [`Response`] says.
    pub fn ask(&self, request: &Request) -> Result<(Response, Arc<Verified>), ClientError> {
        let first = self.verified()?;
        let outcome = first.ask(&self.transport, request);
        let is_gone = match &outcome {
            Ok(response) => response.status == 404,
            Err(ClientError::Host { status: 400, .. }) => true,
            Err(_) => false,
        };
        if !is_gone {
            if outcome.is_err() {
                self.forget(&first);
            }
            return outcome.map(|response| (response, first));
        }
        let second = self.other_than(Some(&first))?;
        let is_same = (&first.offer.key_config, &first.models) == (&second.offer.key_config, &second.models);
        match is_same {
            true => outcome.map(|response| (response, second)),
            false => second.ask(&self.transport, request).map(|response| (response, second)),
        }
    }

    /// Passes on what somebody else has encapsulated for the key of the server accepted now, unread: a relay (RFC 9458,
    /// section 2). The answer is the host's, as it came.
    ///
    /// # Errors
    /// When no server is accepted, and then nothing is sent; when nothing comes back.
    pub fn relay(&self, encapsulated: &[u8]) -> Result<HostResponse, ClientError> {
        let verified = self.verified()?;
        let answer = self.transport.post(GATEWAY_PATH, ENCAPSULATED[0], encapsulated);
        if answer.is_err() {
            self.forget(&verified);
        }
        Ok(answer?)
    }

    /// The next request verifies anew: something is wrong with this one, or with the way to it.
    fn forget(&self, verified: &Arc<Verified>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|c| Arc::ptr_eq(&c.verified, verified)) {
            *current = None;
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
