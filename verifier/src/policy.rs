//! What a relying party demands of evidence, as data.
//!
//! A [`Policy`] is written in TOML or JSON, checked when read, and judges an [`Appraisal`]: the [`Verdict`] carries
//! every reason for which the evidence is refused. Defaults refuse: no debug, no emulation, nothing but up to date,
//! and an identity must be named.
//!
//! ```toml
//! report_data_prefix = "5f…"          # what the attester must have bound: a nonce, a key's hash
//! [tcb]
//! minimum_evaluation_number = 17
//! accept = [
//!     "UpToDate",
//!     { status = "SWHardeningNeeded", advisories = ["INTEL-SA-00334", "INTEL-SA-00615"] },
//!     { status = "OutOfDate", grace_days = 30 },
//! ]
//! [[identity]]
//! kind = "sgx"
//! mr_signer = "83d7…"
//! product_id = 1
//! minimum_svn = 3
//! ```

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    appraisal::{Appraisal, CheckKind, Identity, Platform, SnpTcb, TcbPart},
    roots::{RootOfTrust, Roots},
    status::{Status, TcbStatus},
    types::{Hex, Time},
};

const DAY: u64 = 24 * 60 * 60;

/// What a relying party demands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Identities to accept: any one suffices.
    pub identity: Vec<IdentityRule>,
    /// Accept every identity; for tools that only ask whether evidence is genuine.
    pub any_identity: bool,
    /// Accept environments a debugger can read.
    pub allow_debug: bool,
    /// Emulated roots to accept, by the SHA-256 of their SubjectPublicKeyInfo. Their evidence proves nothing about
    /// hardware; name one only in development.
    pub emulated_roots: Vec<Hex<32>>,
    /// Report data demanded in full, 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_data: Option<Hex<64>>,
    /// What report data must begin with, 1 to 64 bytes: a nonce or the hash of a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report_data_prefix: Option<Bytes>,
    /// What is demanded of the platform.
    pub tcb: TcbPolicy,
}

/// What is demanded of the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcbPolicy {
    /// TCB statuses to accept; only `UpToDate` unless said otherwise.
    pub accept: Vec<Acceptance>,
    /// Advisories never to accept, whatever the status.
    pub reject_advisories: Vec<String>,
    /// Lowest TCB evaluation data number of TCB info and QE identity to judge by, so that nobody is judged by
    /// reference values older than a known fix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_evaluation_number: Option<u32>,
    /// How long after its expiry collateral and certificates may be used, days; for times when a service is down.
    pub collateral_grace_days: u32,
    /// Accept TDX trust domains that service TDs (migration, vTPM) are bound to.
    pub allow_service_td: bool,
    /// Accept TDX trust domains and SEV-SNP guests that may be migrated.
    pub allow_migration: bool,
    /// Accept TDX trust domains in which the host can raise exceptions by unmapping memory (SEPT_VE_DISABLE is not set).
    pub allow_sept_ve: bool,
    /// Lowest security versions of an SEV-SNP platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_snp: Option<SnpTcb>,
}

impl Default for TcbPolicy {
    fn default() -> Self {
        Self {
            accept: vec![Acceptance::Status(TcbStatus::UpToDate)],
            reject_advisories: Vec::new(),
            minimum_evaluation_number: None,
            collateral_grace_days: 0,
            allow_service_td: false,
            allow_migration: false,
            allow_sept_ve: false,
            minimum_snp: None,
        }
    }
}

/// A TCB status to accept, perhaps under conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Acceptance {
    /// The status, unconditionally.
    Status(TcbStatus),
    /// The status, under conditions.
    Conditional(ConditionalAcceptance),
}

/// A TCB status to accept under conditions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionalAcceptance {
    /// The status.
    pub status: TcbStatus,
    /// When given, only as long as no advisory applies but these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advisories: Option<Vec<String>>,
    /// For out-of-date statuses: only for so many days after the first update that the platform lacks was published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_days: Option<u32>,
}

