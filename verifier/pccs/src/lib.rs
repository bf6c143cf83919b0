//! Collateral from a provisioning service: Intel's (PCS), or a cache of it (PCCS), by version 3 or 4 of its interface.
//!
//! What a service answers is anybody's word: it is bounded in length and time when it is read, and judged like collateral
//! from a file. Only what is genuine and in force is kept on disk, and it is checked again whenever it is read.
//!
//! ```no_run
//! use enclos_pccs::{Options, ProvisioningService};
//! use enclos_verifier::{Quote, Roots, Time, Verifier};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let service = ProvisioningService::new("https://localhost:8081/sgx/certification/v4/", Options::default())?;
//! let bytes = std::fs::read("quote.bin")?;
//! let verifier = Verifier::new(Roots::vendors());
//! let collateral = service.collateral(&Quote::parse(&bytes)?, &verifier, Time::now())?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use enclos_attested_tls::{CachedCollateral, CollateralSource, CollateralUnavailable};
use enclos_verifier::{Collateral, CollateralKey, CollateralKeyError, PckCa, Quote, Tee, Time, Verifier};
use percent_encoding::percent_decode_str;
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
use ureq::tls::{PemItem, RootCerts, TlsConfig};

/// Longest document of a provisioning service, bytes. TCB info has less than 100 KiB, the longest CRL less than 1 MiB.
pub const LONGEST: u64 = 4 << 20;

/// Intel's own service has no address for the CRL of its root; it lies where the root certificate says.
const INTEL: (&str, &str) = (
    "https://api.trustedservices.intel.com",
    "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
);

/// How a service is asked.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long all documents together may take.
    pub patience: Duration,
    /// Folder in which collateral is kept; without it nothing is kept.
    pub cache: Option<PathBuf>,
    /// How long before it expires what is kept is fetched anew. While that fails it is used until it expires.
    pub renew_before: Duration,
    /// Certificates the server's is checked against, PEM; without it, those that browsers trust.
    pub roots: Option<Vec<u8>>,
    /// Where the CRL of the root is, if the service does not have it.
    pub root_crl: Option<String>,
}

impl Default for Options {
    /// 20 s, nothing kept; what is kept is fetched anew a day before it expires.
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(20),
            cache: None,
            renew_before: Duration::from_secs(24 * 3600),
            roots: None,
            root_crl: None,
        }
    }
}

/// A provisioning service.
pub struct ProvisioningService {
    /// Without the part that names interface and version.
    base: String,
    version: Version,
    agent: ureq::Agent,
    options: Options,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V3,
    V4,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V3 => "v3",
            Self::V4 => "v4",
        }
    }
}

impl fmt::Debug for ProvisioningService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProvisioningService")
            .field("base", &self.base)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A service cannot be used as it was described.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Not the address of a provisioning service.
    #[error(
        "{0:?} is not the address of a provisioning service; one is like https://localhost:8081/sgx/certification/v4/ (or v3)"
    )]
    Address(String),
    /// The certificates for its TLS.
    #[error("the certificates to check the provisioning service's against are not usable: {0}")]
    Roots(String),
}

/// There is no collateral from a service.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The quote does not say what it needs.
    #[error(transparent)]
    Key(#[from] CollateralKeyError),
    /// Provisioning services have nothing for this kind of evidence.
    #[error("provisioning services have no collateral for an {0}")]
    Kind(Tee),
    /// Identifiers of a PCK certificate that services do not take.
    #[error("the quote's identifiers of its PCK certificate are not those that provisioning services take")]
    Identifiers,
    /// The service cannot be reached, or does not speak HTTP.
    #[error("{url}: {reason}")]
    Transport {
        /// What was asked for.
        url: String,
        /// Why there is no answer.
        reason: String,
    },
    /// It took too long.
    #[error("{url}: no whole answer within {} s for all documents", .patience.as_secs_f32())]
    Timeout {
        /// What was asked for.
        url: String,
        /// How long was waited.
        patience: Duration,
    },
    /// The service answers that it has none.
    #[error("{url}: the service answers {status}{}", match status {
        404 => ": it has nothing for this platform",
        461 => ": it does not know this platform",
        462 => ": it has no certificate for this TCB",
        _ => "",
    })]
    Status {
        /// What was asked for.
        url: String,
        /// Its answer.
        status: u16,
    },
    /// A document is longer than any can be.
    #[error("{url}: the answer is longer than {LONGEST} bytes")]
    TooLong {
        /// What was asked for.
        url: String,
    },
    /// The answer is not what the interface has there.
    #[error("{url}: {what} is not what the interface has there: {reason}")]
    Malformed {
        /// What was asked for.
        url: String,
        /// Which part of it.
        what: String,
        /// What is wrong.
        reason: String,
    },
}

