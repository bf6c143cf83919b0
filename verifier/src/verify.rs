//! Verification of SGX and TDX quotes: from bytes, collateral and a time to an [`Appraisal`].
//!
//! The algorithm is the one Intel documents in "SGX and TDX DCAP Quote Verification" and implements in its quote
//! verification library, check for check, with two deliberate differences: roots are pinned by key, and nothing
//! stops at the first failure.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    appraisal::{
        Appraisal, Check, CheckKind, Identity, Level, Platform, Shortfall, Tcb, TcbComponent, TcbPart,
    },
    collateral::{
        Collateral, EnclaveId, EnclaveIdentity, EnclaveTcbLevel, PCK_CRL, ROOT_CRL, TcbInfo, TcbLevel,
        TdxModuleIdentity, TrustedCollateral, Window,
    },
    crypto,
    pki::{self, Certificate, KnownRoots, Pck, PckChain},
    quote::{Body, EnclaveReport, Quote, TdReport, Tee},
    roots::{INTEL_ROOT_CERTIFICATES, Roots},
    snp::{self, SnpCollateral},
    status::{Failure, Status, TcbStatus},
    types::{Hex, Time},
};

/// Entries a cache holds before it starts anew; a certificate chain takes about 8 KiB.
const CACHE_ENTRIES: usize = 1024;

/// Verifies evidence under a set of roots, and remembers the certificate chains and quoting enclaves it has verified.
///
/// Cheap to create, meant to be kept: with its caches warm a quote costs one signature verification. Nothing that
/// depends on time or revocation is cached.
#[derive(Debug, Default)]
pub struct Verifier {
    roots: Roots,
    /// Verified PCK chains under trusted roots, by the PEM they came as.
    chains: Mutex<HashMap<Vec<u8>, Arc<PckChain>>>,
    /// Attestation keys whose QE report was verified, by everything that went into that.
    quoting_enclaves: Mutex<HashSet<Vec<u8>>>,
    /// Certificates of trusted roots found to be signed by their own key, by their bytes.
    known_roots: Mutex<HashMap<Vec<u8>, Arc<Certificate>>>,
}

