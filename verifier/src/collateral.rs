//! Endorsements and reference values of an SGX or TDX platform: CRLs, TCB info and QE identity, with the chains that
//! sign them.
//!
//! [`Collateral`] is the untrusted bundle a provisioning service hands out. [`TrustedCollateral`] is the same parsed,
//! with every signature in it verified once, so that many quotes can be judged by it at any chosen time. What is
//! wrong with a part is remembered there rather than refused, because a verdict names everything that is wrong.

use std::{borrow::Cow, sync::OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;

use crate::{
    crypto,
    pki::{self, Certificate, Crl, KnownRoots, PckChain},
    quote::Tee,
    roots::Roots,
    status::{Failure, Status, TcbStatus},
    types::{Hex, Time},
};

/// The collateral of one platform as provisioning services hand it out; field names and JSON form are those the
/// `dcap-qvl` tools exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collateral {
    /// Chain of the CA that issued `pck_crl`, PEM.
    pub pck_crl_issuer_chain: String,
    /// CRL of the root CA, DER.
    #[serde(serialize_with = "bytes_as_hex", deserialize_with = "crl_bytes")]
    pub root_ca_crl: Vec<u8>,
    /// CRL of the CA that issued the PCK certificate, DER.
    #[serde(serialize_with = "bytes_as_hex", deserialize_with = "crl_bytes")]
    pub pck_crl: Vec<u8>,
    /// Chain that signed `tcb_info`, PEM.
    pub tcb_info_issuer_chain: String,
    /// The TCB info exactly as signed (or wrapped with its signature, as services answer).
    pub tcb_info: String,
    /// ECDSA P-256 signature of `tcb_info`: r || s.
    #[serde(default, serialize_with = "bytes_as_hex", deserialize_with = "hex_bytes")]
    pub tcb_info_signature: Vec<u8>,
    /// Chain that signed `qe_identity`, PEM.
    pub qe_identity_issuer_chain: String,
    /// The QE identity exactly as signed (or wrapped with its signature, as services answer).
    pub qe_identity: String,
    /// ECDSA P-256 signature of `qe_identity`: r || s.
    #[serde(default, serialize_with = "bytes_as_hex", deserialize_with = "hex_bytes")]
    pub qe_identity_signature: Vec<u8>,
    /// Chain of the PCK certificate, PEM; used when the quote does not carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pck_certificate_chain: Option<String>,
}

