//! Who relays between an enclave and a broker, and learns nothing but that a key was asked for.

use std::time::Duration;

use serde::Deserialize;

use crate::check_key_id;
use crate::release::{KeyRequest, base64url};

/// How long the broker may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer in bytes.
const LONGEST: u64 = 64 << 10;

/// A broker.
#[derive(Debug)]
pub struct BrokerClient {
    url: String,
    agent: ureq::Agent,
    collateral: Option<serde_json::Value>,
}

/// Why there is no release to pass on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The broker cannot be reached, or is none.
    #[error("the key broker {url} does not answer: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The broker refuses.
    #[error("the key broker refuses the key {key_id} (HTTP {status}): {detail}")]
    Refused {
        /// Which key.
        key_id: String,
        /// The status.
        status: u16,
        /// The broker's words.
        detail: String,
    },
    /// The name of the key is none.
    #[error(transparent)]
    KeyId(#[from] crate::BadKeyId),
    /// The enclave makes no request.
    #[error("the enclave makes no request for the key {key_id}: {reason}")]
    Enclave {
        /// Which key.
        key_id: String,
        /// Its words.
        reason: String,
    },
}

#[derive(Deserialize)]
struct NonceAnswer {
    #[serde(with = "base64url")]
    nonce: Vec<u8>,
}

/// RFC 9457.
#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    title: String,
    #[serde(default)]
    detail: String,
}

impl BrokerClient {
    /// The broker at an address such as `https://broker.example:8095`.
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0);
        Self { url: url.trim_end_matches('/').to_owned(), agent: config.build().into(), collateral: None }
    }

    /// The same with what is trusted of the broker's certificate: one's own roots, PEM.
    ///
    /// # Errors
    /// [`RelayError::Unreachable`] when there are none in it.
    pub fn with_roots(url: &str, pem: &[u8]) -> Result<Self, RelayError> {
        let url = url.trim_end_matches('/').to_owned();
        let unusable = |reason: String| RelayError::Unreachable { url: url.clone(), reason };
        let mut roots = Vec::new();
        for item in ureq::tls::parse_pem(pem) {
            if let ureq::tls::PemItem::Certificate(root) = item.map_err(|e| unusable(e.to_string()))? {
                roots.push(root);
            }
        }
        if roots.is_empty() {
            return Err(unusable("there is no certificate among the roots given for it".into()));
        }
        let tls = ureq::tls::TlsConfig::builder().root_certs(roots.into()).build();
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(tls);
        Ok(Self { agent: config.build().into(), url, collateral: None })
    }

    /// The same that sends collateral along, for a broker that has none of its own for this platform.
    #[must_use]
    pub fn with_collateral(self, collateral: serde_json::Value) -> Self {
        Self { collateral: Some(collateral), ..self }
    }

    /// Has a key released: `request` makes the enclave's request for a nonce ([`crate::release::KeyRequest`], JSON). The result
    /// is for the enclave as it is.
    ///
    /// # Errors
    /// [`RelayError`] when the broker refuses or is not to be had, or there is no request.
    pub fn release<E: std::fmt::Display>(
        &self,
        key_id: &str,
        request: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, RelayError> {
        check_key_id(key_id)?;
        let answer = self.post("nonce", key_id, &[])?;
        let answer: NonceAnswer = serde_json::from_slice(&answer)
            .map_err(|e| self.unreachable(format!("it answers what is no nonce: {e}")))?;
        let request = request(&answer.nonce)
            .map_err(|e| RelayError::Enclave { key_id: key_id.to_owned(), reason: e.to_string() })?;
        self.post(&format!("keys/{key_id}/release"), key_id, &self.with_ours(request))
    }

    /// The enclave's request, with our collateral.
    fn with_ours(&self, request: Vec<u8>) -> Vec<u8> {
        let Some(collateral) = &self.collateral else { return request };
        match serde_json::from_slice::<KeyRequest>(&request) {
            Ok(request) => {
                let request = KeyRequest { collateral: Some(collateral.clone()), ..request };
                serde_json::to_vec(&request).unwrap_or_default()
            }
            // The broker says what is wrong with it.
            Err(_) => request,
        }
    }

    fn post(&self, path: &str, key_id: &str, body: &[u8]) -> Result<Vec<u8>, RelayError> {
        let request = self.agent.post(format!("{}/{path}", self.url)).content_type("application/json");
        let mut response = request.send(body).map_err(|e| self.unreachable(e.to_string()))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LONGEST).read_to_vec();
        let body = body.map_err(|e| self.unreachable(e.to_string()))?;
        if status == 200 {
            return Ok(body);
        }
        let detail = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) if problem.detail.is_empty() => problem.title,
            Ok(problem) => problem.detail,
            Err(_) => "what answers there is no key broker".to_owned(),
        };
        Err(RelayError::Refused { key_id: key_id.to_owned(), status, detail })
    }

    fn unreachable(&self, reason: String) -> RelayError {
        RelayError::Unreachable { url: self.url.clone(), reason }
    }
}