impl Verifier {
    /// A verifier that trusts `roots`.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self { roots, ..Self::default() }
    }

    /// The roots this verifier trusts.
    #[must_use]
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Parses and verifies collateral once, for many quotes and any time.
    ///
    /// Never fails: what is wrong with the collateral is found in every appraisal made with it.
    #[must_use]
    pub fn trust(&self, collateral: &Collateral) -> TrustedCollateral {
        TrustedCollateral::verify(collateral, &self.roots, self)
    }

    /// Checks collateral by itself, before there is a quote: everything in it is from a root this verifier trusts, nothing that
    /// signed it is revoked, and it is in force at `time`. For caches, which must not keep what would only be refused.
    ///
    /// Returns until when it is in force.
    ///
    /// # Errors
    /// The first [`Failure`].
    pub fn check_collateral(&self, collateral: &Collateral, time: Time) -> Result<Time, Failure> {
        let trusted = self.trust(collateral);
        let failure = |failure: &Failure| failure.clone();
        let root_crl = trusted.root_crl.as_ref().map_err(failure)?;
        let pck_crl = trusted.pck_crl.as_ref().map_err(failure)?;
        let (root, ca) = pki::verify_ca_chain(collateral.pck_crl_issuer_chain.as_bytes(), self)?;
        let trust = self.roots.classify_sgx(&root);
        if !trust.is_trusted() {
            let detail = format!("the chain of the {PCK_CRL} ends in {trust}");
            return Err(Failure::new(Status::SgxPckCertChainUntrusted, detail));
        }
        root_crl.check_issuer(ROOT_CRL, &root, false)?;
        if root_crl.revokes(&ca) {
            let detail = format!("certificate {:?} is revoked by the {ROOT_CRL}", ca.common_name);
            return Err(Failure::new(Status::SgxIntermediateCaRevoked, detail));
        }
        pck_crl.check_issuer(PCK_CRL, &ca, false)?;
        let documents = [&trusted.tcb_info_trust, &trusted.qe_identity_trust];
        for document in documents {
            document.authentic.as_ref().map_err(failure)?;
        }
        let mut windows: Vec<_> = [&root, &ca]
            .map(|certificate| Window::of_certificate(certificate, Status::SgxPckCertChainExpired))
            .into();
        windows.push(Window::of_crl(PCK_CRL, pck_crl));
        windows.extend(documents.iter().flat_map(|document| document.windows.iter().cloned()));
        for window in &windows {
            if let Some(failure) = window.failure(time) {
                return Err(failure);
            }
            if window.is_early(time) {
                let detail = format!("{} is valid only from {}; check the clock", window.what, window.from);
                return Err(Failure::new(window.status, detail));
            }
        }
        // There are windows: those of two certificates at least.
        Ok(windows.iter().map(|window| window.until).min().unwrap_or(time))
    }

    /// Verifies a quote (an Open Enclave report header before it is skipped) by collateral, as of `time`.
    ///
    /// Never fails: what is wrong is in the appraisal.
    #[must_use]
    pub fn verify_quote(&self, quote: &[u8], collateral: &TrustedCollateral, time: Time) -> Appraisal {
        let parsed = Quote::parse(quote);
        let given = parsed.as_ref().ok().and_then(|quote| quote.certification.pck_chain());
        let chain = match (given, &collateral.pck_chain) {
            (Some(pem), _) => self.pck_chain(pem),
            (None, Some(chain)) => chain.clone().map(Arc::new),
            (None, None) => Err(Failure::new(
                Status::UnsupportedCertFormat,
                "the evidence carries no PCK certificate chain; put the chain for its PPID into the collateral",
            )),
        };
        let root = chain.as_ref().ok().map(|chain| self.roots.classify_sgx(&chain.root));

        let mut premature = Vec::new();
        let mut check = |kind, failures: Vec<Failure>, windows: &[Window]| {
            premature.extend(windows.iter().filter(|window| window.is_early(time)).map(|window| {
                format!("{} is valid only from {}; check the clock", window.what, window.from)
            }));
            Check::new(kind, failures)
        };
        let (pck_failures, pck_windows) = match &chain {
            Ok(chain) => self.check_pck_chain(chain, collateral, time),
            Err(failure) => (vec![failure.clone()], Vec::new()),
        };
        let mut checks = vec![check(CheckKind::PckChain, pck_failures, &pck_windows)];
        let chain_root = chain.as_ref().ok().map(|chain| chain.root.key_id);
        for (kind, trust, mismatch) in [
            (CheckKind::TcbInfo, &collateral.tcb_info_trust, Status::SgxTcbSigningCertChainUntrusted),
            (CheckKind::QeIdentity, &collateral.qe_identity_trust, Status::SgxTcbSigningCertChainUntrusted),
        ] {
            let mut failures: Vec<_> = trust.authentic.clone().err().into_iter().collect();
            // An emulated root the relying party accepts must not vouch for values of real hardware, or the reverse.
            if let (Some(signer), Some(platform)) = (trust.root, chain_root)
                && signer != platform
                && root.is_some_and(|root| root.is_trusted())
            {
                let detail = format!("{kind} is signed under root {signer}, the PCK under root {platform}");
                failures.push(Failure::new(mismatch, detail));
            }
            failures.extend(trust.windows.iter().filter_map(|window| window.failure(time)));
            checks.push(check(kind, failures, &trust.windows));
        }

        let (quote_failures, tcb) = match &parsed {
            Ok(quote) => self.check_quote(quote, &chain, collateral),
            Err(error) => (vec![Failure::new(Status::UnsupportedQuoteFormat, error.to_string())], None),
        };
        checks.push(check(CheckKind::Quote, quote_failures, &[]));
        premature.sort();
        premature.dedup();

        Appraisal {
            time,
            tee: parsed.as_ref().ok().map(|quote| quote.tee),
            root_of_trust: root,
            checks,
            identity: parsed.as_ref().ok().map(|quote| identity(&quote.body)),
            report_data: parsed.as_ref().ok().map(|quote| quote.report_data().into()),
            tcb,
            collateral_valid_until: collateral.valid_until(),
            premature,
            notes: Vec::new(),
        }
    }

    /// Verifies an SEV-SNP report by its endorsement chain, as of `time`.
    ///
    /// Never fails: what is wrong is in the appraisal.
    #[must_use]
    pub fn verify_snp(&self, report: &[u8], collateral: &SnpCollateral, time: Time) -> Appraisal {
        snp::verify(report, collateral, &self.roots, time)
    }

    fn pck_chain(&self, pem: &[u8]) -> Result<Arc<PckChain>, Failure> {
        if let Some(chain) = lock(&self.chains).get(pem) {
            return Ok(Arc::clone(chain));
        }
        let chain = Arc::new(PckChain::verify(pem, self)?);
        if self.roots.classify_sgx(&chain.root).is_trusted() {
            remember(&mut lock(&self.chains), |chains| chains.len(), |chains| chains.clear())
                .insert(pem.to_vec(), Arc::clone(&chain));
        }
        Ok(chain)
    }

    /// Trust, revocation and validity of a PCK chain whose signatures were verified.
    fn check_pck_chain(
        &self,
        chain: &PckChain,
        collateral: &TrustedCollateral,
        time: Time,
    ) -> (Vec<Failure>, Vec<Window>) {
        let PckChain { root, intermediate, leaf, .. } = chain;
        let mut failures = Vec::new();
        let trust = self.roots.classify_sgx(root);
        if !trust.is_trusted() {
            let detail = format!("the PCK chain ends in {trust}; a policy must name that key to accept it");
            failures.push(Failure::new(Status::SgxPckCertChainUntrusted, detail));
        }
        let mut windows: Vec<_> = [root, intermediate, leaf]
            .map(|certificate| Window::of_certificate(certificate, Status::SgxPckCertChainExpired))
            .into();
        // In the order in which Intel's verifier checks, for its outcome to be the first failure.
        let root_crl = collateral.root_crl.as_ref().map_err(Clone::clone).and_then(|crl| {
            let verified = collateral.root_crl_key.as_ref() == Some(&root.public_key);
            crl.check_issuer(ROOT_CRL, root, verified).map(|()| crl)
        });
        let pck_crl = collateral.pck_crl.as_ref().map_err(Clone::clone).and_then(|crl| {
            let verified = collateral.pck_crl_key.get() == Some(&intermediate.public_key);
            crl.check_issuer(PCK_CRL, intermediate, verified)?;
            // Whoever comes first; another intermediate of the same name is verified each time.
            let _ = collateral.pck_crl_key.set(intermediate.public_key.clone());
            Ok(crl)
        });
        let revoked = |certificate: &Certificate, status, by: &str| {
            let serial = hex::encode(&certificate.serial);
            let detail =
                format!("certificate {:?} (serial {serial}) is revoked by the {by}", certificate.common_name);
            Failure::new(status, detail)
        };
        failures.extend(root_crl.as_ref().err().cloned());
        failures.extend(pck_crl.as_ref().err().cloned());
        if root_crl.as_ref().is_ok_and(|crl| crl.revokes(intermediate)) {
            failures.push(revoked(intermediate, Status::SgxIntermediateCaRevoked, ROOT_CRL));
        }
        if pck_crl.as_ref().is_ok_and(|crl| crl.revokes(leaf)) {
            failures.push(revoked(leaf, Status::SgxPckRevoked, PCK_CRL));
        }
        windows.extend(root_crl.ok().map(|crl| Window::of_crl(ROOT_CRL, crl)));
        windows.extend(pck_crl.ok().map(|crl| Window::of_crl(PCK_CRL, crl)));
        failures.extend(windows.iter().filter_map(|window| window.failure(time)));
        (failures, windows)
    }

    /// Everything about the quote itself, in the order of Intel's verifier.
    fn check_quote(
        &self,
        quote: &Quote<'_>,
        chain: &Result<Arc<PckChain>, Failure>,
        collateral: &TrustedCollateral,
    ) -> (Vec<Failure>, Option<Tcb>) {
        let mut failures = Vec::new();
        // Without one of these there is nothing to judge the quote by.
        if let Err(failure) = &collateral.pck_crl {
            failures.push(failure.as_status(Status::UnsupportedPckRlFormat));
        }
        if let Err(failure) = &collateral.tcb_info {
            failures.push(failure.as_status(Status::UnsupportedTcbInfoFormat));
        }
        if let Err(failure) = &collateral.qe_identity {
            failures.push(failure.as_status(Status::UnsupportedQeIdentityFormat));
        }
        if let Err(failure) = chain {
            let status = match failure.status {
                Status::SgxPckInvalidExtensions => Status::InvalidPckCert,
                _ => Status::UnsupportedPckCertFormat,
            };
            failures.push(failure.as_status(status));
        }
        let (Ok(pck_crl), Ok(tcb_info), Ok(qe_identity), Ok(chain)) =
            (&collateral.pck_crl, &collateral.tcb_info, &collateral.qe_identity, chain)
        else {
            return (failures, None);
        };

        let mut fail = |status, detail: String| failures.push(Failure::new(status, detail));
        let PckChain { leaf, pck, .. } = &**chain;
        if !pck_crl.issuer_common_name.contains(pki::INTERMEDIATE_NAME) || pck_crl.issuer != leaf.issuer {
            let detail =
                format!("the {PCK_CRL} is from {:?}, not from the PCK's issuer", pck_crl.issuer_common_name);
            fail(Status::InvalidPckCrl, detail);
        } else if pck_crl.revokes(leaf) {
            fail(
                Status::PckRevoked,
                format!("the PCK certificate (serial {}) is revoked", hex::encode(&leaf.serial)),
            );
        }
        if tcb_info.tee != quote.tee {
            let detail = format!(
                "the TCB info (version {}) is for an {}, the quote is of an {}",
                tcb_info.version, tcb_info.tee, quote.tee
            );
            fail(Status::TcbInfoMismatch, detail);
        }
        if tcb_info.fmspc != pck.fmspc {
            let detail = format!("the TCB info is for FMSPC {}, the PCK for {}", tcb_info.fmspc, pck.fmspc);
            fail(Status::TcbInfoMismatch, detail);
        }
        if tcb_info.pce_id != pck.pce_id {
            let detail = format!("the TCB info is for PCE {}, the PCK for {}", tcb_info.pce_id, pck.pce_id);
            fail(Status::TcbInfoMismatch, detail);
        }
        let td_report = match (&quote.body, tcb_info.tee) {
            (Body::Td(report), Tee::Tdx) => Some(report),
            _ => None,
        };
        let mut module = None;
        if let Some(report) = td_report {
            match find_module(tcb_info, report) {
                Ok(found) => module = found,
                Err(failure) => failures.push(failure),
            }
        }
        failures.extend(self.check_quoting_enclave(quote, leaf));
        failures.extend(check_qe_identity(qe_identity, &quote.qe_report, quote.tee).err());
        if !crypto::p256_fixed(&crypto::p256_key(quote.attestation_key), quote.signed, quote.signature) {
            let detail = "the quote is not signed by its attestation key; it was changed on the way";
            failures.push(Failure::new(Status::InvalidQuoteSignature, detail));
        }

        let judged = judge_tcb(tcb_info, pck, td_report, module, qe_identity, &quote.qe_report);
        let refused = !failures.is_empty();
        let status = match judged.status {
            Ok(status) => {
                if status != TcbStatus::UpToDate {
                    failures.push(Failure::new(status.status(), explain(status, &judged.components)));
                }
                (!refused).then_some(status)
            }
            Err(failure) => {
                failures.push(failure);
                None
            }
        };
        let mut advisories: Vec<String> = Vec::new();
        for level in judged.components.iter().filter_map(|component| component.level.as_ref()) {
            for advisory in &level.advisories {
                if !advisories.contains(advisory) {
                    advisories.push(advisory.clone());
                }
            }
        }
        let tcb = Tcb {
            status,
            evaluation_data_number: Some(tcb_info.evaluation_data_number),
            qe_evaluation_data_number: Some(qe_identity.tcb_evaluation_data_number),
            components: judged.components,
            advisories,
            platform: platform(pck),
        };
        (failures, Some(tcb))
    }

    /// That the PCK signed the quoting enclave's report, and that report binds the attestation key.
    fn check_quoting_enclave(&self, quote: &Quote<'_>, leaf: &Certificate) -> Vec<Failure> {
        let mut binding = Vec::with_capacity(64 + quote.qe_auth_data.len());
        binding.extend_from_slice(quote.attestation_key);
        binding.extend_from_slice(quote.qe_auth_data);
        let key = [&quote.qe_report.0[..], quote.qe_report_signature, &leaf.public_key, &binding].concat();
        if lock(&self.quoting_enclaves).contains(&key) {
            return Vec::new();
        }
        let mut failures = Vec::new();
        if !crypto::p256_fixed(&leaf.public_key, quote.qe_report.0, quote.qe_report_signature) {
            let detail = "the quoting enclave's report is not signed by the PCK";
            failures.push(Failure::new(Status::InvalidQeReportSignature, detail));
        }
        if quote.qe_report.report_data()[..32] != crypto::sha256(&binding) {
            let detail = "the quoting enclave's report does not bind the attestation key of the quote";
            failures.push(Failure::new(Status::InvalidQeReportData, detail));
        }
        // Only the quoting enclaves of certified platforms are remembered, or anybody could fill the memory.
        if failures.is_empty() {
            remember(&mut lock(&self.quoting_enclaves), |known| known.len(), |known| known.clear())
                .insert(key);
        }
        failures
    }
}

