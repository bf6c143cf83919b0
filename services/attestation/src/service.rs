//! What the service does, apart from HTTP: appraise, decide by policy, make tokens, keep policies.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use enclos_verifier::{
    Appraisal, Platform, Policy as Demands, PolicyError, Quote, SnpCollateral, SnpReport, Tee, Time,
    Verifier,
    quote::{Body, without_oe_header},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256, Sha384};
use smol_str::SmolStr;

use crate::{
    claims::{self, BoundData, Claims, CollateralClaim, TokenClaims, TokenValue},
    collateral::{CollateralStore, DEFAULT_BASELINE, Missing, NotCollateral},
    ear,
    engine::{CollateralDocument, Settings, TenantSettings},
    jws::{self, Jws, JwsError, base64url, decode_base64, sha256_base64url},
    policy::{EvaluationError, ParseError, Policy},
    store::{Revision, Store, StoreError, Written},
    tokens::{ATTESTATION_LIFETIME, Attestation, Attester, KeyError, KeyRing, RESULT_LIFETIME},
};

/// The kinds of environment policies are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AttestationType {
    /// SGX, by a quote.
    SgxEnclave,
    /// SGX, by an Open Enclave report.
    OpenEnclave,
    /// TDX, by a quote.
    TdxVm,
    /// SEV-SNP, by a report and its certificates.
    SevSnpVm,
}

impl AttestationType {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::SgxEnclave, Self::OpenEnclave, Self::TdxVm, Self::SevSnpVm];

    /// Name in addresses.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SgxEnclave => "SgxEnclave",
            Self::OpenEnclave => "OpenEnclave",
            Self::TdxVm => "TdxVm",
            Self::SevSnpVm => "SevSnpVm",
        }
    }

    /// The kind of a name, in any case.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name))
    }

    /// Name in the claim `x-ms-attestation-type`.
    fn claim(self) -> &'static str {
        match self {
            Self::SgxEnclave | Self::OpenEnclave => "sgx",
            Self::TdxVm => "tdxvm",
            Self::SevSnpVm => "sevsnpvm",
        }
    }

    fn tee(self) -> Tee {
        match self {
            Self::SgxEnclave | Self::OpenEnclave => Tee::Sgx,
            Self::TdxVm => Tee::Tdx,
            Self::SevSnpVm => Tee::SevSnp,
        }
    }

    /// The policy while none is set.
    fn default_policy(self) -> &'static str {
        match self {
            Self::SgxEnclave | Self::OpenEnclave => DEFAULT_SGX_POLICY,
            Self::TdxVm | Self::SevSnpVm => DEFAULT_VM_POLICY,
        }
    }
}

/// To the byte what Azure's shared providers have, so that relying parties which pin its hash accept it.
const DEFAULT_SGX_POLICY: &str = concat!(
    "version= 1.0;authorizationrules{=> permit();};issuancerules{",
    r#"c:[type=="x-ms-sgx-is-debuggable"] => issue(type="is-debuggable", value=c.value);"#,
    r#"c:[type=="x-ms-sgx-mrsigner"] => issue(type="sgx-mrsigner", value=c.value);"#,
    r#"c:[type=="x-ms-sgx-mrenclave"] => issue(type="sgx-mrenclave", value=c.value);"#,
    r#"c:[type=="x-ms-sgx-product-id"] => issue(type="product-id", value=c.value);"#,
    r#"c:[type=="x-ms-sgx-svn"] => issue(type="svn", value=c.value);"#,
    r#"c:[type=="x-ms-attestation-type"] => issue(type="tee", value=c.value);"#,
    "};",
);
const DEFAULT_VM_POLICY: &str = "version= 1.0;authorizationrules{=> permit();};issuancerules{};";

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Something in the request is not as it must be.
    #[error("{0}")]
    InvalidParameter(String),
    /// There is no collateral to judge the evidence by.
    #[error("{0}")]
    NoCollateral(String),
    /// The operation is not possible here.
    #[error("{0}")]
    InvalidOperation(String),
    /// The policy is not of the language.
    #[error("Policy Parser Exception Thrown: {0}")]
    PolicyParsing(#[from] ParseError),
    /// The policy denies, or cannot be evaluated.
    #[error("Policy Engine Exception: {0}")]
    PolicyEvaluation(#[from] EvaluationError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no usable key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl From<JwsError> for ServiceError {
    fn from(error: JwsError) -> Self {
        Self::InvalidOperation(error.to_string())
    }
}

/// Why the service cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The collateral.
    #[error(transparent)]
    Collateral(#[from] NotCollateral),
    /// What is demanded of platforms.
    #[error("what [tcb] demands of platforms is not usable: {0}")]
    Demands(#[from] PolicyError),
    /// The certificates of a tenant.
    #[error("policy signers of tenant {tenant:?}: {reason}")]
    PolicySigners {
        /// Which tenant.
        tenant: String,
        /// Why.
        reason: String,
    },
    /// A tenant whose policies had to be signed is configured to have them unsigned.
    #[error(
        "tenant {tenant:?} has policy management certificates in the store, and the configuration gives it none: \
         anybody could set its policies; give it policy_signers again"
    )]
    NoLongerIsolated {
        /// Which tenant.
        tenant: String,
    },
}