impl ProvisioningService {
    /// The service at an address such as `https://localhost:8081/sgx/certification/v4/`; without a path, version 4.
    ///
    /// # Errors
    /// [`ServiceError`] when it is no such address, or the certificates are none.
    pub fn new(url: &str, options: Options) -> Result<Self, ServiceError> {
        let (base, version) = address(url).ok_or_else(|| ServiceError::Address(url.into()))?;
        let mut config =
            ureq::Agent::config_builder().max_redirects(0).https_only(base.starts_with("https://"));
        if let Some(pem) = &options.roots {
            let unusable = |reason: String| ServiceError::Roots(reason);
            let mut roots = Vec::new();
            for item in ureq::tls::parse_pem(pem) {
                if let PemItem::Certificate(root) = item.map_err(|e| unusable(e.to_string()))? {
                    roots.push(root);
                }
            }
            if roots.is_empty() {
                return Err(unusable("there is none in PEM form".into()));
            }
            let roots = RootCerts::from(roots);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        let root_crl = options.root_crl.clone().or_else(|| (base == INTEL.0).then(|| INTEL.1.to_owned()));
        Ok(Self { base, version, agent: config.build().into(), options: Options { root_crl, ..options } })
    }

    /// The collateral for a quote's platform: what is kept, if it is in force at `time`, else fetched.
    ///
    /// What is fetched is returned even if it is not genuine under the roots of `verifier`, for the appraisal to say what is
    /// wrong with it; but it is not kept then.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn collateral(
        &self,
        quote: &Quote<'_>,
        verifier: &Verifier,
        time: Time,
    ) -> Result<Collateral, FetchError> {
        let deadline = Instant::now() + self.options.patience;
        let chain = match quote.certification.pck_chain() {
            Some(_) => None,
            None => Some(self.pck_chain(quote, deadline)?),
        };
        let key = match &chain {
            None => CollateralKey::of(quote)?,
            Some(chain) => CollateralKey::of_chain(chain.as_bytes(), quote.tee)?,
        };
        let collateral = self.judged(&key, verifier, time, deadline)?;
        Ok(Collateral { pck_certificate_chain: chain, ..collateral })
    }

