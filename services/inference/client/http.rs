//! HTTP to the host, by ureq. TLS, if the host has it, hides from the network who asks; nothing else depends on it.

use std::time::Duration;

use super::{HostResponse, Transport, TransportError};

/// Longest answer in bytes.
const MAX_ANSWER: u64 = 256 << 20;
/// How long the host may take for an answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long it may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);

/// A host at a URL. Connections are kept.
#[derive(Debug)]
pub struct Http {
    url: String,
    agent: ureq::Agent,
}

impl Http {
    /// At a URL such as `http://127.0.0.1:8090`.
    pub fn at(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Nothing of the host's sends a client elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(PATIENCE));
        Self { url: url.trim_end_matches('/').to_owned(), agent: config.build().new_agent() }
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn read(
        url: String,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<HostResponse, TransportError> {
        let read = response.and_then(|mut response| {
            let status = response.status().as_u16();
            let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok());
            let content_type = kind.unwrap_or_default().to_owned();
            let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()?;
            Ok(HostResponse { status, content_type, body })
        });
        read.map_err(|e| TransportError { url, reason: e.to_string() })
    }
}

impl Transport for Http {
    fn get(&self, path: &str) -> Result<HostResponse, TransportError> {
        let url = format!("{}{path}", self.url);
        let response = self.agent.get(&url).call();
        Self::read(url, response)
    }

    fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<HostResponse, TransportError> {
        let url = format!("{}{path}", self.url);
        let response = self.agent.post(&url).header("content-type", content_type).send(body);
        Self::read(url, response)
    }
}