/// Bytes are not a collateral bundle.
#[derive(Debug, thiserror::Error)]
#[error(
    "not a collateral bundle: {0}; it is a JSON object with root_ca_crl, pck_crl, tcb_info, qe_identity and their chains and signatures"
)]
pub struct CollateralError(#[from] serde_json::Error);

impl Collateral {
    /// Parses the JSON form.
    ///
    /// # Errors
    /// [`CollateralError`] when it is not JSON or lacks a field. What the fields hold is judged on use.
    pub fn from_json(json: &[u8]) -> Result<Self, CollateralError> {
        Ok(serde_json::from_slice(json)?)
    }
}

/// Collateral parsed and verified once, to be used for many quotes.
///
/// Made by [`crate::Verifier::trust`]; tied to the roots of that verifier.
#[derive(Debug, Clone)]
pub struct TrustedCollateral {
    pub(crate) root_crl: Result<Crl, Failure>,
    /// Public key that `root_crl` was verified with.
    pub(crate) root_crl_key: Option<Vec<u8>>,
    pub(crate) pck_crl: Result<Crl, Failure>,
    /// Public key that `pck_crl` was found to be signed by, once a quote's chain has shown it.
    pub(crate) pck_crl_key: OnceLock<Vec<u8>>,
    pub(crate) tcb_info: Result<TcbInfo, Failure>,
    pub(crate) tcb_info_trust: Trust,
    pub(crate) qe_identity: Result<EnclaveIdentity, Failure>,
    pub(crate) qe_identity_trust: Trust,
    /// The chain given with the collateral, for quotes without one.
    pub(crate) pck_chain: Option<Result<PckChain, Failure>>,
}

impl TrustedCollateral {
    pub(crate) fn verify(collateral: &Collateral, roots: &Roots, known: &dyn KnownRoots) -> Self {
        let crl = |what: &str, der: &[u8]| {
            Crl::parse(der).map_err(|error| {
                Failure::new(Status::SgxCrlUnsupportedFormat, format!("the {what} is not a DER CRL: {error}"))
            })
        };
        let root_crl = crl(ROOT_CRL, &collateral.root_ca_crl);
        let pck_crl = crl(PCK_CRL, &collateral.pck_crl);

        let tcb_chain = SigningChain::verify(&collateral.tcb_info_issuer_chain, roots, known, &root_crl);
        let qe_chain = if collateral.qe_identity_issuer_chain == collateral.tcb_info_issuer_chain {
            tcb_chain.clone()
        } else {
            SigningChain::verify(&collateral.qe_identity_issuer_chain, roots, known, &root_crl)
        };
        // Which key the root CRL is known to be signed by; PCK chains end in the same root, so it is verified once.
        let root_crl_key = tcb_chain.as_ref().ok().map(|chain| chain.root_key.clone());

        let tcb_document = SignedDocument::read(
            &collateral.tcb_info,
            &collateral.tcb_info_signature,
            "tcbInfo",
            &TCB_INFO_STATUSES,
        );
        let tcb_info =
            tcb_document.as_ref().map_err(Clone::clone).and_then(|document| TcbInfo::parse(document.text()));
        let tcb_info_trust =
            Trust::of(&tcb_document, &tcb_chain, &TCB_INFO_STATUSES, &tcb_info, &root_crl, |info| {
                (info.issue_date, info.next_update)
            });

        let qe_document = SignedDocument::read(
            &collateral.qe_identity,
            &collateral.qe_identity_signature,
            "enclaveIdentity",
            &QE_IDENTITY_STATUSES,
        );
        let qe_identity = qe_document
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|document| EnclaveIdentity::parse(document.text()));
        let qe_identity_trust =
            Trust::of(&qe_document, &qe_chain, &QE_IDENTITY_STATUSES, &qe_identity, &root_crl, |identity| {
                (identity.issue_date, identity.next_update)
            });

        let pck_chain =
            collateral.pck_certificate_chain.as_ref().map(|chain| PckChain::verify(chain.as_bytes(), known));

        Self {
            root_crl,
            root_crl_key,
            pck_crl,
            pck_crl_key: OnceLock::new(),
            tcb_info,
            tcb_info_trust,
            qe_identity,
            qe_identity_trust,
            pck_chain,
        }
    }

    /// When the first part of the collateral expires: when to have fetched it anew. `None` when a part is unusable.
    #[must_use]
    pub fn valid_until(&self) -> Option<Time> {
        let windows = self.tcb_info_trust.windows.iter().chain(&self.qe_identity_trust.windows);
        let pck_crl = self.pck_crl.as_ref().ok()?;
        self.tcb_info.as_ref().ok()?;
        self.qe_identity.as_ref().ok()?;
        windows.map(|window| window.until).chain(pck_crl.next_update).min()
    }
}

pub(crate) const ROOT_CRL: &str = "root CA CRL";
pub(crate) const PCK_CRL: &str = "PCK CRL";

/// What is known about the authenticity of a signed document, apart from the time.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    pub(crate) authentic: Result<(), Failure>,
    /// Key of the root its chain ends in.
    pub(crate) root: Option<Hex<32>>,
    /// In the order in which expiry is looked for.
    pub(crate) windows: Vec<Window>,
}