    /// The same for a platform that is known otherwise than by a quote.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn collateral_of(
        &self,
        key: &CollateralKey,
        verifier: &Verifier,
        time: Time,
    ) -> Result<Collateral, FetchError> {
        self.judged(key, verifier, time, Instant::now() + self.options.patience)
    }

    fn judged(
        &self,
        key: &CollateralKey,
        verifier: &Verifier,
        time: Time,
        deadline: Instant,
    ) -> Result<Collateral, FetchError> {
        let path = self.options.cache.as_ref().map(|folder| folder.join(self.file_name(key)));
        let kept = path.as_deref().and_then(|path| read(path, verifier, time));
        if let Some((collateral, until)) = &kept
            && time.0.saturating_add(self.options.renew_before.as_secs()) < until.0
        {
            return Ok(collateral.clone());
        }
        match (self.fetch(key, deadline), kept) {
            (Ok(collateral), _) => {
                if let Some(path) = path
                    && verifier.check_collateral(&collateral, time).is_ok()
                {
                    // Without a cache the next time takes longer, and that is all.
                    let _ = keep(&path, &collateral);
                }
                Ok(collateral)
            }
            (Err(_), Some((collateral, _))) => Ok(collateral),
            (Err(error), None) => Err(error),
        }
    }

    /// All documents but the PCK certificate, by the interface of Intel's PCS ("Provisioning Certification Service", v3, v4).
    fn fetch(&self, key: &CollateralKey, deadline: Instant) -> Result<Collateral, FetchError> {
        let CollateralKey { tee, fmspc, ca } = key;
        let tee = match (tee, self.version) {
            (Tee::Sgx, _) => "sgx",
            (Tee::Tdx, Version::V4) => "tdx",
            (other, _) => return Err(FetchError::Kind(*other)),
        };
        let ca = match ca {
            PckCa::Platform => "platform",
            PckCa::Processor => "processor",
        };
        let tcb_header = match self.version {
            Version::V3 => "sgx-tcb-info-issuer-chain",
            Version::V4 => "tcb-info-issuer-chain",
        };
        let fmspc = fmspc.to_string().to_uppercase();
        let tcb = self.get(&self.url(tee, &format!("tcb?fmspc={fmspc}")), deadline)?;
        let qe = self.get(&self.url(tee, "qe/identity"), deadline)?;
        let pck_crl = self.get(&self.url("sgx", &format!("pckcrl?ca={ca}&encoding=der")), deadline)?;
        let root_crl = match &self.options.root_crl {
            Some(elsewhere) => self.get(elsewhere, deadline)?,
            None => self.get(&self.url("sgx", "rootcacrl"), deadline)?,
        };
        Ok(Collateral {
            pck_crl_issuer_chain: pck_crl.chain("sgx-pck-crl-issuer-chain")?,
            root_ca_crl: root_crl.crl()?,
            pck_crl: pck_crl.crl()?,
            tcb_info_issuer_chain: tcb.chain(tcb_header)?,
            tcb_info: tcb.signed_json("tcbInfo")?,
            tcb_info_signature: Vec::new(),
            qe_identity_issuer_chain: qe.chain("sgx-enclave-identity-issuer-chain")?,
            qe_identity: qe.signed_json("enclaveIdentity")?,
            qe_identity_signature: Vec::new(),
            pck_certificate_chain: None,
        })
    }

    /// The chain of the PCK certificate that a quote only identifies.
    fn pck_chain(&self, quote: &Quote<'_>, deadline: Instant) -> Result<String, FetchError> {
        let ids = quote.certification.pck_identifiers().ok_or(FetchError::Identifiers)?;
        // The quoting enclave's identifier is the first half of the quote's user data.
        let qe_id = hex::encode(&quote.user_data[..16]);
        // A plain PPID is not sent: services tell platforms by the quoting enclave's identifier then.
        let ppid = match (ids.encrypted, ids.ppid.len()) {
            (true, 384) => format!("&encrypted_ppid={}", hex::encode(ids.ppid)),
            (true, _) => return Err(FetchError::Identifiers),
            (false, _) => String::new(),
        };
        let query = format!(
            "pckcert?qeid={qe_id}{ppid}&cpusvn={}&pcesvn={}&pceid={}",
            hex::encode(ids.cpu_svn),
            hex::encode(ids.pce_svn.to_le_bytes()),
            hex::encode(ids.pce_id.to_le_bytes())
        );
        let answer = self.get(&self.url("sgx", &query), deadline)?;
        let issuers = answer.chain("sgx-pck-certificate-issuer-chain")?;
        let leaf = answer.text("the PCK certificate")?;
        Ok(format!("{}\n{issuers}", leaf.trim_end()))
    }

    fn url(&self, tee: &str, rest: &str) -> String {
        format!("{}/{tee}/certification/{}/{rest}", self.base, self.version.name())
    }

    fn get(&self, url: &str, deadline: Instant) -> Result<Answer, FetchError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let failed = |error: ureq::Error| match error {
            ureq::Error::StatusCode(status) => FetchError::Status { url: url.into(), status },
            ureq::Error::BodyExceedsLimit(_) => FetchError::TooLong { url: url.into() },
            ureq::Error::Timeout(_) => {
                FetchError::Timeout { url: url.into(), patience: self.options.patience }
            }
            other => FetchError::Transport { url: url.into(), reason: other.to_string() },
        };
        if left.is_zero() {
            return Err(FetchError::Timeout { url: url.into(), patience: self.options.patience });
        }
        let request = self.agent.get(url).config().timeout_global(Some(left)).build();
        let mut response = request.call().map_err(failed)?;
        // Redirections are not followed, and are no documents.
        let status = response.status().as_u16();
        if status != 200 {
            return Err(FetchError::Status { url: url.into(), status });
        }
        let headers = response.headers().clone();
        let body = response.body_mut().with_config().limit(LONGEST).read_to_vec().map_err(failed)?;
        Ok(Answer { url: url.into(), headers, body })
    }

    /// The service is part of the name: another may be of another root.
    fn file_name(&self, key: &CollateralKey) -> String {
        let service = digest(&SHA256, format!("{}/{}", self.base, self.version.name()).as_bytes());
        let (tee, ca) = match (key.tee, key.ca) {
            (Tee::Tdx, _) => ("tdx", key.ca),
            (_, ca) => ("sgx", ca),
        };
        let ca = match ca {
            PckCa::Platform => "platform",
            PckCa::Processor => "processor",
        };
        format!("{}-{tee}-{}-{ca}.json", hex::encode(&service.as_ref()[..8]), key.fmspc)
    }
}