impl KnownRoots for Verifier {
    fn get(&self, der: &[u8]) -> Option<Arc<Certificate>> {
        lock(&self.known_roots).get(der).cloned()
    }

    fn is_self_signed(&self, root: &Arc<Certificate>) -> bool {
        if lock(&self.known_roots).contains_key(&root.der) {
            return true;
        }
        let valid =
            INTEL_ROOT_CERTIFICATES.contains(&Hex(crypto::sha256(&root.der))) || root.is_issued_by(root);
        // Only trusted roots are remembered, or anybody could fill the memory.
        if valid && self.roots.classify_sgx(root).is_trusted() {
            remember(&mut lock(&self.known_roots), |roots| roots.len(), |roots| roots.clear())
                .insert(root.der.clone(), Arc::clone(root));
        }
        valid
    }
}

/// The TDX module's identity for the report's module version, having checked that the report is of such a module.
fn find_module<'a>(
    tcb_info: &'a TcbInfo,
    report: &TdReport<'_>,
) -> Result<Option<&'a TdxModuleIdentity>, Failure> {
    let version = report.tee_tcb_svn()[1];
    let identity = match version {
        0 => None,
        version => Some(tcb_info.tdx_module_identity(version).ok_or_else(|| {
            let detail = format!("the TCB info does not know a TDX module of version {version}");
            Failure::new(Status::TdxModuleMismatch, detail)
        })?),
    };
    let (signer, attributes) = match (identity, &tcb_info.tdx_module) {
        (Some(identity), _) => (identity.mrsigner, identity.attributes),
        (None, Some(module)) => (module.mrsigner, module.attributes),
        (None, None) => {
            let detail = "the TCB info describes no TDX module";
            return Err(Failure::new(Status::TcbInfoMismatch, detail));
        }
    };
    if *report.mr_signer_seam() != signer.0 {
        let found = Hex::from(report.mr_signer_seam());
        let detail = format!("the TDX module is signed by {found}, not by {signer} as the TCB info says");
        return Err(Failure::new(Status::TdxModuleMismatch, detail));
    }
    if *report.seam_attributes() != [0; 8] || *report.seam_attributes() != attributes.0 {
        let found = Hex::from(report.seam_attributes());
        let detail = format!("the TDX module has attributes {found} instead of {attributes}, or a debug one");
        return Err(Failure::new(Status::TdxModuleMismatch, detail));
    }
    Ok(identity)
}

