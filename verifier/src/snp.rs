//! AMD SEV-SNP attestation reports and the VCEK or VLEK chain that endorses them.
//!
//! Layout: AMD "SEV Secure Nested Paging Firmware ABI Specification" (56860), table "ATTESTATION_REPORT"; certificates:
//! "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230). AMD publishes no TCB
//! levels: what versions suffice is for the policy to say.

use der::{Decode, asn1::ObjectIdentifier};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use crate::{
    appraisal::{Appraisal, Check, CheckKind, Identity, Platform, SnpTcb, Tcb},
    collateral::Window,
    crypto,
    pki::{Certificate, Crl},
    quote::Tee,
    roots::{RootOfTrust, Roots},
    status::{Failure, Status},
    types::{Hex, Time},
};

/// Length of an attestation report, bytes.
pub const SNP_REPORT_LEN: usize = 1184;
const SIGNED_LEN: usize = 0x2a0;
const ALGORITHM_ECDSA_P384_SHA384: u32 = 1;

/// Why bytes are not an SEV-SNP report this crate understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpError {
    /// The report has another length.
    #[error("an SEV-SNP report has {SNP_REPORT_LEN} bytes, this one has {0}; get it again in full")]
    Length(usize),
    /// The report's version is not one this crate knows.
    #[error("SEV-SNP report version {0} is not supported; versions 2 to 5 are")]
    Version(u32),
    /// The report is signed with another algorithm.
    #[error("signature algorithm {0} is not supported; 1 (ECDSA P-384 with SHA-384) is")]
    Algorithm(u32),
    /// The report is not signed.
    #[error("the report is signed by no endorsement key (signing key {0}); the hypervisor suppressed it")]
    SigningKey(u32),
}

/// A parsed report, borrowing from the bytes it was parsed from.
#[derive(Debug, Clone, Copy)]
pub struct SnpReport<'a>(&'a [u8; SNP_REPORT_LEN]);

impl<'a> SnpReport<'a> {
    /// Parses a report.
    ///
    /// # Errors
    /// [`SnpError`] when the length, version, or algorithm is not supported.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SnpError> {
        let report = Self(bytes.try_into().map_err(|_| SnpError::Length(bytes.len()))?);
        match report.version() {
            2..=5 => {}
            version => return Err(SnpError::Version(version)),
        }
        match report.u32(0x34) {
            ALGORITHM_ECDSA_P384_SHA384 => {}
            algorithm => return Err(SnpError::Algorithm(algorithm)),
        }
        match report.signing_key() {
            0 | 1 => Ok(report),
            other => Err(SnpError::SigningKey(other)),
        }
    }

    /// Version of the report's format.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.u32(0)
    }
    /// Guest policy; bit 18 permits migration, bit 19 debugging.
    #[must_use]
    pub fn guest_policy(&self) -> u64 {
        u64::from_le_bytes(*self.field(0x08))
    }
    /// Which key signed: 0 = VCEK (of the chip), 1 = VLEK (of the cloud provider).
    #[must_use]
    pub fn signing_key(&self) -> u32 {
        self.u32(0x48) >> 2 & 7
    }
    /// Data the guest put into its report.
    #[must_use]
    pub fn report_data(&self) -> &'a [u8; 64] {
        self.field(0x50)
    }
    /// Launch measurement.
    #[must_use]
    pub fn measurement(&self) -> &'a [u8; 48] {
        self.field(0x90)
    }
    /// Chip the report is from; zero where the platform masks it.
    #[must_use]
    pub fn chip_id(&self) -> &'a [u8; 64] {
        self.field(0x1a0)
    }
    /// The security versions the endorsement key is derived from, as they stand in the report.
    #[must_use]
    pub fn reported_tcb(&self) -> [u8; 8] {
        *self.field(0x180)
    }
    /// The bytes the endorsement key signed.
    #[must_use]
    pub fn signed(&self) -> &'a [u8] {
        &self.0[..SIGNED_LEN]
    }

    /// The signature as r || s, big endian; `None` when it has digits beyond P-384.
    fn signature(&self) -> Option<[u8; 96]> {
        let (r, s): (&[u8; 72], &[u8; 72]) = (self.field(SIGNED_LEN), self.field(SIGNED_LEN + 72));
        let mut signature = [0; 96];
        for (half, number) in signature.chunks_exact_mut(48).zip([r, s]) {
            let (digits, padding) = number.split_at(48);
            if padding.iter().any(|byte| *byte != 0) {
                return None;
            }
            half.copy_from_slice(digits);
            half.reverse();
        }
        Some(signature)
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(*self.field(offset))
    }

    fn field<const N: usize>(&self, offset: usize) -> &'a [u8; N] {
        self.0[offset..].first_chunk().expect("fixed offsets lie inside the report")
    }
}