/// Scheme, host and port, and version of the interface.
fn address(url: &str) -> Option<(String, Version)> {
    let trimmed = url.trim_end_matches('/');
    let (base, version) = match trimmed.rsplit_once("/sgx/certification/") {
        Some((base, "v3")) => (base, Version::V3),
        Some((base, "v4")) => (base, Version::V4),
        Some(_) => return None,
        None => (trimmed, Version::V4),
    };
    let uri: ureq::http::Uri = base.parse().ok()?;
    let usable = matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.query().is_none();
    usable.then(|| (base.to_owned(), version))
}

/// An answer of the service.
struct Answer {
    url: String,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn malformed(&self, what: impl Into<String>, reason: impl fmt::Display) -> FetchError {
        FetchError::Malformed { url: self.url.clone(), what: what.into(), reason: reason.to_string() }
    }

    /// The certificate chain in a header, PEM with percent encoding.
    fn chain(&self, name: &str) -> Result<String, FetchError> {
        let bad = |reason: &dyn fmt::Display| self.malformed(format!("header {name}"), reason);
        let value = self.headers.get(name).ok_or_else(|| bad(&"it is missing"))?;
        let value = value.to_str().map_err(|e| bad(&e))?;
        let chain = percent_decode_str(value).decode_utf8().map_err(|e| bad(&e))?.into_owned();
        match chain.contains("-----BEGIN CERTIFICATE-----") {
            true => Ok(chain),
            false => Err(bad(&"there is no certificate in it")),
        }
    }

    fn text(&self, what: &str) -> Result<&str, FetchError> {
        std::str::from_utf8(&self.body).map_err(|e| self.malformed(what, e))
    }

    /// A document wrapped with its signature, as it came: the signature is over its very bytes.
    fn signed_json(&self, member: &str) -> Result<String, FetchError> {
        let text = self.text(member)?;
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| self.malformed(member, e))?;
        match value.get(member).is_some() && value.get("signature").is_some() {
            true => Ok(text.to_owned()),
            false => Err(self.malformed(member, "the document and its signature are not there")),
        }
    }

    /// A CRL: in DER, in hexadecimal digits of that (PCCS), or in PEM (PCS).
    fn crl(&self) -> Result<Vec<u8>, FetchError> {
        /// DER of a SEQUENCE.
        const SEQUENCE: u8 = 0x30;
        let text = self.body.trim_ascii();
        let der = match text {
            _ if text.starts_with(b"-----BEGIN") => CertificateRevocationListDer::from_pem_slice(text)
                .map_err(|e| self.malformed("the CRL", e))?
                .to_vec(),
            // The digits of DER begin with those of its first byte, 3 and 0.
            [b'3', b'0', ..] => hex::decode(text).map_err(|e| self.malformed("the CRL", e))?,
            _ => self.body.clone(),
        };
        match der.first() {
            Some(&SEQUENCE) => Ok(der),
            _ => Err(self.malformed("the CRL", "neither DER, hexadecimal digits nor PEM")),
        }
    }
}

/// What is kept in a file and until when it is in force, if it is genuine and is so now.
fn read(path: &Path, verifier: &Verifier, time: Time) -> Option<(Collateral, Time)> {
    let collateral = Collateral::from_json(&std::fs::read(path).ok()?).ok()?;
    let until = verifier.check_collateral(&collateral, time).ok()?;
    Some((collateral, until))
}

/// Writes a file in one step: who reads it sees the old contents or the new.
fn keep(path: &Path, collateral: &Collateral) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&file, collateral)?;
    file.persist(path)?;
    Ok(())
}

/// A provisioning service as the source of collateral for attested TLS: with what it fetches kept in memory besides.
pub struct ServiceCollateral {
    service: ProvisioningService,
    verifier: Verifier,
}

impl fmt::Debug for ServiceCollateral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)
    }
}

impl ServiceCollateral {
    /// A source that asks `service`, and asks again [`Options::renew_before`] what it has expires. What is kept on disk is
    /// what `verifier` finds genuine.
    pub fn new(service: ProvisioningService, verifier: Verifier) -> CachedCollateral<Self> {
        let renew_before = service.options.renew_before;
        CachedCollateral::new(Self { service, verifier }, renew_before)
    }
}

impl CollateralSource for ServiceCollateral {
    fn collateral(&self, quote: &Quote<'_>, time: Time) -> Result<Arc<Collateral>, CollateralUnavailable> {
        let collateral = self.service.collateral(quote, &self.verifier, time);
        collateral.map(Arc::new).map_err(|error| CollateralUnavailable { reason: error.to_string() })
    }
}