/// That the quoting enclave is the one Intel describes, whatever its version.
fn check_qe_identity(
    identity: &EnclaveIdentity,
    report: &EnclaveReport<'_>,
    tee: Tee,
) -> Result<(), Failure> {
    let mismatch = |what: &str, found: String, expected: String| {
        let detail = format!("the quoting enclave has {what} {found}, its identity says {expected}");
        Err(Failure::new(Status::QeIdentityMismatch, detail))
    };
    let expected = if tee == Tee::Tdx { EnclaveId::TdQuoting } else { EnclaveId::SgxQuoting };
    if identity.id != expected {
        let detail =
            format!("the QE identity is of {:?}, a quote of an {tee} needs {expected:?}", identity.id);
        return Err(Failure::new(Status::QeIdentityMismatch, detail));
    }
    // The document has MISCSELECT in memory order, as it stands in a report.
    let misc = masked(&report.misc_select().to_le_bytes(), &identity.miscselect_mask.0);
    if misc != identity.miscselect.0 {
        return mismatch("MISCSELECT", Hex(misc).to_string(), identity.miscselect.to_string());
    }
    let attributes = masked(report.attributes(), &identity.attributes_mask.0);
    if attributes != identity.attributes.0 {
        return mismatch("attributes", Hex(attributes).to_string(), identity.attributes.to_string());
    }
    if *report.mr_signer() != identity.mrsigner.0 {
        return mismatch(
            "MRSIGNER",
            Hex::from(report.mr_signer()).to_string(),
            identity.mrsigner.to_string(),
        );
    }
    if report.isv_prod_id() != identity.isvprodid {
        return mismatch("product id", report.isv_prod_id().to_string(), identity.isvprodid.to_string());
    }
    Ok(())
}