/// An identity to accept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum IdentityRule {
    /// An SGX enclave: one measurement, or a signer's product from a version on.
    Sgx {
        /// Measurement demanded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mr_enclave: Option<Hex<32>>,
        /// Signer demanded; `product_id` and `minimum_svn` go with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mr_signer: Option<Hex<32>>,
        /// Product demanded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        product_id: Option<u16>,
        /// Lowest security version accepted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        minimum_svn: Option<u16>,
        /// Configuration demanded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config_id: Option<Hex<64>>,
    },
    /// A TDX trust domain.
    Tdx {
        /// Measurement of the initial contents demanded.
        mr_td: Hex<48>,
        /// Run-time measurement demanded: firmware configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rtmr0: Option<Hex<48>>,
        /// Run-time measurement demanded: boot loader and kernel.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rtmr1: Option<Hex<48>>,
        /// Run-time measurement demanded: command line and initial RAM disk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rtmr2: Option<Hex<48>>,
        /// Run-time measurement demanded: software's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rtmr3: Option<Hex<48>>,
        /// Configuration demanded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mr_config_id: Option<Hex<48>>,
    },
    /// An SEV-SNP guest.
    SevSnp {
        /// Launch measurement demanded.
        measurement: Hex<48>,
        /// Host data demanded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_data: Option<Hex<32>>,
        /// Lowest guest security version accepted.
        #[serde(default)]
        minimum_guest_svn: u32,
        /// Highest VMPL (least privilege) a report is accepted from.
        #[serde(default)]
        maximum_vmpl: u32,
    },
}

/// Bytes of any length, written in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(#[serde(with = "hex::serde")] pub Vec<u8>);

/// Why text is not a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not TOML, or not of a policy's shape.
    #[error("the policy is not valid TOML of the expected shape: {0}")]
    Toml(#[from] toml::de::Error),
    /// Not JSON, or not of a policy's shape.
    #[error("the policy is not valid JSON of the expected shape: {0}")]
    Json(#[from] serde_json::Error),
    /// An identity rule that would accept anything, or more than was meant.
    #[error("identity rule {index} must name mr_enclave, or mr_signer with product_id and minimum_svn")]
    IncompleteIdentity {
        /// Which rule, counted from 1.
        index: usize,
    },
    /// A status no policy may accept.
    #[error(
        "status {0} cannot be accepted: such a platform may have lost its keys; remove it from tcb.accept"
    )]
    Unacceptable(TcbStatus),
    /// A grace period for what no update cures.
    #[error("grace_days has no meaning for {0}, which no update cures; it is for OutOfDate statuses")]
    GraceWithoutUpdate(TcbStatus),
    /// A prefix that demands nothing, or more than there is.
    #[error("report_data_prefix has {0} bytes; it must have 1 to 64")]
    PrefixLength(usize),
}