/// A customer of the service, as requests see it.
#[derive(Debug, Clone)]
pub struct TenantContext {
    /// Name in the store.
    pub name: String,
    /// What tokens name as issuer.
    pub issuer: String,
    /// Whether policies must be signed.
    pub isolated: bool,
}

impl From<&TenantSettings> for TenantContext {
    fn from(settings: &TenantSettings) -> Self {
        Self {
            name: settings.name.clone(),
            issuer: settings.issuer.clone(),
            isolated: settings.policy_signers.is_some(),
        }
    }
}

/// An attestation request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttestRequest {
    quote: Option<String>,
    report: Option<String>,
    runtime_data: Option<DataInput>,
    init_time_data: Option<DataInput>,
    draft_policy_for_attestation: Option<String>,
    nonce: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DataInput {
    #[serde(default)]
    data: String,
    data_type: Option<String>,
}

/// The service.
pub struct Service {
    store: Box<dyn Store>,
    pub(crate) keys: KeyRing,
    pub(crate) verifier: Verifier,
    pub(crate) demands: Demands,
    pub(crate) collateral: CollateralStore,
    pub(crate) evidence_time: Option<Time>,
    tenants: Vec<TenantContext>,
    /// Policies in force by tenant and kind, parsed; each is used only as long as the store has the same text.
    policies: Mutex<BTreeMap<String, BTreeMap<AttestationType, Arc<InForce>>>>,
}

/// A policy with what tokens say of it.
struct InForce {
    /// The JWS it was set by; `None` for the default.
    jws: Option<String>,
    policy: Policy,
    hash: SmolStr,
    signer: Option<Value>,
}

impl InForce {
    fn new(jws: Option<String>, text: &str, signer: Option<&jws::Signer>) -> Result<Self, ServiceError> {
        Ok(Self {
            jws,
            policy: Policy::parse(text)?,
            hash: sha256_base64url(base64url(text.as_bytes()).as_bytes()).into(),
            signer: signer.map(|signer| json!(signer.jwk())),
        })
    }
}

/// Forms of the token an attestation is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TokenFormat {
    /// Azure Attestation's.
    #[default]
    Maa,
    /// EAT Attestation Result (draft-ietf-rats-ear), with a trustworthiness vector (draft-ietf-rats-ar4si).
    Ear,
}