fn masked<const N: usize>(bytes: &[u8; N], mask: &[u8; N]) -> [u8; N] {
    std::array::from_fn(|index| bytes[index] & mask[index])
}

struct Judged {
    status: Result<TcbStatus, Failure>,
    components: Vec<TcbComponent>,
}

/// Status of every part of the TCB and of all together.
fn judge_tcb(
    tcb_info: &TcbInfo,
    pck: &Pck,
    td_report: Option<&TdReport<'_>>,
    module: Option<&TdxModuleIdentity>,
    qe_identity: &EnclaveIdentity,
    qe_report: &EnclaveReport<'_>,
) -> Judged {
    let reached: Vec<&TcbLevel> = tcb_info.levels.iter().filter(|level| reaches_sgx(pck, level)).collect();
    let sgx_level = reached.first().copied();
    let mut components = vec![platform_component(TcbPart::SgxPlatform, tcb_info, sgx_level, pck, None)];
    let (qe_component, qe_status) =
        enclave_component(TcbPart::QuotingEnclave, &qe_identity.tcb_levels, qe_report.isv_svn());

    let status = match td_report {
        None => {
            components.push(qe_component);
            sgx_level
                .ok_or(TcbStatus::NotSupported)
                .map_or_else(Ok, |level| Ok(with_quoting_enclave(level.status, qe_status)))
        }
        Some(report) => {
            let svn = report.tee_tcb_svn();
            let tdx_level = reached.into_iter().find(|level| reaches_tdx(svn, level));
            components.push(platform_component(TcbPart::TdxPlatform, tcb_info, tdx_level, pck, Some(svn)));
            let module =
                module.map(|module| enclave_component(TcbPart::TdxModule, &module.tcb_levels, svn[0].into()));
            let module_status = match &module {
                Some((component, status)) => {
                    components.push(component.clone());
                    *status
                }
                None => Ok(Some(TcbStatus::UpToDate)),
            };
            components.push(qe_component);
            judge_td(tcb_info, report, sgx_level, tdx_level, module_status, qe_status)
        }
    };
    Judged { status, components }
}