impl Trust {
    fn of<T>(
        document: &Result<SignedDocument<'_>, Failure>,
        chain: &Result<SigningChain, Failure>,
        statuses: &DocumentStatuses,
        parsed: &Result<T, Failure>,
        root_crl: &Result<Crl, Failure>,
        validity: impl FnOnce(&T) -> (Time, Time),
    ) -> Self {
        let authentic = || {
            let document = document.as_ref().map_err(Clone::clone)?;
            parsed.as_ref().map_err(Clone::clone)?;
            let chain = chain.as_ref().map_err(Clone::clone)?;
            if !crypto::p256_fixed(&chain.key, document.text().as_bytes(), &document.signature) {
                let detail = format!("{} is not signed by {:?}", statuses.what, chain.name);
                return Err(Failure::new(statuses.bad_signature, detail));
            }
            Ok(())
        };
        let mut windows = Vec::with_capacity(4);
        if let Ok(chain) = chain {
            windows.extend(chain.windows.iter().cloned());
        }
        if let Ok(crl) = root_crl {
            windows.push(Window::of_crl(ROOT_CRL, crl));
        }
        if let Ok(parsed) = parsed {
            let (from, until) = validity(parsed);
            windows.push(Window {
                what: statuses.what.into(),
                from,
                until,
                refuse_early: false,
                status: statuses.expired,
            });
        }
        Self { authentic: authentic(), root: chain.as_ref().ok().map(|chain| chain.root_id), windows }
    }
}

/// A period of validity of something that takes part in a verification.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) what: String,
    pub(crate) from: Time,
    pub(crate) until: Time,
    /// Whether Intel's verifier refuses a time before the period, or only our policies do.
    pub(crate) refuse_early: bool,
    pub(crate) status: Status,
}

impl Window {
    pub(crate) fn of_certificate(certificate: &Certificate, status: Status) -> Self {
        Self {
            what: format!("certificate {:?}", certificate.common_name),
            from: certificate.not_before,
            until: certificate.not_after,
            refuse_early: false,
            status,
        }
    }

    pub(crate) fn of_crl(what: &str, crl: &Crl) -> Self {
        Self {
            what: what.into(),
            from: crl.this_update,
            // A list without a promised successor is as good as expired when it was issued.
            until: crl.next_update.unwrap_or(crl.this_update),
            refuse_early: true,
            status: Status::SgxCrlExpired,
        }
    }

    /// The failure at `time`, if it lies outside the period as Intel's verifier judges it.
    pub(crate) fn failure(&self, time: Time) -> Option<Failure> {
        let Self { what, from, until, status, .. } = self;
        if time > *until {
            let detail = format!("{what} was valid until {until}, and it is judged at {time}; fetch it anew");
            return Some(Failure { expired: Some(*until), ..Failure::new(*status, detail) });
        }
        (self.refuse_early && time < *from).then(|| {
            let detail =
                format!("{what} is valid only from {from}, and it is judged at {time}; check the clock");
            Failure::new(*status, detail)
        })
    }

    /// Whether `time` is before the period although Intel's verifier does not mind.
    pub(crate) fn is_early(&self, time: Time) -> bool {
        !self.refuse_early && time < self.from
    }
}

/// A TCB signing certificate whose chain was verified.
#[derive(Debug, Clone)]
struct SigningChain {
    key: Vec<u8>,
    name: String,
    root_key: Vec<u8>,
    root_id: Hex<32>,
    windows: [Window; 2],
}

