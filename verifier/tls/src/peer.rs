//! The relying party: judges the certificates of TLS peers by the evidence in them.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use enclos_verifier::{Bytes, Collateral, Hex, Policy, Quote, Time, TrustedCollateral, Verdict, Verifier};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
};

use crate::{
    attester::AttestedIdentity,
    certificate::{BindingError, BoundEvidence},
    collateral::{CollateralSource, CollateralUnavailable},
    format::sha256,
};

/// Judges peers: their evidence must be for the key they use, genuine, and meet the policy.
///
/// Names in certificates and who signed them are not looked at: what counts is what runs there, not what it is called. The
/// TLS handshake itself proves that the peer has the key.
#[derive(Debug)]
pub struct PeerVerifier {
    policy: Policy,
    verifier: Verifier,
    source: Arc<dyn CollateralSource>,
    clock: Arc<dyn TimeProvider>,
    provider: Arc<CryptoProvider>,
    nonce: Option<Bytes>,
    /// Documents whose signatures were verified, the one used last at the end.
    trusted: Mutex<VecDeque<(Arc<Collateral>, Arc<TrustedCollateral>)>>,
    /// The peers last accepted.
    accepted: Mutex<VecDeque<Arc<Peer>>>,
}

/// A peer that was accepted.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The judgement, with everything that was found.
    pub verdict: Verdict,
    /// The evidence, and what bound it to the key.
    pub evidence: BoundEvidence,
    /// SHA-256 of the certificate.
    pub certificate: Hex<32>,
}

/// Accepted peers that are remembered, so that a connection's can be asked for.
const REMEMBERED: usize = 256;
/// Verified documents of collateral that are kept: one a platform, for as many as sources keep.
const TRUSTED: usize = 64;

impl PeerVerifier {
    /// A verifier that judges by `policy`, with collateral of `source`, as of `clock`.
    pub fn new(policy: Policy, source: Arc<dyn CollateralSource>, clock: Arc<dyn TimeProvider>) -> Self {
        Self {
            verifier: Verifier::new(policy.roots()),
            policy,
            source,
            clock,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            nonce: None,
            trusted: Mutex::default(),
            accepted: Mutex::default(),
        }
    }

    /// Demands a nonce in the claims. How it comes to the peer before the handshake is for the application to say.
    #[must_use]
    pub fn demanding_nonce(self, nonce: &[u8]) -> Self {
        Self { nonce: Some(Bytes(nonce.to_vec())), ..self }
    }

    /// With another cryptographic provider of rustls than *ring*.
    #[must_use]
    pub fn with_provider(self, provider: Arc<CryptoProvider>) -> Self {
        Self { provider, ..self }
    }