impl Service {
    /// Starts over a store that is open. With an `attester` the service is in an enclave: its signing keys get evidence of
    /// that, and nobody outside may make a tenant's policies unsigned.
    ///
    /// # Errors
    /// [`OpenError`] when something in the settings is not usable, or the store fails.
    pub fn start(
        settings: Settings,
        store: Box<dyn Store>,
        attester: Option<Box<dyn Attester>>,
    ) -> Result<Self, OpenError> {
        let is_inside = attester.is_some();
        let demands_digest = settings.demands.digest();
        let attestation = attester.map(|attester| Attestation { attester, demands: demands_digest });
        let rotation = u64::from(settings.key_rotation_days) * 24 * 3_600_000;
        let keys = KeyRing::attested(&*store, milliseconds(), rotation, attestation)?;
        for tenant in &settings.tenants {
            match &tenant.policy_signers {
                Some(signers) => {
                    let signers = initial_signers(signers)
                        .map_err(|reason| OpenError::PolicySigners { tenant: tenant.name.clone(), reason })?;
                    store.seed_certificates(&tenant.name, &signers)?;
                }
                None if is_inside && !store.signers(&tenant.name)?.chains.is_empty() => {
                    return Err(OpenError::NoLongerIsolated { tenant: tenant.name.clone() });
                }
                None => {}
            }
        }
        let demands = Demands {
            // Which enclave it is and whether it can be debugged is for the tenant's policy to judge.
            any_identity: true,
            allow_debug: true,
            emulated_roots: settings.demands.emulated_roots,
            tcb: settings.demands.tcb,
            ..Demands::default()
        };
        let demands = demands.checked()?;
        let verifier = Verifier::new(demands.roots());
        let collateral = CollateralStore::new(&settings.collateral, &verifier)?;
        Ok(Self {
            store,
            keys,
            verifier,
            demands,
            collateral,
            evidence_time: settings.demands.evidence_time,
            tenants: settings.tenants.iter().map(TenantContext::from).collect(),
            policies: Mutex::default(),
        })
    }

    /// The tenant of a name.
    pub(crate) fn tenant(&self, name: &str) -> Option<&TenantContext> {
        self.tenants.iter().find(|tenant| tenant.name == name)
    }

    /// How many platforms there is collateral for.
    #[must_use]
    pub fn platforms(&self) -> usize {
        self.collateral.platforms()
    }

    /// Takes in collateral, in addition to what there is.
    ///
    /// # Errors
    /// [`ServiceError::InvalidParameter`] when a document is not usable, or there is more than is kept.
    pub fn add_collateral(&self, documents: &[CollateralDocument]) -> Result<(), ServiceError> {
        self.collateral
            .add(documents, &self.verifier)
            .map_err(|error| ServiceError::InvalidParameter(error.to_string()))
    }

    /// The keys tokens are validated with, as `/certs` answers.
    #[must_use]
    pub fn published_keys(&self) -> Value {
        json!({ "keys": self.keys.published() })
    }

    /// How many keys are published, and how old the one that signs is.
    #[must_use]
    pub fn signing_key_age(&self) -> (usize, Duration) {
        let now = milliseconds();
        let age = now.saturating_sub(self.keys.signing(now).made());
        (self.keys.published().len(), Duration::from_millis(age))
    }

    /// Whether the store can be asked.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot.
    pub fn check_store(&self) -> Result<(), StoreError> {
        // Of what stores do not keep in memory.
        self.store.signers("").map(drop)
    }

    /// Makes and forgets signing keys as time passes.
    ///
    /// # Errors
    /// [`KeyError`] when the store fails.
    pub fn rotate_keys(&self) -> Result<(), KeyError> {
        self.keys.rotate(&*self.store, milliseconds())
    }