impl Policy {
    /// Reads a policy in TOML.
    ///
    /// # Errors
    /// [`PolicyError`] when it has another shape, an unknown key, or would accept what cannot be accepted.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        toml::from_str::<Self>(text)?.checked()
    }

    /// Reads a policy in JSON.
    ///
    /// # Errors
    /// [`PolicyError`] when it has another shape, an unknown key, or would accept what cannot be accepted.
    pub fn from_json(text: &str) -> Result<Self, PolicyError> {
        serde_json::from_str::<Self>(text)?.checked()
    }

    /// Checks a policy that was built or changed in code.
    ///
    /// # Errors
    /// [`PolicyError`] when it would accept what cannot be accepted.
    pub fn checked(self) -> Result<Self, PolicyError> {
        for (index, rule) in (1..).zip(&self.identity) {
            if let IdentityRule::Sgx { mr_enclave, mr_signer, product_id, minimum_svn, .. } = rule {
                let signer_complete = product_id.is_some() && minimum_svn.is_some();
                if mr_enclave.is_none() && !(mr_signer.is_some() && signer_complete) {
                    return Err(PolicyError::IncompleteIdentity { index });
                }
            }
        }
        for acceptance in &self.tcb.accept {
            let status = acceptance.status();
            if matches!(status, TcbStatus::Revoked | TcbStatus::NotSupported) {
                return Err(PolicyError::Unacceptable(status));
            }
            if let Acceptance::Conditional(ConditionalAcceptance { grace_days: Some(_), .. }) = acceptance
                && !is_out_of_date(status)
            {
                return Err(PolicyError::GraceWithoutUpdate(status));
            }
        }
        match &self.report_data_prefix {
            Some(Bytes(prefix)) if !(1..=64).contains(&prefix.len()) => {
                Err(PolicyError::PrefixLength(prefix.len()))
            }
            _ => Ok(self),
        }
    }

    /// The roots a verifier must trust for this policy.
    #[must_use]
    pub fn roots(&self) -> Roots {
        Roots::with_emulated(self.emulated_roots.iter().copied())
    }

    /// Judges an appraisal, which must have been made with [`Policy::roots`] or fewer.
    pub fn judge(&self, appraisal: Appraisal) -> Verdict {
        let mut reasons = Vec::new();
        self.judge_checks(&appraisal, &mut reasons);
        if let Some(RootOfTrust::Emulated { key }) = appraisal.root_of_trust
            && !self.emulated_roots.contains(&key)
        {
            reasons.push(Reason::Emulated { key });
        }
        self.judge_identity(&appraisal, &mut reasons);
        self.judge_tcb(&appraisal, &mut reasons);
        reasons.extend(appraisal.premature.iter().map(|what| Reason::Premature { what: what.clone() }));
        Verdict { accepted: reasons.is_empty(), emulated: appraisal.is_emulated(), reasons, appraisal }
    }

    /// Refuses every failed check, but not the state of the TCB, which has rules of its own.
    fn judge_checks(&self, appraisal: &Appraisal, reasons: &mut Vec<Reason>) {
        let grace = u64::from(self.tcb.collateral_grace_days) * DAY;
        for check in &appraisal.checks {
            for failure in &check.failures {
                let tolerated =
                    failure.expired.is_some_and(|at| appraisal.time.0 <= at.0.saturating_add(grace));
                // The TCB's state is judged apart, unless there is no TCB to judge.
                let judged_apart = failure.status.tcb().is_some()
                    && appraisal.tcb.as_ref().is_some_and(|tcb| tcb.status.is_some());
                if !tolerated && !judged_apart {
                    reasons.push(Reason::CheckFailed {
                        check: check.kind,
                        status: failure.status,
                        detail: failure.detail.clone(),
                    });
                }
            }
        }
        if appraisal.root_of_trust.is_none_or(|root| !root.is_trusted()) && reasons.is_empty() {
            reasons.push(Reason::NoRootOfTrust);
        }
    }

    fn judge_identity(&self, appraisal: &Appraisal, reasons: &mut Vec<Reason>) {
        if let Some(data) = &appraisal.report_data {
            let matches = self.report_data.is_none_or(|expected| expected == *data)
                && self.report_data_prefix.as_ref().is_none_or(|prefix| data.0.starts_with(&prefix.0));
            if !matches {
                reasons.push(Reason::ReportData { found: *data });
            }
        }
        let Some(identity) = &appraisal.identity else { return };
        if appraisal.is_debug() && !self.allow_debug {
            reasons.push(Reason::Debug);
        }
        if let Identity::Tdx { service_td: true, .. } = identity
            && !self.tcb.allow_service_td
        {
            reasons.push(Reason::ServiceTd);
        }
        if let Identity::Tdx { sept_ve_disabled: false, .. } = identity
            && !self.tcb.allow_sept_ve
        {
            reasons.push(Reason::SeptVe);
        }
        if let Identity::Tdx { migratable: true, .. } | Identity::SevSnp { migratable: true, .. } = identity
            && !self.tcb.allow_migration
        {
            reasons.push(Reason::Migratable);
        }
        if self.any_identity {
            return;
        }
        if self.identity.is_empty() {
            reasons.push(Reason::NoIdentityDemanded);
            return;
        }
        let mismatches: Vec<_> = self.identity.iter().map(|rule| rule.mismatches(identity)).collect();
        if !mismatches.iter().any(Vec::is_empty) {
            reasons.push(Reason::Identity { mismatches });
        }
    }

    fn judge_tcb(&self, appraisal: &Appraisal, reasons: &mut Vec<Reason>) {
        let Some(tcb) = &appraisal.tcb else { return };
        if let Some(status) = tcb.status {
            // Intel takes any imperfect quoting enclave or TDX module for out of date.
            let missing_since = tcb
                .components
                .iter()
                .filter(|component| match component.part {
                    TcbPart::SgxPlatform | TcbPart::TdxPlatform => is_out_of_date(component.status),
                    TcbPart::QuotingEnclave | TcbPart::TdxModule => component.status != TcbStatus::UpToDate,
                })
                .filter_map(|component| component.missing_since)
                .min();
            let mut conditions = Vec::new();
            let accepted =
                self.tcb.accept.iter().filter(|acceptance| acceptance.status() == status).any(|acceptance| {
                    let unmet = acceptance.unmet(&tcb.advisories, missing_since, appraisal.time);
                    let met = unmet.is_empty();
                    conditions.extend(unmet);
                    met
                });
            if !accepted {
                reasons.push(Reason::TcbStatus { status, advisories: tcb.advisories.clone(), conditions });
            }
        }
        let rejected: Vec<_> =
            tcb.advisories.iter().filter(|id| self.tcb.reject_advisories.contains(id)).cloned().collect();
        if !rejected.is_empty() {
            reasons.push(Reason::Advisories { rejected });
        }
        if let Some(minimum) = self.tcb.minimum_evaluation_number {
            let numbers = [
                (CheckKind::TcbInfo, tcb.evaluation_data_number),
                (CheckKind::QeIdentity, tcb.qe_evaluation_data_number),
            ];
            for (document, found) in numbers {
                if let Some(found) = found.filter(|found| *found < minimum) {
                    reasons.push(Reason::EvaluationNumber { document, found, minimum });
                }
            }
        }
        if let (Some(minimum), Platform::Amd { reported, .. }) = (self.tcb.minimum_snp, &tcb.platform) {
            let versions = [
                ("FMC", reported.fmc, minimum.fmc),
                ("boot loader", reported.bootloader, minimum.bootloader),
                ("TEE", reported.tee, minimum.tee),
                ("SNP firmware", reported.snp, minimum.snp),
                ("microcode", reported.microcode, minimum.microcode),
            ];
            for (what, has, needs) in versions.into_iter().filter(|(_, has, needs)| has < needs) {
                reasons.push(Reason::SnpVersion { what, has, needs });
            }
        }
    }
}

