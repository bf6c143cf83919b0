//! The attester: keys whose certificates carry evidence, renewed while connections go on.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc},
    thread,
    time::Duration,
};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::CryptoProvider,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use time::OffsetDateTime;

use crate::format::{Claims, EVIDENCE_OID, REPORT_DATA, TaggedEvidence, report_data};

/// Gets evidence for report data. Inside an enclave: `|data| Ok(enclos_enclave::attest(data)?.into_quote())`.
pub trait Attester: Send + Sync {
    /// An SGX or TDX quote with this report data.
    ///
    /// # Errors
    /// Whatever keeps it from attesting.
    fn attest(&self, report_data: &[u8; REPORT_DATA]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;
}

impl<F> Attester for F
where
    F: Fn(&[u8; REPORT_DATA]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> + Send + Sync,
{
    fn attest(&self, report_data: &[u8; REPORT_DATA]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        self(report_data)
    }
}

/// What certificates are to say.
#[derive(Debug, Clone)]
pub struct CertificateOptions {
    /// DNS names or addresses, for clients that compare them.
    pub names: Vec<String>,
    /// How long a certificate is valid. It is renewed after two thirds of that.
    pub lifetime: Duration,
    /// A relying party's nonce, to be put into the claims.
    pub nonce: Option<Vec<u8>>,
}

impl Default for CertificateOptions {
    /// For `localhost`, a day, without nonce.
    fn default() -> Self {
        Self { names: vec!["localhost".into()], lifetime: Duration::from_secs(24 * 60 * 60), nonce: None }
    }
}

/// A key with a certificate that carries evidence for it; for servers, and for clients that servers ask for one.
///
/// Keys are made here and never leave: renewal makes a new key. Connections keep the one that they began with.
pub struct AttestedIdentity {
    attester: Box<dyn Attester>,
    options: CertificateOptions,
    clock: Arc<dyn TimeProvider>,
    provider: Arc<CryptoProvider>,
    current: RwLock<Current>,
    last_failure: Mutex<Option<String>>,
}

struct Current {
    key: Arc<CertifiedKey>,
    renew_at: u64,
    valid_until: u64,
}

/// For relying parties whose clocks are behind, seconds.
const BACKDATED: u64 = 60 * 60;
/// Between attempts to renew.
const RETRY: Duration = Duration::from_secs(60);

impl AttestedIdentity {
    /// Makes a key and has it attested.
    ///
    /// # Errors
    /// [`IssueError`] when there is no evidence, or no certificate can be made.
    pub fn new(
        attester: impl Attester + 'static,
        options: CertificateOptions,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, IssueError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let current = issue(&attester, &options, &*clock, &provider)?;
        Ok(Self {
            attester: Box::new(attester),
            options,
            clock,
            provider,
            current: RwLock::new(current),
            last_failure: Mutex::default(),
        })
    }

    /// Makes a new key, has it attested, and uses it for connections from now on.
    ///
    /// # Errors
    /// [`IssueError`]; the key in use stays in use until its certificate expires.
    pub fn renew(&self) -> Result<(), IssueError> {
        let renewed = issue(&*self.attester, &self.options, &*self.clock, &self.provider);
        let mut failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
        match renewed {
            Ok(current) => {
                *failure = None;
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
                Ok(())
            }
            Err(error) => {
                *failure = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Renews if two thirds of the certificate's lifetime are over. Says whether it did.
    ///
    /// # Errors
    /// As [`AttestedIdentity::renew`].
    pub fn renew_if_due(&self) -> Result<bool, IssueError> {
        let due = self.current.read().unwrap_or_else(PoisonError::into_inner).renew_at;
        if self.now().is_some_and(|now| now < due) {
            return Ok(false);
        }
        self.renew().map(|()| true)
    }

    /// Why the last renewal failed, if it did.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renews in a thread of its own for as long as the result is kept. A failure is tried again every minute.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn keep_renewed(self: &Arc<Self>) -> std::io::Result<Renewal> {
        let (end, ended) = mpsc::channel::<()>();
        let identity = Arc::downgrade(self);
        let thread = thread::Builder::new().name("attested-tls renewal".into());
        thread.spawn(move || {
            // The clock may be one that jumps, so it is looked at often rather than slept by.
            while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(RETRY) {
                let Some(identity) = identity.upgrade() else { return };
                // What went wrong is kept for `last_failure`.
                let _ = identity.renew_if_due();
            }
        })?;
        Ok(Renewal { _end: end })
    }

    /// The certificate and key in use; `None` when it has expired, so that nobody gets a stale one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        (self.now()? <= current.valid_until).then(|| Arc::clone(&current.key))
    }

    fn now(&self) -> Option<u64> {
        self.clock.current_time().map(|now| now.as_secs())
    }
}

impl fmt::Debug for AttestedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestedIdentity").field("options", &self.options).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for AttestedIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}

impl ResolvesClientCert for AttestedIdentity {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Keeps an identity renewed until it is dropped.
#[derive(Debug)]
pub struct Renewal {
    _end: mpsc::Sender<()>,
}

/// Why there is no attested certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// There is no evidence.
    #[error("the key cannot be attested: {0}")]
    Attest(#[source] Box<dyn Error + Send + Sync>),
    /// The certificate cannot be made.
    #[error("the certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library does not take it.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// There is no time, or none that certificates can express.
    #[error("the clock gives no time that a certificate can be issued at")]
    Clock,
}

fn issue(
    attester: &dyn Attester,
    options: &CertificateOptions,
    clock: &dyn TimeProvider,
    provider: &CryptoProvider,
) -> Result<Current, IssueError> {
    let now = clock.current_time().ok_or(IssueError::Clock)?.as_secs();
    let lifetime = options.lifetime.as_secs();
    let valid_until = now.saturating_add(lifetime);
    let key = KeyPair::generate()?;
    let claims = Claims::for_key(&key.subject_public_key_info(), options.nonce.as_deref()).encode();
    let quote = attester.attest(&report_data(&claims)).map_err(IssueError::Attest)?;
    let evidence = TaggedEvidence { quote, claims }.encode();

    let mut params = CertificateParams::new(options.names.clone())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "attested TLS");
    params.not_before = date(now.saturating_sub(BACKDATED))?;
    params.not_after = date(valid_until)?;
    let oid: Vec<u64> = EVIDENCE_OID.arcs().map(u64::from).collect();
    params.custom_extensions.push(CustomExtension::from_oid_content(&oid, evidence));
    let certificate = params.self_signed(&key)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = CertifiedKey::from_der(vec![certificate.der().clone()], private, provider)?;
    Ok(Current { key: Arc::new(key), renew_at: now.saturating_add(lifetime / 3 * 2), valid_until })
}

fn date(seconds: u64) -> Result<OffsetDateTime, IssueError> {
    let seconds = i64::try_from(seconds).map_err(|_| IssueError::Clock)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| IssueError::Clock)
}