    /// Appraises evidence and makes a token, as `{"token": …}`.
    ///
    /// # Errors
    /// [`ServiceError`] when the evidence or the request is not usable, or the policy denies.
    pub fn attest(
        &self,
        tenant: &TenantContext,
        kind: AttestationType,
        request: &AttestRequest,
        format: TokenFormat,
    ) -> Result<Value, ServiceError> {
        let in_force = match &request.draft_policy_for_attestation {
            Some(draft) => Arc::new(InForce::new(None, &draft_policy(draft)?, None)?),
            None => self.policy_in_force(tenant, kind)?,
        };
        let policy = &in_force.policy;
        let mut claims = Claims::default();
        claims.common(kind.claim(), &in_force.hash, in_force.signer.clone());
        let baseline = baseline(policy, &claims)?;

        let evidence = match kind {
            AttestationType::OpenEnclave | AttestationType::SevSnpVm => ("report", &request.report),
            AttestationType::SgxEnclave | AttestationType::TdxVm => ("quote", &request.quote),
        };
        let bytes = required(evidence.0, evidence.1.as_deref())?;
        let appraisal = match kind {
            AttestationType::SevSnpVm => self.appraise_snp(&mut claims, &bytes, request)?,
            _ => self.appraise_quote(&mut claims, kind, &bytes, baseline.as_deref(), request)?,
        };
        if appraisal.is_emulated() {
            claims.emulated();
        }
        if let Some(nonce) = &request.nonce {
            claims.token.insert(SmolStr::new_static("nonce"), nonce.as_str().into());
        }

        let outcome = policy.evaluate(std::mem::take(&mut claims.incoming))?;
        claims.issue(outcome.issued).map_err(|name| EvaluationError::Reserved(name.into()))?;
        if format == TokenFormat::Ear {
            claims.token = ear::claims(&appraisal, &in_force.hash, claims.token);
        }
        self.stamp(&mut claims.token, tenant, ATTESTATION_LIFETIME);
        let key = self.keys.signing(milliseconds());
        let token = if request.draft_policy_for_attestation.is_some() {
            key.unsecured(&tenant.issuer, &claims.token)
        } else {
            key.sign(&tenant.issuer, &claims.token)?
        };
        Ok(json!({ "token": token }))
    }

    fn appraise_quote(
        &self,
        claims: &mut Claims,
        kind: AttestationType,
        bytes: &[u8],
        baseline: Option<&str>,
        request: &AttestRequest,
    ) -> Result<Appraisal, ServiceError> {
        let invalid = |reason: String| {
            ServiceError::InvalidParameter(format!("The specified quote was invalid: {reason}"))
        };
        let wrapped = without_oe_header(bytes).len() != bytes.len();
        match (kind, wrapped) {
            (AttestationType::OpenEnclave, false) => {
                return Err(invalid(
                    "it does not begin with the header of an Open Enclave remote report".into(),
                ));
            }
            (AttestationType::SgxEnclave | AttestationType::TdxVm, true) => {
                return Err(invalid("it is an Open Enclave report; send it to /attest/OpenEnclave".into()));
            }
            _ => {}
        }
        let quote = Quote::parse(bytes).map_err(|error| invalid(error.to_string()))?;
        if quote.tee != kind.tee() {
            return Err(invalid(format!("it is of a {}; this is /attest/{}", quote.tee, kind.name())));
        }
        let time = self.evidence_time.unwrap_or_else(Time::now);
        let entry = self.collateral.of(&quote, time, baseline.unwrap_or(DEFAULT_BASELINE)).map_err(
            |error| match (&error, invalid(error.to_string())) {
                (Missing::Platform { .. }, ServiceError::InvalidParameter(reason)) => {
                    ServiceError::NoCollateral(reason)
                }
                (_, invalid) => invalid,
            },
        )?;
        let appraisal =
            self.judge(self.verifier.verify_quote(bytes, &entry.trusted, time)).map_err(invalid)?;
        let tcb_status = appraisal
            .tcb
            .as_ref()
            .and_then(|tcb| tcb.status)
            .map_or("Unknown", enclos_verifier::TcbStatus::name);

        let runtime = bound(request.runtime_data.as_ref(), "runtimeData", |data| {
            quote.report_data().starts_with(&Sha256::digest(data))
        })?;
        let config_id = claims::config_id(&quote);
        let init_time = bound(request.init_time_data.as_ref(), "initTimeData", |data| {
            config_id.starts_with(&Sha256::digest(data)) || config_id == &Sha384::digest(data)[..]
        })?;
        match quote.body {
            Body::Sgx(report) => {
                let collateral =
                    CollateralClaim { quotehash: claims::sha256_hex(bytes), ..entry.claim.clone() };
                claims.sgx(&report, collateral, baseline);
            }
            Body::Td(report) => claims.tdx(&report, tcb_status),
        }
        if let Some(data) = &runtime {
            claims.runtime(quote.tee, data);
        }
        if let Some(data) = &init_time {
            claims.init_time(data);
        }
        Ok(appraisal)
    }