impl SigningChain {
    fn verify(
        pem: &str,
        roots: &Roots,
        known: &dyn KnownRoots,
        root_crl: &Result<Crl, Failure>,
    ) -> Result<Self, Failure> {
        let chain = pki::parse_pem_chain(pem.as_bytes(), known)?;
        if chain.len() != 2 {
            let detail = format!(
                "a TCB signing chain has 2 certificates (signer, root); this one has {}",
                chain.len()
            );
            return Err(Failure::new(Status::UnsupportedCertFormat, detail));
        }
        let (self_issued, others): (Vec<_>, Vec<_>) =
            chain.into_iter().partition(|certificate| certificate.is_self_issued());
        let root = self_issued
            .into_iter()
            .next_back()
            .filter(|root| root.common_name.contains(pki::ROOT_NAME))
            .ok_or_else(|| {
                Failure::new(Status::SgxRootCaMissing, "the TCB signing chain has no SGX Root CA")
            })?;
        if !known.is_self_signed(&root) {
            let detail = "the root certificate of the TCB signing chain is not signed by its own key";
            return Err(Failure::new(Status::SgxRootCaInvalidIssuer, detail));
        }
        let signer = others
            .into_iter()
            .next()
            .filter(|signer| signer.common_name.contains(pki::TCB_SIGNING_NAME))
            .ok_or_else(|| {
                let detail = "the TCB signing chain has no certificate named \"… SGX TCB Signing …\"";
                Failure::new(Status::SgxTcbSigningCertMissing, detail)
            })?;
        if !signer.is_issued_by(&root) {
            let detail = "the TCB signing certificate is not signed by the root";
            return Err(Failure::new(Status::SgxTcbSigningCertInvalidIssuer, detail));
        }
        let root_crl = root_crl.as_ref().map_err(Clone::clone)?;
        root_crl.check_issuer(ROOT_CRL, &root, false)?;
        if root_crl.revokes(&signer) {
            let detail = format!("certificate {:?} is revoked by the root CA", signer.common_name);
            return Err(Failure::new(Status::SgxTcbSigningCertRevoked, detail));
        }
        let trust = roots.classify_sgx(&root);
        if !trust.is_trusted() {
            let detail =
                format!("the TCB signing chain ends in {trust}; a policy must name that key to accept it");
            return Err(Failure::new(Status::SgxTcbSigningCertChainUntrusted, detail));
        }
        Ok(Self {
            windows: [&root, &signer]
                .map(|certificate| Window::of_certificate(certificate, Status::SgxSigningCertChainExpired)),
            key: signer.public_key.clone(),
            name: signer.common_name.clone(),
            root_key: root.public_key.clone(),
            root_id: root.key_id,
        })
    }
}

/// How failures of one kind of signed document are called.
struct DocumentStatuses {
    what: &'static str,
    malformed: Status,
    invalid: Status,
    bad_signature: Status,
    expired: Status,
}

const TCB_INFO_STATUSES: DocumentStatuses = DocumentStatuses {
    what: "the TCB info",
    malformed: Status::SgxTcbInfoUnsupportedFormat,
    invalid: Status::SgxTcbInfoInvalid,
    bad_signature: Status::TcbInfoInvalidSignature,
    expired: Status::SgxTcbInfoExpired,
};

const QE_IDENTITY_STATUSES: DocumentStatuses = DocumentStatuses {
    what: "the QE identity",
    malformed: Status::SgxEnclaveIdentityUnsupportedFormat,
    invalid: Status::SgxEnclaveIdentityInvalid,
    bad_signature: Status::SgxEnclaveIdentityInvalidSignature,
    expired: Status::SgxEnclaveIdentityExpired,
};

impl DocumentStatuses {
    fn failure(&self, error: &serde_json::Error) -> Failure {
        use serde_json::error::Category;
        let text = error.to_string();
        let status = match error.classify() {
            Category::Data if !text.starts_with("missing field") => self.invalid,
            _ => self.malformed,
        };
        Failure::new(status, format!("{} cannot be used: {text}", self.what))
    }
}

/// A JSON document with a detached signature over its exact bytes.
struct SignedDocument<'a> {
    body: Cow<'a, str>,
    signature: [u8; 64],
}