fn is_out_of_date(status: TcbStatus) -> bool {
    matches!(status, TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded)
}

impl Acceptance {
    fn status(&self) -> TcbStatus {
        match self {
            Self::Status(status) => *status,
            Self::Conditional(conditional) => conditional.status,
        }
    }

    /// Conditions not met.
    fn unmet(&self, advisories: &[String], missing_since: Option<Time>, time: Time) -> Vec<String> {
        let Self::Conditional(ConditionalAcceptance { advisories: accepted, grace_days, .. }) = self else {
            return Vec::new();
        };
        let mut unmet = Vec::new();
        if let Some(accepted) = accepted {
            let others: Vec<_> =
                advisories.iter().filter(|id| !accepted.contains(id)).map(String::as_str).collect();
            if !others.is_empty() {
                unmet.push(format!("advisories not accepted: {}", others.join(", ")));
            }
        }
        if let Some(days) = grace_days {
            // Without a date there is nothing a grace period could run from: it is long over.
            let since = missing_since.unwrap_or(Time(0));
            let until = Time(since.0.saturating_add(u64::from(*days) * DAY));
            if time > until {
                unmet.push(format!(
                    "the grace period of {days} days for updates missing since {since} ended {until}"
                ));
            }
        }
        unmet
    }
}

impl IdentityRule {
    /// In what an identity differs from this rule.
    fn mismatches(&self, identity: &Identity) -> Vec<String> {
        let mut mismatches = Vec::new();
        let mut demand = |met: bool, what: &str, demanded: &dyn fmt::Display, found: &dyn fmt::Display| {
            if !met {
                mismatches.push(format!("{what} is {found}, {demanded} is demanded"));
            }
        };
        match (self, identity) {
            (
                Self::Sgx { mr_enclave, mr_signer, product_id, minimum_svn, config_id },
                Identity::Sgx {
                    mr_enclave: enclave,
                    mr_signer: signer,
                    product_id: product,
                    svn,
                    config_id: config,
                    ..
                },
            ) => {
                for (what, demanded, found) in
                    [("MRENCLAVE", mr_enclave, enclave), ("MRSIGNER", mr_signer, signer)]
                {
                    if let Some(demanded) = demanded {
                        demand(demanded == found, what, demanded, found);
                    }
                }
                if let Some(demanded) = product_id {
                    demand(demanded == product, "product id", demanded, product);
                }
                if let Some(minimum) = minimum_svn {
                    demand(svn >= minimum, "SVN", &format!("at least {minimum}"), svn);
                }
                if let Some(demanded) = config_id {
                    demand(demanded == config, "CONFIGID", demanded, config);
                }
            }
            (
                Self::Tdx { mr_td, rtmr0, rtmr1, rtmr2, rtmr3, mr_config_id },
                Identity::Tdx { mr_td: td, rtmr, mr_config_id: config, .. },
            ) => {
                demand(mr_td == td, "MRTD", mr_td, td);
                for (index, (demanded, found)) in
                    [rtmr0, rtmr1, rtmr2, rtmr3].into_iter().zip(rtmr).enumerate()
                {
                    if let Some(demanded) = demanded {
                        demand(demanded == found, &format!("RTMR{index}"), demanded, found);
                    }
                }
                if let Some(demanded) = mr_config_id {
                    demand(demanded == config, "MRCONFIGID", demanded, config);
                }
            }
            (
                Self::SevSnp { measurement, host_data, minimum_guest_svn, maximum_vmpl },
                Identity::SevSnp { measurement: found, host_data: data, guest_svn, vmpl, .. },
            ) => {
                demand(measurement == found, "measurement", measurement, found);
                if let Some(demanded) = host_data {
                    demand(demanded == data, "host data", demanded, data);
                }
                let at_least = format!("at least {minimum_guest_svn}");
                demand(guest_svn >= minimum_guest_svn, "guest SVN", &at_least, guest_svn);
                demand(vmpl <= maximum_vmpl, "VMPL", &format!("at most {maximum_vmpl}"), vmpl);
            }
            _ => mismatches.push("the evidence is of another kind of environment".into()),
        }
        mismatches
    }
}