/// The certificates that endorse an SEV-SNP report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpCollateral {
    /// VCEK or VLEK, ASK or ASVK, and ARK, PEM, in any order; others are ignored.
    pub certificate_chain: String,
    /// CRL of the ARK, PEM. Without it, revocation is not checked and the appraisal says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<String>,
}

impl SnpCollateral {
    /// Collateral from what AMD's key distribution service answers: the VCEK or VLEK in DER and the CAs in PEM.
    #[must_use]
    pub fn from_kds(endorsement_key: &[u8], cas: &str) -> Self {
        use der::pem::{LineEnding, encode_string};
        // Only bytes beyond the address space cannot be encoded; an empty chain is refused on use all the same.
        let key = encode_string("CERTIFICATE", LineEnding::LF, endorsement_key).unwrap_or_default();
        Self { certificate_chain: format!("{key}{cas}"), crl: None }
    }
}

/// The endorsement key's certificate and its CAs, verified by signature.
struct EndorsementChain {
    key: Certificate,
    intermediate: Certificate,
    root: Certificate,
}

impl EndorsementChain {
    fn verify(pem: &str) -> Result<Self, Failure> {
        let bad = |detail: String| Failure::new(Status::SnpUnsupportedChainFormat, detail);
        let mut certificates = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let der = der.map_err(|error| bad(format!("the chain is not valid PEM: {error}")))?;
            let certificate = Certificate::parse(&der)
                .map_err(|error| bad(format!("a certificate of the chain is not valid X.509: {error}")))?;
            certificates.push(certificate);
        }
        let take =
            |certificates: &mut Vec<Certificate>, what: &str, wanted: &dyn Fn(&Certificate) -> bool| {
                let position = certificates.iter().position(wanted);
                let position = position.ok_or_else(|| bad(format!("the chain lacks {what}")))?;
                Ok::<_, Failure>(certificates.swap_remove(position))
            };
        let is_endorsement_key =
            |certificate: &Certificate| matches!(certificate.common_name.as_str(), "SEV-VCEK" | "SEV-VLEK");
        let key = take(&mut certificates, "a certificate named SEV-VCEK or SEV-VLEK", &is_endorsement_key)?;
        let intermediate = take(
            &mut certificates,
            "the CA that issued the endorsement key (ASK or ASVK)",
            &|certificate| certificate.subject == key.issuer,
        )?;
        let root = take(&mut certificates, "the root that issued that CA (ARK)", &|certificate| {
            certificate.subject == intermediate.issuer && certificate.is_self_issued()
        })?;
        for (certificate, issuer) in [(&root, &root), (&intermediate, &root), (&key, &intermediate)] {
            if !certificate.is_issued_by_rsa(issuer) {
                let detail = format!(
                    "certificate {:?} is not signed by {:?}",
                    certificate.common_name, issuer.common_name
                );
                return Err(Failure::new(Status::SnpChainInvalidIssuer, detail));
            }
        }
        Ok(Self { key, intermediate, root })
    }
}