impl<'a> SignedDocument<'a> {
    /// Reads a bare document with `signature`, or one wrapped as `{"<member>": …, "signature": "…"}`.
    fn read(
        text: &'a str,
        signature: &[u8],
        member: &str,
        statuses: &DocumentStatuses,
    ) -> Result<Self, Failure> {
        use std::collections::BTreeMap;
        let (body, signature) = if signature.is_empty() {
            let mut members: BTreeMap<String, &RawValue> =
                serde_json::from_str(text).map_err(|error| statuses.failure(&error))?;
            let missing = |name: &str| {
                let detail = format!("{} has no member {name:?} and no separate signature", statuses.what);
                Failure::new(statuses.malformed, detail)
            };
            let body = members.remove(member).ok_or_else(|| missing(member))?;
            let signature = members.remove("signature").ok_or_else(|| missing("signature"))?;
            let signature: String =
                serde_json::from_str(signature.get()).map_err(|error| statuses.failure(&error))?;
            let bytes = hex::decode(&signature).map_err(|error| {
                Failure::new(
                    statuses.invalid,
                    format!("the signature of {} is not hex: {error}", statuses.what),
                )
            })?;
            (Cow::Owned(body.get().to_owned()), bytes)
        } else {
            (Cow::Borrowed(text), signature.to_vec())
        };
        let signature = signature.try_into().map_err(|bytes: Vec<u8>| {
            let detail =
                format!("the signature of {} has {} bytes instead of 64", statuses.what, bytes.len());
            Failure::new(statuses.invalid, detail)
        })?;
        Ok(Self { body, signature })
    }

    fn text(&self) -> &str {
        &self.body
    }
}

/// TCB info, versions 2 and 3 (Intel PCS API, "Get SGX/TDX TCB Info").
#[derive(Debug, Clone)]
pub(crate) struct TcbInfo {
    pub(crate) version: u32,
    pub(crate) tee: Tee,
    pub(crate) issue_date: Time,
    pub(crate) next_update: Time,
    pub(crate) fmspc: Hex<6>,
    pub(crate) pce_id: Hex<2>,
    pub(crate) evaluation_data_number: u32,
    /// Identity of the TDX module where the quote's module version is 0; TDX only.
    pub(crate) tdx_module: Option<TdxModule>,
    pub(crate) tdx_module_identities: Vec<TdxModuleIdentity>,
    /// Newest first.
    pub(crate) levels: Vec<TcbLevel>,
    pub(crate) names: ComponentNames,
}

/// One level of TCB info.
#[derive(Debug, Clone)]
pub(crate) struct TcbLevel {
    pub(crate) sgx: [u8; 16],
    pub(crate) tdx: Option<[u8; 16]>,
    pub(crate) pce_svn: u32,
    pub(crate) status: TcbStatus,
    pub(crate) date: Time,
    pub(crate) advisories: Vec<String>,
}

/// A security version that a level asks for, and what it is the version of.
#[derive(Deserialize)]
struct RawComponent<'a> {
    svn: u8,
    #[serde(default, borrow)]
    category: Option<Cow<'a, str>>,
    #[serde(default, borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

impl RawComponent<'_> {
    fn name(&self) -> String {
        match (&self.kind, &self.category) {
            (Some(kind), Some(category)) => format!(" ({kind}, {category})"),
            (Some(only), None) | (None, Some(only)) => format!(" ({only})"),
            (None, None) => String::new(),
        }
    }
}

/// What the components are, where the document says so: for display, as ` (Early Microcode Update, BIOS)`.
#[derive(Debug, Clone, Default)]
pub(crate) struct ComponentNames {
    pub(crate) sgx: [String; 16],
    pub(crate) tdx: [String; 16],
}

/// Identity of Intel's TDX module.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct TdxModule {
    pub(crate) mrsigner: Hex<48>,
    pub(crate) attributes: Hex<8>,
}

/// Identity and TCB levels of one major version of Intel's TDX module.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TdxModuleIdentity {
    pub(crate) id: String,
    pub(crate) mrsigner: Hex<48>,
    pub(crate) attributes: Hex<8>,
    /// Newest first, after parsing.
    pub(crate) tcb_levels: Vec<EnclaveTcbLevel>,
}

