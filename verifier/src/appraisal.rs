//! What verification of evidence found: serializable for programs, and in words for people.
//!
//! An [`Appraisal`] states facts; whether they suffice is for a [`crate::Policy`] to say.

use std::fmt;

use serde::Serialize;

use crate::{
    quote::Tee,
    roots::RootOfTrust,
    status::{Failure, Status, TcbStatus},
    types::{Hex, Time},
};

/// The findings about one piece of evidence at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Appraisal {
    /// The time for which everything was judged.
    pub time: Time,
    /// What kind of environment the evidence is of; `None` when it could not be parsed.
    pub tee: Option<Tee>,
    /// Who vouches for the platform; `None` when there is no usable chain.
    pub root_of_trust: Option<RootOfTrust>,
    /// Every check made, in order.
    pub checks: Vec<Check>,
    /// What the evidence claims to come from. Believe it only when [`Appraisal::is_authentic`].
    pub identity: Option<Identity>,
    /// The 64 bytes the attester bound into the evidence. Believe it only when [`Appraisal::is_authentic`].
    pub report_data: Option<Hex<64>>,
    /// The platform's security versions, judged; `None` when they could not be.
    pub tcb: Option<Tcb>,
    /// When the first part of the collateral expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collateral_valid_until: Option<Time>,
    /// What has validity starting only after `time`: a sign of a wrong clock. Intel's verifier ignores it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub premature: Vec<String>,
    /// What could not be checked for want of material, and other things to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Appraisal {
    /// Whether the evidence is certainly from the root of trust, whatever the state of the platform's TCB and however
    /// stale the collateral: all signatures hold, nothing is revoked, and the root is trusted.
    #[must_use]
    pub fn is_authentic(&self) -> bool {
        self.tee.is_some()
            && self.root_of_trust.is_some_and(|root| root.is_trusted())
            && self
                .checks
                .iter()
                .all(|check| check.failures.iter().all(|f| f.expired.is_some() || f.status.tcb().is_some()))
    }

    /// The outcome of a check, if it was made.
    #[must_use]
    pub fn check(&self, kind: CheckKind) -> Option<&Check> {
        self.checks.iter().find(|check| check.kind == kind)
    }

    /// The outcome of a check in the terms of Intel's verifier.
    #[must_use]
    pub fn status(&self, kind: CheckKind) -> Option<Status> {
        self.check(kind).map(|check| check.status)
    }

    /// Whether the environment can be read by a debugger.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        match &self.identity {
            Some(
                Identity::Sgx { debug, .. } | Identity::Tdx { debug, .. } | Identity::SevSnp { debug, .. },
            ) => *debug,
            None => false,
        }
    }

    /// Whether the evidence is from an emulated platform, which protects nothing.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        matches!(self.root_of_trust, Some(RootOfTrust::Emulated { .. }))
    }
}

/// The checks there are. The first four are those of Intel's verifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The PCK certificate's chain up to the root, its CRLs, and their validity.
    PckChain,
    /// The TCB info's signature, chain and validity.
    TcbInfo,
    /// The QE identity's signature, chain and validity.
    QeIdentity,
    /// The quote's signatures, its quoting enclave, and the platform's TCB.
    Quote,
    /// SEV-SNP: the VCEK or VLEK certificate's chain up to the root, and validity.
    EndorsementKeyChain,
    /// SEV-SNP: the report's signature, and that the certificate is for the reported TCB.
    Report,
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PckChain => "PCK chain",
            Self::TcbInfo => "TCB info",
            Self::QeIdentity => "QE identity",
            Self::Quote => "quote",
            Self::EndorsementKeyChain => "endorsement key chain",
            Self::Report => "report",
        })
    }
}

/// One check and its outcome.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was checked.
    pub kind: CheckKind,
    /// The outcome Intel's verifier gives: the first failure's, or `OK`.
    pub status: Status,
    /// Everything found wrong.
    pub failures: Vec<Failure>,
}

impl Check {
    pub(crate) fn new(kind: CheckKind, failures: Vec<Failure>) -> Self {
        Self { kind, status: failures.first().map_or(Status::Ok, |failure| failure.status), failures }
    }
}