/// Verifies a report by its endorsement chain, as of `time`. See [`crate::Verifier::verify_snp`].
pub(crate) fn verify(report: &[u8], collateral: &SnpCollateral, roots: &Roots, time: Time) -> Appraisal {
    let report = SnpReport::parse(report);
    let chain = EndorsementChain::verify(&collateral.certificate_chain);
    let root = chain.as_ref().ok().map(|chain| roots.classify_amd(&chain.root));
    let mut premature = Vec::new();
    let mut notes = Vec::new();
    let mut chain_failures = Vec::new();
    match &chain {
        Err(failure) => chain_failures.push(failure.clone()),
        Ok(chain) => {
            if let Some(root @ RootOfTrust::Unknown { .. }) = root {
                let detail =
                    format!("the chain ends in {root}, which is not AMD's for Milan, Genoa or Turin");
                chain_failures.push(Failure::new(Status::SnpChainUntrusted, detail));
            }
            let mut windows: Vec<_> = [&chain.root, &chain.intermediate, &chain.key]
                .map(|certificate| Window::of_certificate(certificate, Status::SnpChainExpired))
                .into();
            match &collateral.crl {
                None => notes
                    .push("revocation of AMD's certificates was not checked: no CRL was given".to_owned()),
                Some(crl) => match check_crl(crl, chain) {
                    Ok(window) => windows.push(window),
                    Err(failure) => chain_failures.push(failure),
                },
            }
            chain_failures.extend(windows.iter().filter_map(|window| window.failure(time)));
            premature.extend(windows.iter().filter(|window| window.is_early(time)).map(|window| {
                format!("{} is valid only from {}; check the clock", window.what, window.from)
            }));
        }
    }
    let mut failures = Vec::new();
    let mut tcb = None;
    match (&report, &chain) {
        (Err(error), _) => failures.push(Failure::new(Status::SnpUnsupportedReportFormat, error.to_string())),
        (Ok(report), Ok(chain)) => {
            failures = check_report(report, &chain.key, root);
            if let Some(RootOfTrust::Amd { product }) = root {
                tcb = Some(tcb_of(report, product));
            }
        }
        (Ok(_), Err(failure)) => {
            let detail = "the report was not checked: its endorsement key's chain is unusable";
            failures.push(Failure::new(failure.status, detail));
        }
    }
    Appraisal {
        time,
        tee: report.as_ref().ok().map(|_| Tee::SevSnp),
        root_of_trust: root,
        checks: vec![
            Check::new(CheckKind::EndorsementKeyChain, chain_failures),
            Check::new(CheckKind::Report, failures),
        ],
        identity: report.as_ref().ok().map(identity),
        report_data: report.as_ref().ok().map(|report| report.report_data().into()),
        tcb,
        collateral_valid_until: None,
        premature,
        notes,
    }
}

fn check_crl(pem: &str, chain: &EndorsementChain) -> Result<Window, Failure> {
    let bad = |detail: String| Failure::new(Status::SnpCrlInvalid, detail);
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| bad(format!("the CRL is not valid PEM: {error}")))?;
    let crl = Crl::parse(&der).map_err(|error| bad(format!("the CRL is not valid: {error}")))?;
    if !crl.is_issued_by_rsa(&chain.root) {
        return Err(bad(format!("the CRL is not signed by {:?}", chain.root.common_name)));
    }
    if crl.revokes(&chain.intermediate) {
        let detail = format!("certificate {:?} is revoked", chain.intermediate.common_name);
        return Err(Failure::new(Status::SnpChainRevoked, detail));
    }
    Ok(Window { status: Status::SnpChainExpired, ..Window::of_crl("CRL of the ARK", &crl) })
}

/// Signature of the report, and that the key is certified for the versions and the chip reported.
fn check_report(report: &SnpReport<'_>, key: &Certificate, root: Option<RootOfTrust>) -> Vec<Failure> {
    let mut failures = Vec::new();
    let valid = report
        .signature()
        .is_some_and(|signature| crypto::p384_fixed(&key.public_key, report.signed(), &signature));
    if !valid {
        let detail = format!("the report is not signed by the key of certificate {:?}", key.common_name);
        failures.push(Failure::new(Status::SnpInvalidReportSignature, detail));
    }
    let expected = if report.signing_key() == 0 { "SEV-VCEK" } else { "SEV-VLEK" };
    if key.common_name != expected {
        let detail = format!(
            "the report says it is signed by an {expected}, the certificate is an {}",
            key.common_name
        );
        failures.push(Failure::new(Status::SnpInvalidReportSignature, detail));
    }
    let Some(RootOfTrust::Amd { product }) = root else { return failures };
    let reported = decode_tcb(report.reported_tcb(), product);
    let mut certified = vec![
        ("boot loader", 1, reported.bootloader),
        ("TEE", 2, reported.tee),
        ("SNP firmware", 3, reported.snp),
        ("microcode", 8, reported.microcode),
    ];
    if is_turin(product) {
        certified.push(("FMC", 9, reported.fmc));
    }
    for (what, arc, reported) in certified {
        let id = AMD_TCB.push_arc(arc).expect("the identifier is short");
        let certified = key.extension(id).and_then(|value| u8::from_der(value).ok());
        if certified != Some(reported) {
            let certified = certified.map_or_else(|| "none".into(), |svn| svn.to_string());
            let detail = format!("{what} version {reported} is reported, the certificate is for {certified}");
            failures.push(Failure::new(Status::SnpTcbMismatch, detail));
        }
    }
    // A VLEK is of a provider, not of a chip; a platform may mask its chip id.
    let chip = report.chip_id();
    if expected == "SEV-VCEK" && *chip != [0; 64] {
        let certified = key.extension(AMD_HARDWARE_ID).unwrap_or_default();
        // The extension holds the raw identifier; Turin's is 8 bytes long.
        let matches = matches!(certified.len(), 8 | 64)
            && chip.starts_with(certified)
            && chip[certified.len()..].iter().all(|byte| *byte == 0);
        if !matches {
            let detail = format!(
                "the report is of chip {}, the certificate of {}",
                Hex(*chip),
                hex::encode(certified)
            );
            failures.push(Failure::new(Status::SnpChipMismatch, detail));
        }
    }
    failures
}