/// One level of a QE identity or TDX module identity.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnclaveTcbLevel {
    pub(crate) tcb: IsvSvn,
    #[serde(rename = "tcbDate")]
    pub(crate) date: Time,
    #[serde(rename = "tcbStatus")]
    pub(crate) status: String,
    #[serde(default, rename = "advisoryIDs")]
    pub(crate) advisories: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct IsvSvn {
    pub(crate) isvsvn: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTcbInfo<'a> {
    #[serde(default)]
    id: Option<String>,
    version: u32,
    issue_date: Time,
    next_update: Time,
    fmspc: Hex<6>,
    pce_id: Hex<2>,
    tcb_type: u32,
    tcb_evaluation_data_number: u32,
    #[serde(default)]
    tdx_module: Option<TdxModule>,
    #[serde(default)]
    tdx_module_identities: Option<Vec<TdxModuleIdentity>>,
    #[serde(borrow)]
    tcb_levels: Vec<RawTcbLevel<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTcbLevel<'a> {
    #[serde(borrow)]
    tcb: RawTcb<'a>,
    tcb_date: Time,
    tcb_status: PlatformStatus,
    #[serde(default, rename = "advisoryIDs")]
    advisory_ids: Vec<String>,
}

/// `tcb` of a level: version 2 numbers its components by name, version 3 lists them.
#[derive(Deserialize)]
struct RawTcb<'a> {
    pcesvn: u32,
    #[serde(default, borrow)]
    sgxtcbcomponents: Option<[RawComponent<'a>; 16]>,
    #[serde(default, borrow)]
    tdxtcbcomponents: Option<[RawComponent<'a>; 16]>,
    #[serde(default, rename = "sgxtcbcomp01svn")]
    component01: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp02svn")]
    component02: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp03svn")]
    component03: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp04svn")]
    component04: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp05svn")]
    component05: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp06svn")]
    component06: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp07svn")]
    component07: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp08svn")]
    component08: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp09svn")]
    component09: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp10svn")]
    component10: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp11svn")]
    component11: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp12svn")]
    component12: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp13svn")]
    component13: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp14svn")]
    component14: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp15svn")]
    component15: Option<u8>,
    #[serde(default, rename = "sgxtcbcomp16svn")]
    component16: Option<u8>,
}

impl RawTcb<'_> {
    fn numbered(&self) -> [Option<u8>; 16] {
        [
            self.component01,
            self.component02,
            self.component03,
            self.component04,
            self.component05,
            self.component06,
            self.component07,
            self.component08,
            self.component09,
            self.component10,
            self.component11,
            self.component12,
            self.component13,
            self.component14,
            self.component15,
            self.component16,
        ]
    }
}

/// The statuses a vendor assigns to platforms; another one makes the whole TCB info invalid.
#[derive(Deserialize)]
enum PlatformStatus {
    UpToDate,
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    ConfigurationNeeded,
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    Revoked,
}

impl From<PlatformStatus> for TcbStatus {
    fn from(status: PlatformStatus) -> Self {
        match status {
            PlatformStatus::UpToDate => Self::UpToDate,
            PlatformStatus::SwHardeningNeeded => Self::SwHardeningNeeded,
            PlatformStatus::ConfigurationNeeded => Self::ConfigurationNeeded,
            PlatformStatus::ConfigurationAndSwHardeningNeeded => Self::ConfigurationAndSwHardeningNeeded,
            PlatformStatus::OutOfDate => Self::OutOfDate,
            PlatformStatus::OutOfDateConfigurationNeeded => Self::OutOfDateConfigurationNeeded,
            PlatformStatus::Revoked => Self::Revoked,
        }
    }
}