/// What was attested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one per appraisal")]
pub enum Identity {
    /// An SGX enclave.
    Sgx {
        /// Measurement of the enclave.
        mr_enclave: Hex<32>,
        /// Hash of the signer's key.
        mr_signer: Hex<32>,
        /// Product, as the signer numbers them.
        product_id: u16,
        /// Security version, as the signer numbers them.
        svn: u16,
        /// Attribute flags and XFRM.
        attributes: Hex<16>,
        /// Configuration identity.
        config_id: Hex<64>,
        /// Configuration security version.
        config_svn: u16,
        /// Whether a debugger can read it.
        debug: bool,
    },
    /// A TDX trust domain.
    Tdx {
        /// Measurement of the initial contents.
        mr_td: Hex<48>,
        /// Run-time measurement registers.
        rtmr: [Hex<48>; 4],
        /// Measurement of the TDX module.
        mr_seam: Hex<48>,
        /// Configuration identity.
        mr_config_id: Hex<48>,
        /// Owner.
        mr_owner: Hex<48>,
        /// Configuration of the owner.
        mr_owner_config: Hex<48>,
        /// Attributes of the trust domain.
        td_attributes: Hex<8>,
        /// Extended features.
        xfam: Hex<8>,
        /// Measurement of bound service TDs, where the report has it.
        #[serde(skip_serializing_if = "Option::is_none")]
        mr_service_td: Option<Hex<48>>,
        /// Whether a debugger can read it.
        debug: bool,
        /// Whether it may be migrated to another platform.
        migratable: bool,
        /// Whether a service TD is bound to it.
        service_td: bool,
        /// Whether the host is kept from raising exceptions in it by unmapping memory.
        sept_ve_disabled: bool,
    },
    /// An SEV-SNP guest.
    SevSnp {
        /// Launch measurement.
        measurement: Hex<48>,
        /// Data the host gave at launch.
        host_data: Hex<32>,
        /// Family the guest owner assigned.
        family_id: Hex<16>,
        /// Image the guest owner assigned.
        image_id: Hex<16>,
        /// Security version the guest owner assigned.
        guest_svn: u32,
        /// Privilege level the report was asked from.
        vmpl: u32,
        /// Digest of the key that signed the identity block.
        id_key_digest: Hex<48>,
        /// Digest of the key that signed that key.
        author_key_digest: Hex<48>,
        /// Chip the report is from; zero where masked.
        chip_id: Hex<64>,
        /// Guest policy.
        guest_policy: u64,
        /// Whether a debugger can read it.
        debug: bool,
        /// Whether a migration agent may move it to another platform.
        migratable: bool,
    },
}

/// The platform's security versions, and how they compare with those the vendor asks for.
#[derive(Debug, Clone, Serialize)]
pub struct Tcb {
    /// Everything taken together, as Intel's verifier converges it; `None` when the evidence is refused regardless.
    pub status: Option<TcbStatus>,
    /// TCB evaluation data number of the TCB info: which round of reference values this was judged by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation_data_number: Option<u32>,
    /// Evaluation data number of the QE identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qe_evaluation_data_number: Option<u32>,
    /// Parts judged, each by its own levels.
    pub components: Vec<TcbComponent>,
    /// Every advisory that the matched levels name, without repetition.
    pub advisories: Vec<String>,
    /// The platform.
    pub platform: Platform,
}

/// Facts about the platform from its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Platform {
    /// From a PCK certificate.
    Intel {
        /// Family, model, stepping, platform type and customer SKU.
        fmspc: Hex<6>,
        /// Identity of the PCE.
        pce_id: Hex<2>,
        /// Security versions of the SGX TCB components.
        components: [u8; 16],
        /// Security version of the PCE.
        pce_svn: u16,
        /// Platform provisioning identifier.
        ppid: Hex<16>,
        /// Instance, for multi-package platforms.
        #[serde(skip_serializing_if = "Option::is_none")]
        instance: Option<Hex<16>>,
        /// Whether packages can be added.
        #[serde(skip_serializing_if = "Option::is_none")]
        dynamic: Option<bool>,
        /// Whether Intel keeps platform root keys.
        #[serde(skip_serializing_if = "Option::is_none")]
        cached_keys: Option<bool>,
        /// Whether simultaneous multithreading is on.
        #[serde(skip_serializing_if = "Option::is_none")]
        smt: Option<bool>,
    },
    /// From a VCEK or VLEK certificate and the report.
    Amd {
        /// Product line.
        product: String,
        /// Security versions the report is bound to.
        reported: SnpTcb,
        /// Security versions the platform promises not to fall below.
        committed: SnpTcb,
        /// Security versions running.
        current: SnpTcb,
        /// Security versions at the guest's launch.
        launch: SnpTcb,
    },
}

/// Security versions of an SEV-SNP platform.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpTcb {
    /// Firmware management component; Turin and later.
    #[serde(default)]
    pub fmc: u8,
    /// Boot loader.
    #[serde(default)]
    pub bootloader: u8,
    /// PSP operating system.
    #[serde(default)]
    pub tee: u8,
    /// SNP firmware.
    #[serde(default)]
    pub snp: u8,
    /// Microcode patch level.
    #[serde(default)]
    pub microcode: u8,
}

/// A separately versioned part of a TCB.
#[derive(Debug, Clone, Serialize)]
pub struct TcbComponent {
    /// Which part.
    pub part: TcbPart,
    /// Its status by itself.
    pub status: TcbStatus,
    /// The level it reaches; `None` when it is below all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// The newest level there is.
    pub newest: Level,
    /// What is lower than the newest level asks for.
    pub shortfalls: Vec<Shortfall>,
    /// When the first set of updates was published that this part lacks. Grace periods run from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<Time>,
}