    fn appraise_snp(
        &self,
        claims: &mut Claims,
        bytes: &[u8],
        request: &AttestRequest,
    ) -> Result<Appraisal, ServiceError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Evidence {
            snp_report: String,
            vcek_cert_chain: String,
        }
        let invalid = |reason: String| {
            ServiceError::InvalidParameter(format!("The specified report was invalid: {reason}"))
        };
        let evidence: Evidence = serde_json::from_slice(bytes)
            .map_err(|error| invalid(format!("expected JSON with SnpReport and VcekCertChain: {error}")))?;
        let report_bytes = decode_base64(&evidence.snp_report)
            .map_err(|error| invalid(format!("SnpReport is not base64url: {error}")))?;
        let chain = decode_base64(&evidence.vcek_cert_chain)
            .ok()
            .and_then(|chain| String::from_utf8(chain).ok())
            .ok_or_else(|| invalid("VcekCertChain is not base64 of PEM certificates".into()))?;
        let report = SnpReport::parse(&report_bytes).map_err(|error| invalid(error.to_string()))?;
        let collateral = SnpCollateral { certificate_chain: chain, crl: None };
        let time = self.evidence_time.unwrap_or_else(Time::now);
        let appraisal =
            self.judge(self.verifier.verify_snp(&report_bytes, &collateral, time)).map_err(invalid)?;
        let Some(Platform::Amd { reported, .. }) = appraisal.tcb.as_ref().map(|tcb| &tcb.platform) else {
            return Err(invalid("its chain does not tell the product".into()));
        };
        let runtime = bound(request.runtime_data.as_ref(), "runtimeData", |data| {
            report.report_data().starts_with(&Sha256::digest(data))
        })?;
        let host_data = report_bytes.get(0xc0..0xe0).unwrap_or_default();
        let init_time = bound(request.init_time_data.as_ref(), "initTimeData", |data| {
            host_data == &Sha256::digest(data)[..]
        })?;
        claims.snp(&report, &report_bytes, *reported);
        if let Some(data) = &runtime {
            claims.runtime(Tee::SevSnp, data);
        }
        if let Some(data) = &init_time {
            claims.init_time(data);
        }
        Ok(appraisal)
    }

    fn judge(&self, appraisal: Appraisal) -> Result<Appraisal, String> {
        let verdict = self.demands.judge(appraisal);
        if verdict.accepted {
            return Ok(verdict.appraisal);
        }
        Err(verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// The policy of a tenant, as `{"token": …}` with the JWS it was set by.
    ///
    /// # Errors
    /// [`ServiceError`] when the store fails.
    pub fn policy(&self, tenant: &TenantContext, kind: AttestationType) -> Result<Value, ServiceError> {
        let stored = self.store.policy(&tenant.name, kind.name())?;
        let jws = stored.unwrap_or_else(|| {
            let payload = json!({ "AttestationPolicy": base64url(kind.default_policy().as_bytes()) });
            jws::unsigned(payload.to_string().as_bytes())
        });
        self.answer(tenant, json!({ "x-ms-policy": jws }))
    }

    /// Sets the policy that a JWS carries.
    ///
    /// # Errors
    /// [`ServiceError`] when it is not a policy, or not signed by whom it must be.
    pub fn set_policy(
        &self,
        tenant: &TenantContext,
        kind: AttestationType,
        jws: &str,
    ) -> Result<Value, ServiceError> {
        let jws = jws.trim();
        let verified = Jws::verify(jws)?;
        self.authorize(tenant, &verified)?;
        Policy::parse(&policy_text(&verified)?)?;
        self.write_authorized(tenant, &verified, |decided| {
            self.store.set_policy(&tenant.name, kind.name(), Some(jws), decided)
        })?;
        let mut result = json!({
            "x-ms-policy-result": "Updated",
            "x-ms-policy-token-hash": sha256_base64url(jws.as_bytes()),
        });
        if let Some(signer) = &verified.signer {
            result["x-ms-policy-signer"] = json!(signer.jwk());
        }
        self.answer(tenant, result)
    }

    /// Returns to the default policy.
    ///
    /// # Errors
    /// [`ServiceError`] when the JWS that asks for it is not signed by whom it must be.
    pub fn reset_policy(
        &self,
        tenant: &TenantContext,
        kind: AttestationType,
        jws: &str,
    ) -> Result<Value, ServiceError> {
        self.write_authorized(tenant, &Jws::verify(jws)?, |decided| {
            self.store.set_policy(&tenant.name, kind.name(), None, decided)
        })?;
        self.answer(tenant, json!({ "x-ms-policy-result": "Removed" }))
    }

    /// The certificates whose keys may sign policies.
    ///
    /// # Errors
    /// [`ServiceError`] when the store fails.
    pub fn certificates(&self, tenant: &TenantContext) -> Result<Value, ServiceError> {
        let mut keys = Vec::new();
        for chain in self.store.signers(&tenant.name)?.chains {
            keys.push(jws::jwk_of(&jws::certificates(&chain)?)?);
        }
        self.answer(tenant, json!({ "x-ms-policy-certificates": { "keys": keys } }))
    }

    /// Adds or removes (`present` false) a policy management certificate.
    ///
    /// # Errors
    /// [`ServiceError`] when the request is not signed by one there is, or would leave none.
    pub fn change_certificate(
        &self,
        tenant: &TenantContext,
        jws: &str,
        present: bool,
    ) -> Result<Value, ServiceError> {
        if !tenant.isolated {
            return Err(ServiceError::InvalidOperation(
                "this instance has no policy management certificates: its policies need not be signed".into(),
            ));
        }
        let verified = Jws::verify(jws)?;
        self.authorize(tenant, &verified)?;
        let payload: Map<String, Value> = serde_json::from_slice(&verified.payload).map_err(|error| {
            ServiceError::InvalidOperation(format!("the payload of the JWS is not a JSON object: {error}"))
        })?;
        let names = ["policyCertificate", "maa-policyCertificate", "x-ms-policyCertificate"];
        let jwk = names.iter().find_map(|name| payload.get(*name)).ok_or_else(|| {
            ServiceError::InvalidOperation(
                "Could not find \"maa-policyCertificate\" claim in policy token".into(),
            )
        })?;
        let chain: Vec<String> = serde_json::from_value(jwk["x5c"].clone()).map_err(|_| {
            ServiceError::InvalidParameter("the policy certificate has no x5c array of certificates".into())
        })?;
        let certificates = jws::certificates(&chain)?;
        // A certificate whose key cannot sign would only be found out when it is needed.
        jws::jwk_of(&certificates)?;
        let thumbprint = jws::thumbprint(&certificates[0]);
        self.write_authorized(tenant, &verified, |decided| match present {
            true => self.store.add_certificate(&tenant.name, &thumbprint, &chain, decided),
            false => self.store.remove_certificate(&tenant.name, &thumbprint, decided),
        })?;
        let result = if present { "IsPresent" } else { "IsAbsent" };
        self.answer(
            tenant,
            json!({
                "x-ms-certificate-thumbprint": thumbprint,
                "x-ms-policycertificates-result": result,
                // Named so by the specification of 2025.
                "x-ms-certificate-result": result,
            }),
        )
    }

    /// Rounds of reference values that policies may ask for.
    #[must_use]
    pub fn tcb_baselines(&self, kind: AttestationType) -> Value {
        let rounds = self.collateral.baselines(kind.tee());
        let newest = rounds.last().map(|(number, _)| *number);
        let baselines: Vec<_> = rounds
            .iter()
            .rev()
            .map(|(number, released)| {
                json!({
                    "tcbIdentifier": number.to_string(),
                    "tcbEvaluationDataNumber": number.to_string(),
                    "tcbReleaseDate": released.map_or_else(String::new, |date| date.to_string()),
                    "minimumPswLinuxVersion": "",
                    "minimumPswWindowsVersion": "",
                    "isSelectedTcb": Some(*number) == newest,
                })
            })
            .collect();
        json!({ "tcbBaselines": baselines })
    }

    fn policy_in_force(
        &self,
        tenant: &TenantContext,
        kind: AttestationType,
    ) -> Result<Arc<InForce>, ServiceError> {
        let stored = self.store.policy(&tenant.name, kind.name())?;
        let policies = || self.policies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = policies().get(&tenant.name).and_then(|kinds| kinds.get(&kind))
            && known.jws == stored
        {
            return Ok(Arc::clone(known));
        }
        let in_force = Arc::new(match stored {
            None => InForce::new(None, kind.default_policy(), None)?,
            Some(jws) => {
                let verified = Jws::verify(&jws)?;
                InForce::new(Some(jws), &policy_text(&verified)?, verified.signer.as_ref())?
            }
        });
        policies().entry(tenant.name.clone()).or_default().insert(kind, Arc::clone(&in_force));
        Ok(in_force)
    }

    /// Writes what a JWS asks for, as long as its signer may: decides anew when the certificates changed meanwhile.
    fn write_authorized(
        &self,
        tenant: &TenantContext,
        jws: &Jws,
        write: impl Fn(Revision) -> Result<Written, StoreError>,
    ) -> Result<(), ServiceError> {
        loop {
            match write(self.authorize(tenant, jws)?)? {
                Written::Done => return Ok(()),
                Written::Stale => {}
                Written::LastCertificate => {
                    return Err(ServiceError::InvalidOperation(
                        "the last policy management certificate cannot be removed: nobody could set policies any more"
                            .into(),
                    ));
                }
            }
        }
    }

    /// In isolated mode: only who holds the key of a policy management certificate. Says by which certificates that was
    /// decided.
    fn authorize(&self, tenant: &TenantContext, jws: &Jws) -> Result<Revision, ServiceError> {
        let signers = self.store.signers(&tenant.name)?;
        if !tenant.isolated {
            return Ok(signers.revision);
        }
        let signer = jws.signer.as_ref().ok_or_else(|| {
            ServiceError::InvalidOperation(
                "this instance demands a JWS signed by the key of a policy management certificate; this one is not signed"
                    .into(),
            )
        })?;
        let known = signers.chains.iter().any(|chain| {
            chain.first().and_then(|first| decode_base64(first).ok()).as_ref() == signer.certificates.first()
        });
        if known {
            return Ok(signers.revision);
        }
        Err(ServiceError::InvalidOperation(
            "the JWS is signed by a key whose certificate is none of the policy management certificates"
                .into(),
        ))
    }

    fn answer(&self, tenant: &TenantContext, result: Value) -> Result<Value, ServiceError> {
        let Value::Object(result) = result else { unreachable!("answers are made as objects") };
        let mut claims: TokenClaims =
            result.into_iter().map(|(name, value)| (name.into(), TokenValue::Json(value))).collect();
        self.stamp(&mut claims, tenant, RESULT_LIFETIME);
        let token = self.keys.signing(milliseconds()).sign(&tenant.issuer, &claims)?;
        Ok(json!({ "token": token }))
    }

    fn stamp(&self, claims: &mut TokenClaims, tenant: &TenantContext, lifetime: u64) {
        let now = Time::now().0;
        let mut id = [0; 32];
        // Only uniqueness is wanted; without randomness the time serves.
        if SystemRandom::new().fill(&mut id).is_err() {
            id[..8].copy_from_slice(&milliseconds().to_le_bytes());
        }
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let until = now.saturating_add(i64::try_from(lifetime).unwrap_or(i64::MAX));
        claims.insert(SmolStr::new_static("iss"), tenant.issuer.as_str().into());
        claims.insert(SmolStr::new_static("iat"), now.into());
        claims.insert(SmolStr::new_static("nbf"), now.into());
        claims.insert(SmolStr::new_static("exp"), until.into());
        claims.insert(SmolStr::new_static("jti"), claims::hex_text(&id).into());
    }
}

fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn required(name: &str, text: Option<&str>) -> Result<Vec<u8>, ServiceError> {
    let text = text.filter(|text| !text.is_empty()).ok_or_else(|| {
        ServiceError::InvalidParameter(format!("the request has no {name:?}; send it as base64url text"))
    })?;
    decode_base64(text)
        .map_err(|error| ServiceError::InvalidParameter(format!("{name:?} is not base64url: {error}")))
}

/// Decodes data that the evidence must bind.
fn bound(
    input: Option<&DataInput>,
    name: &str,
    is_bound: impl FnOnce(&[u8]) -> bool,
) -> Result<Option<BoundData>, ServiceError> {
    let Some(input) = input else { return Ok(None) };
    let invalid = |reason: String| ServiceError::InvalidParameter(format!("{name}: {reason}"));
    let bytes =
        decode_base64(&input.data).map_err(|error| invalid(format!("data is not base64url: {error}")))?;
    if !is_bound(&bytes) {
        return Err(invalid("the evidence does not carry the SHA-256 of this data".into()));
    }
    match input.data_type.as_deref().unwrap_or("Binary") {
        kind if kind.eq_ignore_ascii_case("binary") => Ok(Some(BoundData::Binary(bytes))),
        kind if kind.eq_ignore_ascii_case("json") => match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Some(BoundData::Json(object))),
            Ok(_) => Err(invalid("data of dataType JSON must be a JSON object".into())),
            Err(error) => Err(invalid(format!("data of dataType JSON is not JSON: {error}"))),
        },
        other => Err(invalid(format!("dataType {other:?} is neither Binary nor JSON"))),
    }
}