const AMD_TCB: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3");
const AMD_HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");

fn is_turin(product: &str) -> bool {
    product == "Turin"
}

/// TCB_VERSION, whose layout changed with Turin.
fn decode_tcb(bytes: [u8; 8], product: &str) -> SnpTcb {
    if is_turin(product) {
        let [fmc, bootloader, tee, snp, _, _, _, microcode] = bytes;
        SnpTcb { fmc, bootloader, tee, snp, microcode }
    } else {
        let [bootloader, tee, _, _, _, _, snp, microcode] = bytes;
        SnpTcb { fmc: 0, bootloader, tee, snp, microcode }
    }
}

fn tcb_of(report: &SnpReport<'_>, product: &str) -> Tcb {
    let at = |offset| decode_tcb(*report.field(offset), product);
    Tcb {
        status: None,
        evaluation_data_number: None,
        qe_evaluation_data_number: None,
        components: Vec::new(),
        advisories: Vec::new(),
        platform: Platform::Amd {
            product: product.to_owned(),
            reported: at(0x180),
            committed: at(0x1e0),
            current: at(0x38),
            launch: at(0x1f0),
        },
    }
}

fn identity(report: &SnpReport<'_>) -> Identity {
    let policy = report.guest_policy();
    Identity::SevSnp {
        measurement: report.measurement().into(),
        host_data: Hex(*report.field(0xc0)),
        family_id: Hex(*report.field(0x10)),
        image_id: Hex(*report.field(0x20)),
        guest_svn: report.u32(0x04),
        vmpl: report.u32(0x30),
        id_key_digest: Hex(*report.field(0xe0)),
        author_key_digest: Hex(*report.field(0x110)),
        chip_id: report.chip_id().into(),
        guest_policy: policy,
        debug: policy & 1 << 19 != 0,
        migratable: policy & 1 << 18 != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 56860, tables "TCB_VERSION": Turin put the FMC first and closed the gap.
    #[test]
    fn tcb_layout_depends_on_the_product() {
        let bytes = [1, 2, 3, 4, 0, 0, 7, 8];
        let milan = SnpTcb { fmc: 0, bootloader: 1, tee: 2, snp: 7, microcode: 8 };
        let turin = SnpTcb { fmc: 1, bootloader: 2, tee: 3, snp: 4, microcode: 8 };
        assert_eq!(decode_tcb(bytes, "Milan"), milan);
        assert_eq!(decode_tcb(bytes, "Genoa"), milan);
        assert_eq!(decode_tcb(bytes, "Turin"), turin);
    }

    #[test]
    fn unsupported_reports_are_typed_errors() {
        let with = |offset: usize, value: u32| {
            let mut report = [0; SNP_REPORT_LEN];
            report[0] = 2;
            report[0x34] = 1;
            report[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            SnpReport::parse(&report).map(|report| report.version())
        };
        assert_eq!(with(0, 5), Ok(5));
        assert_eq!(with(0, 6), Err(SnpError::Version(6)));
        assert_eq!(with(0x34, 2), Err(SnpError::Algorithm(2)));
        assert_eq!(with(0x48, 1 << 2), Ok(2));
        assert_eq!(with(0x48, 7 << 2), Err(SnpError::SigningKey(7)));
        assert_eq!(SnpReport::parse(&[2; 3]).map(|report| report.version()), Err(SnpError::Length(3)));
    }
}