/// Status of a trust domain's TCB, converged from its parts.
fn judge_td(
    tcb_info: &TcbInfo,
    report: &TdReport<'_>,
    sgx_level: Option<&TcbLevel>,
    tdx_level: Option<&TcbLevel>,
    module: Result<Option<TcbStatus>, ()>,
    qe: Result<Option<TcbStatus>, ()>,
) -> Result<TcbStatus, Failure> {
    let (Some(sgx_level), Some(tdx_level)) = (sgx_level, tdx_level) else {
        return Ok(TcbStatus::NotSupported);
    };
    let module = match module {
        Ok(Some(status @ (TcbStatus::UpToDate | TcbStatus::OutOfDate | TcbStatus::Revoked))) => status,
        Ok(None) => return Ok(TcbStatus::NotSupported),
        Ok(Some(_)) | Err(()) => {
            let detail = "the level of the TDX module has a status that modules cannot have";
            return Err(Failure::new(Status::TcbUnrecognizedStatus, detail));
        }
    };
    let mut status = match module {
        TcbStatus::Revoked => TcbStatus::Revoked,
        TcbStatus::OutOfDate => tdx_level.status.with_component_out_of_date(),
        _ => tdx_level.status,
    };
    if status == TcbStatus::Revoked {
        return Ok(status);
    }
    if let Some(svn2) = report.tee_tcb_svn2()
        && qe_is_current(qe)
        && module == TcbStatus::OutOfDate
        && matches!(status, TcbStatus::OutOfDate | TcbStatus::OutOfDateConfigurationNeeded)
        && matches!(
            sgx_level.status,
            TcbStatus::UpToDate
                | TcbStatus::SwHardeningNeeded
                | TcbStatus::ConfigurationNeeded
                | TcbStatus::ConfigurationAndSwHardeningNeeded
        )
        && relaunch_would_help(tcb_info, svn2)?
    {
        status = if sgx_level.status.needs_configuration() || status.needs_configuration() {
            TcbStatus::TdRelaunchAdvisedConfigurationNeeded
        } else {
            TcbStatus::TdRelaunchAdvised
        };
    }
    Ok(with_quoting_enclave(status, qe))
}

/// Whether the TDX components now loaded (`svn2`) are at the newest level, so that only the launch was too early.
fn relaunch_would_help(tcb_info: &TcbInfo, svn2: &[u8; 16]) -> Result<bool, Failure> {
    let Some(newest) = tcb_info.levels.first().and_then(|level| level.tdx.as_ref()) else { return Ok(false) };
    let module_svn = match svn2[1] {
        0 => newest[0].into(),
        version => {
            let identity = tcb_info.tdx_module_identity(version).ok_or_else(|| {
                let detail = format!("the TCB info does not know the loaded TDX module's version {version}");
                // Intel's verifier takes what it finds here for a status of the platform, of which it is none.
                Failure::new(Status::TcbUnrecognizedStatus, detail)
            })?;
            identity.tcb_levels[0].tcb.isvsvn
        }
    };
    Ok(u16::from(svn2[0]) >= module_svn && svn2[2] >= newest[2])
}

fn qe_is_current(qe: Result<Option<TcbStatus>, ()>) -> bool {
    qe == Ok(Some(TcbStatus::UpToDate))
}

/// The status of a platform, given that of its quoting enclave.
fn with_quoting_enclave(platform: TcbStatus, qe: Result<Option<TcbStatus>, ()>) -> TcbStatus {
    match qe {
        Ok(None) => TcbStatus::NotSupported,
        Ok(Some(TcbStatus::UpToDate)) => platform,
        Ok(Some(TcbStatus::Revoked)) => TcbStatus::Revoked,
        // Intel's verifier takes every other status of a quoting enclave for out of date.
        Ok(Some(_)) | Err(()) => platform.with_component_out_of_date(),
    }
}