/// Parts with TCB levels of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TcbPart {
    /// Processor, microcode, firmware and PCE, by the PCK certificate's versions.
    SgxPlatform,
    /// The same and the TDX components, by the versions in the TD report.
    TdxPlatform,
    /// The TDX module, by its own identity.
    TdxModule,
    /// The quoting enclave.
    QuotingEnclave,
}

impl fmt::Display for TcbPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SgxPlatform => "SGX platform",
            Self::TdxPlatform => "TDX platform",
            Self::TdxModule => "TDX module",
            Self::QuotingEnclave => "quoting enclave",
        })
    }
}

/// A TCB level, as the vendor published it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Level {
    /// Status the vendor gives it.
    pub status: String,
    /// Every vulnerability published up to this date is dealt with at this level.
    pub date: Time,
    /// Vulnerabilities not dealt with at this level.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advisories: Vec<String>,
}

/// A security version below what a level asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortfall {
    /// Which version.
    pub what: String,
    /// The version there is.
    pub has: u32,
    /// The version the newest level asks for.
    pub needs: u32,
}

impl fmt::Display for Appraisal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tee, self.root_of_trust) {
            (Some(tee), Some(root)) => writeln!(f, "{tee} under {root}, judged at {}", self.time)?,
            (Some(tee), None) => {
                writeln!(f, "{tee} without a usable certificate chain, judged at {}", self.time)?
            }
            (None, _) => writeln!(f, "unreadable evidence, judged at {}", self.time)?,
        }
        if let Some(identity) = &self.identity {
            write!(f, "{identity}")?;
        }
        if let Some(data) = &self.report_data {
            writeln!(f, "  report data      {data}")?;
        }
        for check in &self.checks {
            writeln!(f, "  {:<16} {}", check.kind.to_string(), check.status)?;
            for failure in &check.failures {
                writeln!(f, "    - {}", failure.detail)?;
            }
        }
        if let Some(tcb) = &self.tcb {
            write!(f, "{tcb}")?;
        }
        if let Some(until) = self.collateral_valid_until {
            writeln!(f, "  collateral valid until {until}")?;
        }
        for what in self.premature.iter().chain(&self.notes) {
            writeln!(f, "  {what}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sgx { mr_enclave, mr_signer, product_id, svn, debug, .. } => {
                writeln!(f, "  MRENCLAVE        {mr_enclave}")?;
                writeln!(f, "  MRSIGNER         {mr_signer}")?;
                writeln!(f, "  product, SVN     {product_id}, {svn}{}", if *debug { " (DEBUG)" } else { "" })
            }
            Self::Tdx { mr_td, rtmr, debug, migratable, service_td, .. } => {
                writeln!(f, "  MRTD             {mr_td}")?;
                for (index, rtmr) in rtmr.iter().enumerate() {
                    writeln!(f, "  RTMR{index}            {rtmr}")?;
                }
                let flags =
                    [(*debug, "DEBUG"), (*migratable, "migratable"), (*service_td, "service TD bound")];
                for (_, name) in flags.iter().filter(|(set, _)| *set) {
                    writeln!(f, "  attribute        {name}")?;
                }
                Ok(())
            }
            Self::SevSnp { measurement, guest_svn, vmpl, host_data, debug, .. } => {
                writeln!(f, "  measurement      {measurement}")?;
                writeln!(f, "  host data        {host_data}")?;
                writeln!(f, "  guest SVN, VMPL  {guest_svn}, {vmpl}{}", if *debug { " (DEBUG)" } else { "" })
            }
        }
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status {
            write!(f, "  TCB              {status}")?;
            match self.evaluation_data_number {
                Some(number) => writeln!(f, " (evaluation data number {number})")?,
                None => writeln!(f)?,
            }
        }
        for component in &self.components {
            let TcbComponent { part, status, level, newest, shortfalls, missing_since } = component;
            write!(f, "    {:<16} {status}", part.to_string())?;
            match level {
                Some(level) => write!(f, ", level of {}", level.date)?,
                None => write!(f, ", below every level")?,
            }
            writeln!(f)?;
            if let Some(level) = level.as_ref().filter(|level| !level.advisories.is_empty()) {
                writeln!(f, "      advisories: {}", level.advisories.join(", "))?;
            }
            for Shortfall { what, has, needs } in shortfalls {
                writeln!(
                    f,
                    "      {what}: has {has}, level of {} ({}) asks for {needs}",
                    newest.date, newest.status
                )?;
            }
            if let Some(since) = missing_since {
                writeln!(f, "      updates missing since {since}")?;
            }
        }
        if let Platform::Amd { product, reported, .. } = &self.platform {
            let SnpTcb { fmc, bootloader, tee, snp, microcode } = reported;
            writeln!(
                f,
                "    {product}: FMC {fmc}, boot loader {bootloader}, TEE {tee}, SNP {snp}, microcode {microcode}"
            )?;
        }
        Ok(())
    }
}
