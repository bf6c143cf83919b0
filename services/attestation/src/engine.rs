//! What decides and signs, apart from everything that moves bytes: the part of the service that can run inside an enclave.
//!
//! [`Engine`] is what the HTTP side asks. [`Service`] is one in this process; [`InEnclave`] calls one behind the boundary of
//! an enclave, whose program is `services/attestation/enclave`. [`Configuration`] and [`Records`] are what that program asks
//! of its host.
//!
//! # What an engine inside may believe
//! - Requests are anybody's, as outside.
//! - [`Settings`] are the host's. What they demand of platforms is bound into the evidence of every signing key
//!   ([`PlatformDemands::digest`]), so a relying party sees which demands its tokens were made under. Collateral is signed,
//!   also what is given later.
//!   Tenants and issuers are names: who signed the policy a token was made under stands in the token.
//! - Records are sealed by the program inside, which says what a host can still do to them.
//! - The clock is the host's. What a host gains by lying is bounded by the token: it carries the time its evidence was
//!   judged at as `iat`, and expires a fixed time after it.

use enclos::contract::{CallError, Transport};
use enclos_verifier::{Hex, TcbPolicy, Time};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    inspector::InspectRequest,
    service::{AttestRequest, AttestationType, Service, ServiceError, TenantContext, TokenFormat},
    store::StoreError,
    tokens::KeyError,
};

/// What the HTTP side asks.
#[enclos::interface]
pub trait Engine {
    /// Does what a request asks for, for the tenant of that name. `body` is the request's; the answer is JSON.
    fn answer(&self, tenant: &str, operation: Operation, body: &[u8]) -> Result<String, Refused>;

    /// The keys tokens are validated with, JSON, as `/certs` answers.
    fn published_keys(&self) -> Result<String, Refused>;

    /// Makes and forgets signing keys as time passes.
    fn rotate_keys(&self) -> Result<(), Refused>;

    /// Takes in collateral of platforms that there was none for, or newer than there is.
    fn take_collateral(&self, documents: &[CollateralDocument]) -> Result<(), Refused>;

    /// How it is doing; an error when its store cannot be asked.
    fn status(&self) -> Result<Status, Refused>;
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Appraise evidence and make a token.
    Attest(AttestationType, TokenFormat),
    /// Say the policy.
    GetPolicy(AttestationType),
    /// Set the policy.
    SetPolicy(AttestationType),
    /// Return to the default policy.
    ResetPolicy(AttestationType),
    /// Say the policy management certificates.
    Certificates,
    /// Add a policy management certificate, or remove it.
    ChangeCertificate {
        /// Whether it is to be there afterwards.
        present: bool,
    },
    /// Say the rounds of reference values.
    TcbBaselines(AttestationType),
    /// Tell and appraise what the evidence inspector was given.
    Inspect,
}

/// How an engine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Platforms there is collateral for.
    pub platforms: u64,
    /// Keys tokens can be validated with.
    pub keys: u64,
    /// Age of the key that signs tokens, seconds.
    pub signing_key_age: u64,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Whose fault it is.
    pub kind: RefusalKind,
    /// Cause and cure. Of [`RefusalKind::StoreUnavailable`] and [`RefusalKind::Internal`] it is for the log only.
    pub message: String,
}

/// Kinds of refusals, by what a caller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// Send another request.
    InvalidParameter,
    /// The operation is not possible here.
    InvalidOperation,
    /// Give collateral of the platform, and send the request again.
    NoCollateral,
    /// Mend the policy.
    PolicyParsing,
    /// The policy denies.
    PolicyEvaluation,
    /// Try again later.
    StoreUnavailable,
    /// Nothing; the operator has to act.
    Internal,
}

impl From<ServiceError> for Refused {
    fn from(error: ServiceError) -> Self {
        let kind = match &error {
            ServiceError::InvalidParameter(_) => RefusalKind::InvalidParameter,
            ServiceError::NoCollateral(_) => RefusalKind::NoCollateral,
            ServiceError::InvalidOperation(_) | ServiceError::Store(StoreError::Full { .. }) => {
                RefusalKind::InvalidOperation
            }
            ServiceError::PolicyParsing(_) => RefusalKind::PolicyParsing,
            ServiceError::PolicyEvaluation(_) => RefusalKind::PolicyEvaluation,
            ServiceError::Store(error) | ServiceError::Key(KeyError::Store(error)) => error.kind(),
            ServiceError::Key(_) => RefusalKind::Internal,
        };
        Self { kind, message: error.to_string() }
    }
}

impl StoreError {
    fn kind(&self) -> RefusalKind {
        match self {
            Self::Postgres { .. } => RefusalKind::StoreUnavailable,
            _ => RefusalKind::Internal,
        }
    }
}

impl Engine for Service {
    fn answer(&self, tenant: &str, operation: Operation, body: &[u8]) -> Result<String, Refused> {
        let tenant = self.tenant(tenant).ok_or_else(|| {
            ServiceError::InvalidParameter(format!("there is no attestation instance {tenant:?}"))
        })?;
        Ok(self.perform(tenant, operation, body)?.to_string())
    }

    fn published_keys(&self) -> Result<String, Refused> {
        Ok(Service::published_keys(self).to_string())
    }

    fn rotate_keys(&self) -> Result<(), Refused> {
        Ok(Service::rotate_keys(self).map_err(ServiceError::from)?)
    }

    fn take_collateral(&self, documents: &[CollateralDocument]) -> Result<(), Refused> {
        Ok(self.add_collateral(documents)?)
    }

    fn status(&self) -> Result<Status, Refused> {
        self.check_store().map_err(ServiceError::from)?;
        let (keys, age) = self.signing_key_age();
        Ok(Status { platforms: self.platforms() as u64, keys: keys as u64, signing_key_age: age.as_secs() })
    }
}