fn reaches_sgx(pck: &Pck, level: &TcbLevel) -> bool {
    u32::from(pck.pce_svn) >= level.pce_svn
        && pck.components.iter().zip(&level.sgx).all(|(has, needs)| has >= needs)
}

fn reaches_tdx(svn: &[u8; 16], level: &TcbLevel) -> bool {
    let Some(needs) = &level.tdx else { return false };
    tdx_components(svn).all(|index| svn[index] >= needs[index])
}

/// Which TDX components a platform is judged by: from module version 1 on, the module has levels of its own.
fn tdx_components(svn: &[u8; 16]) -> std::ops::Range<usize> {
    if svn[1] > 0 { 2..16 } else { 0..16 }
}

/// A security version next to the one a level asks for.
pub(crate) struct Compared<'a> {
    of: VersionOf<'a>,
    pub(crate) has: u32,
    pub(crate) needs: u32,
}

/// What a security version is of. In words only when somebody asks: nearly always all is well.
enum VersionOf<'a> {
    Component { tee: &'static str, index: usize, name: &'a str },
    Other(&'static str),
}

impl Compared<'_> {
    pub(crate) fn what(&self) -> String {
        match self.of {
            VersionOf::Component { tee, index, name } => format!("{tee} component {}{name}", index + 1),
            VersionOf::Other(what) => what.into(),
        }
    }

    fn shortfall(self) -> Option<Shortfall> {
        (self.has < self.needs).then(|| Shortfall { what: self.what(), has: self.has, needs: self.needs })
    }
}

/// The versions of a platform that a level judges; `tdx` are the TD report's when it is judged as a TDX platform.
pub(crate) fn compare_platform<'a>(
    tcb_info: &'a TcbInfo,
    level: &'a TcbLevel,
    pck: &'a Pck,
    tdx: Option<&'a [u8; 16]>,
) -> impl Iterator<Item = Compared<'a>> {
    let tdx = tdx.zip(level.tdx.as_ref());
    let (tee, range, names, has, needs) = match tdx {
        Some((svn, needs)) => ("TDX", tdx_components(svn), &tcb_info.names.tdx, svn, needs),
        None => ("SGX", 0..16, &tcb_info.names.sgx, &pck.components, &level.sgx),
    };
    let components = range.map(move |index| Compared {
        of: VersionOf::Component { tee, index, name: &names[index] },
        has: has[index].into(),
        needs: needs[index].into(),
    });
    let pce = tdx.is_none().then(|| Compared {
        of: VersionOf::Other("PCE SVN"),
        has: pck.pce_svn.into(),
        needs: level.pce_svn,
    });
    components.chain(pce)
}

/// The version of an enclave that its newest level judges.
pub(crate) fn compare_enclave(part: TcbPart, levels: &[EnclaveTcbLevel], svn: u16) -> Compared<'static> {
    let what = if part == TcbPart::TdxModule { "TDX module SVN" } else { "quoting enclave SVN" };
    Compared { of: VersionOf::Other(what), has: svn.into(), needs: levels[0].tcb.isvsvn.into() }
}

/// The platform's part of the appraisal; `tdx` are the TD report's versions when it is judged as a TDX platform.
fn platform_component(
    part: TcbPart,
    tcb_info: &TcbInfo,
    level: Option<&TcbLevel>,
    pck: &Pck,
    tdx: Option<&[u8; 16]>,
) -> TcbComponent {
    let newest = &tcb_info.levels[0];
    let shortfalls = compare_platform(tcb_info, newest, pck, tdx).filter_map(Compared::shortfall).collect();
    let dates = tcb_info.levels.iter().map(|level| level.date);
    TcbComponent {
        part,
        status: level.map_or(TcbStatus::NotSupported, |level| level.status),
        missing_since: missing_since(level.map(|level| level.date), dates),
        level: level.map(published),
        newest: published(newest),
        shortfalls,
    }
}