    /// A client that talks to attested servers only, and attests to itself when it has an `identity` and is asked.
    ///
    /// Sessions are not resumed: every connection is judged.
    ///
    /// # Errors
    /// [`rustls::Error`] when the provider has no cipher suite for TLS 1.2 or 1.3.
    pub fn client_config(
        self: &Arc<Self>,
        identity: Option<Arc<AttestedIdentity>>,
    ) -> Result<ClientConfig, rustls::Error> {
        let builder = ClientConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.clock))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as Arc<dyn ServerCertVerifier>);
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// A server with this certificate that talks to attested clients only.
    ///
    /// Sessions are not resumed: every connection is judged.
    ///
    /// # Errors
    /// [`rustls::Error`] when the provider has no cipher suite for TLS 1.2 or 1.3.
    pub fn server_config(
        self: &Arc<Self>,
        identity: Arc<dyn ResolvesServerCert>,
    ) -> Result<ServerConfig, rustls::Error> {
        let mut config =
            ServerConfig::builder_with_details(Arc::clone(&self.provider), Arc::clone(&self.clock))
                .with_safe_default_protocol_versions()?
                .with_client_cert_verifier(Arc::clone(self) as Arc<dyn ClientCertVerifier>)
                .with_cert_resolver(identity);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Judges a DER certificate as of `time`.
    ///
    /// # Errors
    /// [`Refusal`], with the reason.
    pub fn judge(&self, certificate: &[u8], time: Time) -> Result<Peer, Refusal> {
        let evidence = BoundEvidence::of_certificate(certificate)?;
        if time < evidence.valid.0 || time > evidence.valid.1 {
            return Err(Refusal::Validity { time, from: evidence.valid.0, until: evidence.valid.1 });
        }
        if let Some(demanded) = &self.nonce {
            let found = evidence.claims.as_ref().and_then(|claims| claims.nonce.clone());
            if found.as_ref() != Some(demanded) {
                return Err(Refusal::Nonce { demanded: demanded.clone(), found });
            }
        }
        let quote = Quote::parse(&evidence.quote).map_err(BindingError::from)?;
        let collateral = self.source.collateral(&quote, time)?;
        let trusted = self.trusted(&collateral);
        let verdict = self.policy.judge(self.verifier.verify_quote(&evidence.quote, &trusted, time));
        if !verdict.accepted {
            return Err(Refusal::Policy(Box::new(verdict)));
        }
        Ok(Peer { verdict, evidence, certificate: Hex(sha256(certificate)) })
    }

    /// The document, verified: once for as long as the source gives the same one. Whether it is in force is judged with
    /// every peer.
    fn trusted(&self, document: &Arc<Collateral>) -> Arc<TrustedCollateral> {
        let lock = || self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        // The same allocation is the same document, because it is kept here.
        let known = |kept: &VecDeque<(Arc<Collateral>, _)>| {
            kept.iter().position(|(known, _)| Arc::ptr_eq(known, document))
        };
        {
            let mut kept = lock();
            if let Some(entry) = known(&kept).and_then(|index| kept.remove(index)) {
                let trusted = Arc::clone(&entry.1);
                kept.push_back(entry);
                return trusted;
            }
        }
        // Without the lock, so that other peers do not wait.
        let trusted = Arc::new(self.verifier.trust(document));
        let mut kept = lock();
        if known(&kept).is_none() {
            if kept.len() == TRUSTED {
                kept.pop_front();
            }
            kept.push_back((Arc::clone(document), Arc::clone(&trusted)));
        }
        trusted
    }

    /// The accepted peer of a connection whose handshake is done.
    ///
    /// # Errors
    /// [`Refusal::NoCertificate`] when there is none (yet). A peer that connected so long ago that it is not remembered is
    /// judged anew.
    pub fn peer(&self, connection: &CommonState) -> Result<Arc<Peer>, Refusal> {
        let certificate =
            connection.peer_certificates().and_then(|chain| chain.first()).ok_or(Refusal::NoCertificate)?;
        let hash = Hex(sha256(certificate));
        let known = self.remembered().iter().rev().find(|peer| peer.certificate == hash).cloned();
        match known {
            Some(peer) => Ok(peer),
            None => {
                let now = self.clock.current_time().ok_or(Refusal::NoTime)?;
                Ok(Arc::new(self.judge(certificate, Time(now.as_secs()))?))
            }
        }
    }

    fn accept(&self, certificate: &[u8], now: UnixTime) -> Result<(), rustls::Error> {
        let peer = self.judge(certificate, Time(now.as_secs()))?;
        let mut accepted = self.remembered();
        if accepted.len() == REMEMBERED {
            accepted.pop_front();
        }
        accepted.push_back(Arc::new(peer));
        Ok(())
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Peer>>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.accept(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.accept(end_entity, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// Why a peer is refused. The peer itself sees a TLS alert and no reason.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no evidence for the peer's key.
    #[error(transparent)]
    Binding(#[from] BindingError),
    /// The certificate is not valid now.
    #[error(
        "the peer's certificate is valid from {from} to {until}, and it is {time}: it must be renewed, or a clock is wrong"
    )]
    Validity {
        /// When it was judged.
        time: Time,
        /// Not before.
        from: Time,
        /// Not after.
        until: Time,
    },
    /// The evidence is not for the nonce that was demanded.
    #[error("the evidence is not fresh: nonce {demanded:?} was demanded, the claims have {found:?}")]
    Nonce {
        /// The nonce demanded.
        demanded: Bytes,
        /// The nonce in the claims.
        found: Option<Bytes>,
    },
    /// There is no collateral.
    #[error(transparent)]
    Collateral(#[from] CollateralUnavailable),
    /// The policy refuses; the verdict has all reasons.
    #[error("the policy refuses the peer: {}", .0.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Policy(Box<Verdict>),
    /// The connection has no certificate of a peer.
    #[error(
        "there is no certificate of the peer: the handshake is not done, or no certificate was asked for"
    )]
    NoCertificate,
    /// There is no time.
    #[error("the clock gives no time")]
    NoTime,
}

impl Refusal {
    /// The refusal that a handshake ended with, if it was one.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
                reason.downcast_ref()
            }
            _ => None,
        }
    }

    /// The same, where the TLS library's error comes as one of input and output.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref().and_then(Self::of)
    }
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}