impl TcbInfo {
    fn parse(text: &str) -> Result<Self, Failure> {
        let raw: RawTcbInfo<'_> =
            serde_json::from_str(text).map_err(|error| TCB_INFO_STATUSES.failure(&error))?;
        let invalid =
            |detail: String| Failure::new(Status::SgxTcbInfoInvalid, format!("the TCB info {detail}"));
        let tee = match (raw.version, raw.id.as_deref()) {
            (2, _) | (3, Some("SGX")) => Tee::Sgx,
            (3, Some("TDX")) => Tee::Tdx,
            (3, Some(id)) => return Err(invalid(format!("is for {id:?}; SGX and TDX are supported"))),
            (3, None) => {
                let detail = "the TCB info is of version 3 but has no id";
                return Err(Failure::new(Status::SgxTcbInfoUnsupportedFormat, detail));
            }
            (version, _) => return Err(invalid(format!("is of version {version}; 2 and 3 are supported"))),
        };
        if raw.tcb_type != 0 {
            return Err(invalid(format!("is of type {}; type 0 is supported", raw.tcb_type)));
        }
        match tee {
            Tee::Tdx if raw.tdx_module.is_none() => {
                return Err(invalid("is for TDX but has no tdxModule".into()));
            }
            Tee::Sgx
                if raw.version > 2 && (raw.tdx_module.is_some() || raw.tdx_module_identities.is_some()) =>
            {
                return Err(invalid("is for SGX but describes a TDX module".into()));
            }
            _ => {}
        }
        let named = raw.tcb_levels.first().map(|level| &level.tcb);
        let name_all = |components: Option<&[RawComponent<'_>; 16]>| {
            components.map(|all| std::array::from_fn(|index| all[index].name())).unwrap_or_default()
        };
        let names = ComponentNames {
            sgx: name_all(named.and_then(|tcb| tcb.sgxtcbcomponents.as_ref())),
            tdx: name_all(named.and_then(|tcb| tcb.tdxtcbcomponents.as_ref())),
        };
        let mut levels = raw
            .tcb_levels
            .into_iter()
            .map(|level| TcbLevel::from_raw(level, raw.version, tee))
            .collect::<Result<Vec<_>, _>>()?;
        if levels.is_empty() {
            return Err(invalid("has no levels".into()));
        }
        // Intel's order: by SGX components, then PCE SVN, then TDX components, highest first, whatever the document's.
        levels.sort_by_key(|level| std::cmp::Reverse(level.rank()));
        if levels.windows(2).any(|pair| pair[0].rank() == pair[1].rank()) {
            return Err(invalid("has two levels with the same security versions".into()));
        }
        let mut identities = raw.tdx_module_identities.unwrap_or_default();
        for identity in &mut identities {
            let levels = &mut identity.tcb_levels;
            levels.sort_by_key(|level| std::cmp::Reverse(level.tcb.isvsvn));
            if levels.is_empty() || levels.windows(2).any(|pair| pair[0].tcb.isvsvn == pair[1].tcb.isvsvn) {
                let detail =
                    format!("the TCB info has no levels, or the same one twice, for {}", identity.id);
                return Err(Failure::new(Status::SgxTcbInfoUnsupportedFormat, detail));
            }
        }
        Ok(Self {
            version: raw.version,
            tee,
            issue_date: raw.issue_date,
            next_update: raw.next_update,
            fmspc: raw.fmspc,
            pce_id: raw.pce_id,
            evaluation_data_number: raw.tcb_evaluation_data_number,
            tdx_module: raw.tdx_module,
            tdx_module_identities: identities,
            levels,
            names,
        })
    }

    /// The identity of the TDX module of major version `version`.
    pub(crate) fn tdx_module_identity(&self, version: u8) -> Option<&TdxModuleIdentity> {
        let id = format!("TDX_{version:02X}");
        self.tdx_module_identities.iter().find(|identity| identity.id.eq_ignore_ascii_case(&id))
    }
}

impl TcbLevel {
    fn from_raw(raw: RawTcbLevel<'_>, version: u32, tee: Tee) -> Result<Self, Failure> {
        let missing = |what: &str| {
            Failure::new(
                Status::SgxTcbInfoUnsupportedFormat,
                format!("a level of the TCB info has no {what}"),
            )
        };
        let sgx = if version >= 3 {
            svns(&raw.tcb.sgxtcbcomponents.ok_or_else(|| missing("sgxtcbcomponents"))?)
        } else {
            let mut numbered = [0; 16];
            for (number, (svn, found)) in (1..).zip(numbered.iter_mut().zip(raw.tcb.numbered())) {
                *svn = found.ok_or_else(|| missing(&format!("sgxtcbcomp{number:02}svn")))?;
            }
            numbered
        };
        let tdx = match tee {
            Tee::Tdx => Some(svns(&raw.tcb.tdxtcbcomponents.ok_or_else(|| missing("tdxtcbcomponents"))?)),
            _ => None,
        };
        Ok(Self {
            sgx,
            tdx,
            pce_svn: raw.tcb.pcesvn,
            status: raw.tcb_status.into(),
            date: raw.tcb_date,
            advisories: raw.advisory_ids,
        })
    }