/// A part judged by one security version; the status is `Ok(None)` below every level, `Err` for an unknown status.
fn enclave_component(
    part: TcbPart,
    levels: &[EnclaveTcbLevel],
    svn: u16,
) -> (TcbComponent, Result<Option<TcbStatus>, ()>) {
    let level = levels.iter().find(|level| svn >= level.tcb.isvsvn);
    let newest = &levels[0];
    let status = level.map(|level| match level.status.as_str() {
        "UpToDate" => Ok(TcbStatus::UpToDate),
        "ConfigurationNeeded" => Ok(TcbStatus::ConfigurationNeeded),
        "OutOfDate" => Ok(TcbStatus::OutOfDate),
        "OutOfDateConfigurationNeeded" => Ok(TcbStatus::OutOfDateConfigurationNeeded),
        "Revoked" => Ok(TcbStatus::Revoked),
        _ => Err(()),
    });
    let published = |level: &EnclaveTcbLevel| Level {
        status: level.status.clone(),
        date: level.date,
        advisories: level.advisories.clone(),
    };
    let component = TcbComponent {
        part,
        status: status.and_then(Result::ok).unwrap_or(TcbStatus::NotSupported),
        missing_since: missing_since(level.map(|level| level.date), levels.iter().map(|level| level.date)),
        level: level.map(published),
        newest: published(newest),
        shortfalls: compare_enclave(part, levels, svn).shortfall().into_iter().collect(),
    };
    (component, status.transpose())
}

fn published(level: &TcbLevel) -> Level {
    Level { status: level.status.to_string(), date: level.date, advisories: level.advisories.clone() }
}

/// The date of the first level after `reached`; of the first level at all when none is reached.
fn missing_since(reached: Option<Time>, dates: impl Iterator<Item = Time>) -> Option<Time> {
    dates.filter(|date| reached.is_none_or(|reached| *date > reached)).min()
}

fn explain(status: TcbStatus, components: &[TcbComponent]) -> String {
    let parts: Vec<_> = components
        .iter()
        .filter(|component| component.status != TcbStatus::UpToDate)
        .map(|component| format!("{} {}", component.part, component.status))
        .collect();
    match parts.as_slice() {
        [] => format!("the TCB is {status}"),
        parts => format!("the TCB is {status}: {}", parts.join(", ")),
    }
}

fn identity(body: &Body<'_>) -> Identity {
    match body {
        Body::Sgx(report) => Identity::Sgx {
            mr_enclave: report.mr_enclave().into(),
            mr_signer: report.mr_signer().into(),
            product_id: report.isv_prod_id(),
            svn: report.isv_svn(),
            attributes: report.attributes().into(),
            config_id: report.config_id().into(),
            config_svn: report.config_svn(),
            debug: report.is_debug(),
        },
        Body::Td(report) => Identity::Tdx {
            mr_td: report.mr_td().into(),
            rtmr: report.rtmr().map(Hex::from),
            mr_seam: report.mr_seam().into(),
            mr_config_id: report.mr_config_id().into(),
            mr_owner: report.mr_owner().into(),
            mr_owner_config: report.mr_owner_config().into(),
            td_attributes: report.td_attributes().into(),
            xfam: report.xfam().into(),
            mr_service_td: report.mr_service_td().map(Hex::from),
            debug: report.is_debug(),
            migratable: report.is_migratable(),
            service_td: report.has_service_td(),
            sept_ve_disabled: report.is_sept_ve_disabled(),
        },
    }
}

fn platform(pck: &Pck) -> Platform {
    Platform::Intel {
        fmspc: pck.fmspc,
        pce_id: pck.pce_id,
        components: pck.components,
        pce_svn: pck.pce_svn,
        ppid: pck.ppid,
        instance: pck.platform_instance,
        dynamic: pck.dynamic_platform,
        cached_keys: pck.cached_keys,
        smt: pck.smt_enabled,
    }
}

/// A cache is only a memory of what was verified; a thread that panicked holding it left it valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cache to insert into, emptied when full.
fn remember<T>(cache: &mut T, len: impl Fn(&T) -> usize, clear: impl Fn(&mut T)) -> &mut T {
    if len(cache) >= CACHE_ENTRIES {
        clear(cache);
    }
    cache
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The constants stand for certificates whose self-signature holds, under the pinned key.
    #[test]
    fn intel_root_certificates_are_self_signed() {
        let quotes = std::env::var_os("ENCLOS_SHARED").map_or_else(
            || std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
            std::path::PathBuf::from,
        );
        let verifier = Verifier::new(Roots::vendors());
        let mut seen = HashSet::new();
        for name in ["maasample_oe_release.bin", "automata_v4.bin"] {
            let Ok(bytes) = std::fs::read(quotes.join("quotes").join(name)) else {
                return println!("skipped: {} is absent", quotes.display());
            };
            let quote = Quote::parse(&bytes).unwrap();
            let chain = PckChain::verify(quote.certification.pck_chain().unwrap(), &verifier).unwrap();
            assert!(chain.root.is_issued_by(&chain.root), "{name}");
            assert!(verifier.roots.classify_sgx(&chain.root).is_trusted(), "{name}");
            seen.insert(Hex(crypto::sha256(&chain.root.der)));
        }
        assert_eq!(seen, HashSet::from(INTEL_ROOT_CERTIFICATES));
    }
}