impl Service {
    fn perform(
        &self,
        tenant: &TenantContext,
        operation: Operation,
        body: &[u8],
    ) -> Result<serde_json::Value, ServiceError> {
        let invalid = ServiceError::InvalidParameter;
        let text = || {
            std::str::from_utf8(body).map_err(|error| invalid(format!("the body is not UTF-8 text: {error}")))
        };
        match operation {
            Operation::Attest(kind, format) => {
                let request: AttestRequest = serde_json::from_slice(body).map_err(|error| {
                    invalid(format!("the body is not an attestation request in JSON: {error}"))
                })?;
                self.attest(tenant, kind, &request, format)
            }
            Operation::GetPolicy(kind) => self.policy(tenant, kind),
            Operation::SetPolicy(kind) => self.set_policy(tenant, kind, text()?),
            Operation::ResetPolicy(kind) => self.reset_policy(tenant, kind, text()?),
            Operation::Certificates => self.certificates(tenant),
            Operation::ChangeCertificate { present } => {
                // A JSON string that holds the JWS; some send the JWS itself.
                let jws = serde_json::from_slice::<String>(body).or_else(|_| text().map(str::to_owned))?;
                self.change_certificate(tenant, &jws, present)
            }
            Operation::TcbBaselines(kind) => Ok(self.tcb_baselines(kind)),
            Operation::Inspect => {
                let request: InspectRequest = serde_json::from_slice(body).map_err(|error| {
                    invalid(format!("the body is not a request to inspect in JSON: {error}"))
                })?;
                self.inspect(tenant, &request).map(|inspection| json!(inspection))
            }
        }
    }
}

/// An engine inside an enclave, called through its typed client.
#[derive(Debug)]
pub struct InEnclave<T, K> {
    client: EngineClient<T>,
    _keep: K,
}

impl<T: Transport, K> InEnclave<T, K> {
    /// The engine behind a client. `keep` is kept for as long: the enclave, and what serves it.
    pub fn new(client: EngineClient<T>, keep: K) -> Self {
        Self { client, _keep: keep }
    }
}

impl<T: Transport, K> Engine for InEnclave<T, K> {
    fn answer(&self, tenant: &str, operation: Operation, body: &[u8]) -> Result<String, Refused> {
        self.client.answer(tenant, operation, body).map_err(refused)
    }

    fn published_keys(&self) -> Result<String, Refused> {
        self.client.published_keys().map_err(refused)
    }

    fn rotate_keys(&self) -> Result<(), Refused> {
        self.client.rotate_keys().map_err(refused)
    }

    fn take_collateral(&self, documents: &[CollateralDocument]) -> Result<(), Refused> {
        self.client.take_collateral(documents).map_err(refused)
    }

    fn status(&self) -> Result<Status, Refused> {
        self.client.status().map_err(refused)
    }
}

fn refused(error: CallError<Refused>) -> Refused {
    match error {
        CallError::Method(refused) => refused,
        CallError::Failed(failure) => {
            Refused { kind: RefusalKind::Internal, message: format!("calling the enclave: {failure}") }
        }
    }
}

/// What an engine is told when it starts. Nothing in it is a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// What is demanded of platforms.
    pub demands: PlatformDemands,
    /// Whom it serves.
    pub tenants: Vec<TenantSettings>,
    /// Collateral.
    pub collateral: Vec<CollateralDocument>,
    /// Days a signing key is used.
    pub key_rotation_days: u32,
}

/// What is demanded of platforms before any policy: what a relying party trusts a service for, besides its code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformDemands {
    /// Accepted TCB statuses and the like.
    pub tcb: TcbPolicy,
    /// Emulated roots accepted.
    pub emulated_roots: Vec<Hex<32>>,
    /// When evidence is judged, if not at present.
    pub evidence_time: Option<Time>,
}

impl PlatformDemands {
    /// SHA-256 of the demands as compact JSON, members in the order of this type. The second half of the report data in
    /// the evidence of signing keys.
    #[must_use]
    pub fn digest(&self) -> Hex<32> {
        let text = serde_json::to_vec(self).expect("demands are text and numbers");
        Hex(Sha256::digest(text).into())
    }
}

/// A tenant, as an engine is told of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TenantSettings {
    /// Name in the store.
    pub name: String,
    /// What tokens name as issuer.
    pub issuer: String,
    /// Initial policy management certificates, DER; with them, policies must be signed.
    pub policy_signers: Option<Vec<Vec<u8>>>,
}

/// A document of collateral, in the form the `dcap-qvl` tools exchange.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CollateralDocument {
    /// Where it is from, for messages.
    pub name: String,
    /// JSON.
    pub text: String,
}

/// Host service of an engine inside: what it is to do.
#[enclos::interface]
pub trait Configuration {
    /// [`Settings`], JSON.
    fn settings(&self) -> Result<Vec<u8>, NotKept>;
}

/// Host service of an engine inside: keeps its sealed records. What the host can do to them, the enclave's program says.
#[enclos::interface]
pub trait Records {
    /// All records.
    fn load(&self) -> Result<Vec<Record>, NotKept>;

    /// Writes and removes records: after a crash at any moment either all of it is done or nothing, and all of it once
    /// this has returned.
    fn commit(&self, changes: &[Change]) -> Result<(), NotKept>;
}

/// A sealed record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// What was sealed.
    pub blob: Vec<u8>,
}

/// A change of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The record's name.
    pub name: String,
    /// Its contents from now on; `None`: it is to go.
    pub blob: Option<Vec<u8>>,
}

/// The host could not keep or bring back something: cause and cure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct NotKept {
    /// The reason.
    pub reason: String,
}
