//! The second way in: HTTP over TLS that ends in the enclave, whose certificate is judged before anything is sent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use enclos_attested_tls::{OfflineCollateral, PeerVerifier, Refusal};
use enclos_verifier::{Collateral, Policy, Verdict};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::time_provider::DefaultTimeProvider;

/// How long connecting may take, handshake included.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(300);
/// Longest answer in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestedTlsError {
    /// The server is not what the policy demands.
    #[error("the server is refused: {0}")]
    Refused(#[from] Refusal),
    /// It is no address.
    #[error("{0} is not HOST:PORT")]
    Address(String),
    /// The network, or TLS; [`AttestedTlsError::refusal`] says whether the server was refused.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// HTTP inside.
    #[error("the server's answer cannot be used: {0}")]
    Http(Box<dyn std::error::Error + Send + Sync>),
}

impl AttestedTlsError {
    /// Why the server was refused, if that is what happened.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Io(error) => Refusal::of_io(error),
            _ => None,
        }
    }
}

/// A connection to an accepted enclave. It blocks; for one thread.
#[derive(Debug)]
pub struct Connection {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Full<Bytes>>,
    host: String,
    verdict: Verdict,
}

impl Connection {
    /// Connects, and judges the server's certificate by the policy. Emulated platforms are refused unless it names their root.
    ///
    /// # Errors
    /// When it is refused, or not to be reached.
    pub fn open(address: &str, policy: &Policy, collateral: &Collateral) -> Result<Self, AttestedTlsError> {
        let bad = || AttestedTlsError::Address(address.to_owned());
        let (host, _) = address.rsplit_once(':').ok_or_else(bad)?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| bad())?;
        let source = Arc::new(OfflineCollateral(Arc::new(collateral.clone())));
        let verifier = Arc::new(PeerVerifier::new(policy.clone(), source, Arc::new(DefaultTimeProvider)));
        let config = verifier.client_config(None).map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            let peer = verifier.peer(stream.get_ref().1)?;
            let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (sender, connection) = handshake.map_err(|e| AttestedTlsError::Http(e.into()))?;
            // Runs while a request waits for its answer.
            tokio::spawn(async { drop(connection.await) });
            Ok::<_, AttestedTlsError>((sender, peer.verdict.clone()))
        };
        let connected = runtime.block_on(async { tokio::time::timeout(PATIENCE, connecting).await });
        let (sender, verdict) = connected.map_err(io::Error::from)??;
        Ok(Self { runtime, sender, host: host.to_owned(), verdict })
    }

    /// Why the server was accepted, and whether it is emulated.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// One request: HTTP status and body of the answer.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn ask(
        &mut self,
        method: &str,
        path: &str,
        json: Vec<u8>,
    ) -> Result<(u16, Vec<u8>), AttestedTlsError> {
        let http = |e: Box<dyn std::error::Error + Send + Sync>| AttestedTlsError::Http(e);
        let request = Request::builder().method(method).uri(path).header("host", &self.host);
        let request = match json.is_empty() {
            true => request,
            false => request.header("content-type", "application/json"),
        };
        let request = request.body(Full::new(Bytes::from(json))).map_err(|e| http(e.into()))?;
        let sender = &mut self.sender;
        let asking = async {
            sender.ready().await.map_err(|e| http(e.into()))?;
            let response = sender.send_request(request).await.map_err(|e| http(e.into()))?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(http)?;
            Ok((status, body.to_bytes().to_vec()))
        };
        let asked = self.runtime.block_on(async { tokio::time::timeout(ANSWER_PATIENCE, asking).await });
        asked.map_err(io::Error::from)?
    }
}