/// Why evidence is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// A check of the evidence or its collateral failed.
    #[error("{check}: {detail} [{status}]")]
    CheckFailed {
        /// Which check.
        check: CheckKind,
        /// Its outcome.
        status: Status,
        /// Cause and cure.
        detail: String,
    },
    /// Nobody the relying party trusts vouches for the platform.
    #[error("no trusted root vouches for the platform")]
    NoRootOfTrust,
    /// The platform is emulated, which the policy does not accept.
    #[error("the platform is emulated; add {key} to emulated_roots to accept it in development")]
    Emulated {
        /// Key of the emulated root.
        key: Hex<32>,
    },
    /// The policy names no identity.
    #[error("the policy names no identity; add an [[identity]] table, or set any_identity = true")]
    NoIdentityDemanded,
    /// The identity is none of those demanded.
    #[error("no identity rule is met: {}", .mismatches.iter().map(|rule| rule.join("; ")).collect::<Vec<_>>().join(" | "))]
    Identity {
        /// For every rule, in what the identity differs.
        mismatches: Vec<Vec<String>>,
    },
    /// A debugger can read the environment.
    #[error("a debugger can read the environment (allow_debug is not set)")]
    Debug,
    /// Service TDs are bound to the trust domain.
    #[error("a service TD is bound to the trust domain (tcb.allow_service_td is not set)")]
    ServiceTd,
    /// The host can raise exceptions inside the trust domain.
    #[error(
        "the host can raise exceptions inside the trust domain by unmapping its memory (tcb.allow_sept_ve is not set)"
    )]
    SeptVe,
    /// The environment may be migrated.
    #[error("the environment may be migrated to another platform (tcb.allow_migration is not set)")]
    Migratable,
    /// The report data is not what was demanded.
    #[error(
        "the report data is {found}, not what was demanded: the evidence is for another purpose, key or nonce"
    )]
    ReportData {
        /// The report data there is.
        found: Hex<64>,
    },
    /// The TCB status is not accepted.
    #[error("TCB status {status} is not accepted{}", .conditions.iter().map(|unmet| format!("; {unmet}")).collect::<String>())]
    TcbStatus {
        /// The status.
        status: TcbStatus,
        /// Advisories that apply.
        advisories: Vec<String>,
        /// Conditions of acceptance that are not met.
        conditions: Vec<String>,
    },
    /// Advisories apply that are never accepted.
    #[error("advisories apply that the policy rejects: {}", .rejected.join(", "))]
    Advisories {
        /// Which.
        rejected: Vec<String>,
    },
    /// Reference values are older than demanded.
    #[error(
        "the {document} has evaluation data number {found}, at least {minimum} is demanded; fetch it anew"
    )]
    EvaluationNumber {
        /// Which document.
        document: CheckKind,
        /// Its number.
        found: u32,
        /// The lowest number accepted.
        minimum: u32,
    },
    /// An SEV-SNP platform's security version is lower than demanded.
    #[error("{what} version {has} is lower than {needs}")]
    SnpVersion {
        /// Which version.
        what: &'static str,
        /// The version there is.
        has: u8,
        /// The lowest accepted.
        needs: u8,
    },
    /// Something is valid only in the future.
    #[error("{what}")]
    Premature {
        /// What, and from when.
        what: String,
    },
}

/// The judgement of a policy.
#[derive(Debug, Clone, Serialize)]
#[must_use]
pub struct Verdict {
    /// Whether the evidence meets the policy.
    pub accepted: bool,
    /// Whether the platform is emulated and protects nothing, although the policy may accept it.
    pub emulated: bool,
    /// Every reason for which the evidence is refused; empty when it is accepted. Each is serialized with its
    /// `message` for people.
    #[serde(serialize_with = "with_messages")]
    pub reasons: Vec<Reason>,
    /// What was found.
    pub appraisal: Appraisal,
}

fn with_messages<S: Serializer>(reasons: &[Reason], serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct WithMessage<'a> {
        #[serde(flatten)]
        reason: &'a Reason,
        message: String,
    }
    serializer.collect_seq(reasons.iter().map(|reason| WithMessage { reason, message: reason.to_string() }))
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.accepted, self.emulated) {
            (true, false) => writeln!(f, "ACCEPTED")?,
            (true, true) => writeln!(f, "ACCEPTED, but EMULATED: no hardware protects this")?,
            (false, _) => writeln!(f, "REFUSED")?,
        }
        for reason in &self.reasons {
            writeln!(f, "  - {reason}")?;
        }
        write!(f, "{}", self.appraisal)
    }
}