/// The round of reference values the configuration rules ask for.
fn baseline(policy: &Policy, claims: &Claims) -> Result<Option<String>, ServiceError> {
    for property in policy.configure(&claims.incoming)? {
        match (property.kind.as_str(), property.value) {
            ("x-ms-sgx-tcbidentifier", crate::policy::Value::String(text)) => return Ok(Some(text.into())),
            ("x-ms-sgx-tcbidentifier", crate::policy::Value::Integer(number)) => {
                return Ok(Some(number.to_string()));
            }
            ("x-ms-sgx-tcbidentifier", crate::policy::Value::Boolean(_)) => {
                return Err(ServiceError::InvalidParameter("x-ms-sgx-tcbidentifier is a Boolean".into()));
            }
            // Of other kinds of evidence.
            _ => {}
        }
    }
    Ok(None)
}

/// A draft is policy text, or a JWS that carries it.
fn draft_policy(draft: &str) -> Result<String, ServiceError> {
    let looks_like_jws = draft.trim().split('.').count() == 3 && !draft.trim().contains(char::is_whitespace);
    if looks_like_jws {
        return policy_text(&Jws::verify(draft)?);
    }
    Ok(draft.to_owned())
}

/// The text in the payload of a policy JWS.
fn policy_text(jws: &Jws) -> Result<String, ServiceError> {
    let invalid =
        |reason: String| ServiceError::InvalidOperation(format!("the JWS carries no policy: {reason}"));
    let payload: Map<String, Value> = serde_json::from_slice(&jws.payload)
        .map_err(|error| invalid(format!("its payload is not a JSON object: {error}")))?;
    let encoded = payload
        .get("AttestationPolicy")
        .and_then(Value::as_str)
        .ok_or_else(|| invalid("its payload has no \"AttestationPolicy\"".into()))?;
    let bytes = decode_base64(encoded)
        .map_err(|error| invalid(format!("\"AttestationPolicy\" is not base64url: {error}")))?;
    String::from_utf8(bytes).map_err(|error| invalid(format!("the policy is not UTF-8: {error}")))
}

/// Thumbprint and chain of each certificate.
fn initial_signers(certificates: &[Vec<u8>]) -> Result<Vec<(String, Vec<String>)>, String> {
    use base64::Engine;
    let mut signers = Vec::new();
    for der in certificates {
        jws::jwk_of(std::slice::from_ref(der)).map_err(|error| error.to_string())?;
        signers.push((jws::thumbprint(der), vec![base64::prelude::BASE64_STANDARD.encode(der)]));
    }
    if signers.is_empty() {
        return Err("there is no certificate in the file".into());
    }
    Ok(signers)
}