    fn rank(&self) -> ([u8; 16], u32, Option<[u8; 16]>) {
        (self.sgx, self.pce_svn, self.tdx)
    }
}

fn svns(components: &[RawComponent<'_>; 16]) -> [u8; 16] {
    std::array::from_fn(|index| components[index].svn)
}

/// Identity of a quoting enclave, version 2 (Intel PCS API, "Get Enclave Identity").
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EnclaveIdentity {
    pub(crate) id: EnclaveId,
    version: u32,
    issue_date: Time,
    next_update: Time,
    pub(crate) tcb_evaluation_data_number: u32,
    pub(crate) miscselect: Hex<4>,
    pub(crate) miscselect_mask: Hex<4>,
    pub(crate) attributes: Hex<16>,
    pub(crate) attributes_mask: Hex<16>,
    pub(crate) mrsigner: Hex<32>,
    pub(crate) isvprodid: u16,
    /// As published: highest first.
    pub(crate) tcb_levels: Vec<EnclaveTcbLevel>,
}

/// Which enclave an identity is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum EnclaveId {
    #[serde(rename = "QE")]
    SgxQuoting,
    #[serde(rename = "QVE")]
    QuoteVerification,
    #[serde(rename = "TD_QE")]
    TdQuoting,
}

impl EnclaveIdentity {
    fn parse(text: &str) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let invalid = |detail: String| {
            Failure::new(Status::SgxEnclaveIdentityInvalid, format!("the QE identity {detail}"))
        };
        let unusable = |error: serde_json::Error| match error.classify() {
            serde_json::error::Category::Data => invalid(format!("cannot be used: {error}")),
            _ => QE_IDENTITY_STATUSES.failure(&error),
        };
        let unsupported = |version| {
            let detail = format!("the QE identity is of version {version}; version 2 is supported");
            Failure::new(Status::SgxEnclaveIdentityUnsupportedVersion, detail)
        };
        let identity: Self = serde_json::from_str(text).map_err(|error| {
            // Another version has other members; the version is then what is wrong.
            match serde_json::from_str(text) {
                Ok(Version { version }) if version != 2 => unsupported(version),
                _ => unusable(error),
            }
        })?;
        if identity.version != 2 {
            return Err(unsupported(identity.version));
        }
        if identity.tcb_levels.is_empty() {
            return Err(invalid("has no levels".into()));
        }
        for level in &identity.tcb_levels {
            let known =
                ["UpToDate", "ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded", "Revoked"];
            if !known.contains(&level.status.as_str()) {
                return Err(invalid(format!("has a level of unknown status {:?}", level.status)));
            }
        }
        Ok(identity)
    }
}

fn bytes_as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

fn hex_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_any(BytesVisitor { pem: false })
}

/// A CRL as hexadecimal DER, PEM, or an array of bytes.
fn crl_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_any(BytesVisitor { pem: true })
}

struct BytesVisitor {
    pem: bool,
}

impl<'de> de::Visitor<'de> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.pem {
            "hexadecimal DER, PEM, or an array of bytes"
        } else {
            "hexadecimal digits or an array of bytes"
        })
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
        use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
        if self.pem && text.trim_start().starts_with("-----BEGIN") {
            let der = CertificateRevocationListDer::from_pem_slice(text.as_bytes()).map_err(E::custom)?;
            return Ok(der.to_vec());
        }
        hex::decode(text.trim()).map_err(E::custom)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
        let mut bytes = Vec::new();
        while let Some(byte) = seq.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes)
    }
}
