//! What an appraisal was made from, for pictures of it: certificates, periods of validity, and every security version
//! next to the one the newest level asks for.
//!
//! Nothing here decides anything; [`Verifier::verify_quote`] does. The same code compares the versions, so a picture
//! cannot say otherwise than the appraisal.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::Serialize;

use crate::{
    appraisal::TcbPart,
    collateral::{PCK_CRL, ROOT_CRL, TrustedCollateral, Window},
    pki::{Certificate, PckChain},
    quote::{Body, Quote},
    roots::parse,
    types::{Hex, Time},
    verify::{Compared, Verifier, compare_enclave, compare_platform},
};

/// What an appraisal of a quote was made from.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Details {
    /// The PCK chain as it came, in order of trust: root first. Empty when there is none that can be read.
    pub certificates: Vec<CertificateDetails>,
    /// Everything that is valid for a time only.
    pub validity: Vec<Validity>,
    /// Every security version judged, by part.
    pub versions: Vec<PartVersions>,
}

/// What a certificate says of itself. Believe it only when the appraisal's checks passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateDetails {
    /// What it is in the chain.
    pub role: CertificateRole,
    /// Common name of its subject.
    pub subject: String,
    /// Common name of its issuer.
    pub issuer: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Start of its validity.
    pub from: Time,
    /// End of its validity.
    pub until: Time,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: Hex<32>,
}

impl CertificateDetails {
    /// Reads one certificate in DER or PEM, whatever it is for.
    ///
    /// # Errors
    /// [`crate::NotACertificate`] when it is none.
    pub fn of(certificate: &[u8]) -> Result<Self, crate::NotACertificate> {
        parse(certificate).map(|parsed| Self::from(&parsed))
    }
}

impl From<&Certificate> for CertificateDetails {
    fn from(certificate: &Certificate) -> Self {
        let role = match certificate {
            root if root.is_self_issued() => CertificateRole::Root,
            ca if ca.is_ca => CertificateRole::Intermediate,
            _ => CertificateRole::Leaf,
        };
        Self {
            role,
            subject: certificate.common_name.clone(),
            issuer: certificate.issuer_common_name.clone(),
            serial: hex::encode(&certificate.serial),
            from: certificate.not_before,
            until: certificate.not_after,
            key: certificate.key_id,
        }
    }
}

/// Place of a certificate in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateRole {
    /// Issued by itself.
    Root,
    /// Of a CA under the root.
    Intermediate,
    /// Of a platform or another end entity.
    Leaf,
}

/// A period in which something may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Validity {
    /// What.
    pub what: String,
    /// From when.
    pub from: Time,
    /// Until when.
    pub until: Time,
}

impl From<&Window> for Validity {
    fn from(window: &Window) -> Self {
        Self { what: window.what.clone(), from: window.from, until: window.until }
    }
}

/// Security versions of a part of the TCB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartVersions {
    /// Which part.
    pub part: TcbPart,
    /// Its versions.
    pub versions: Vec<SecurityVersion>,
}

/// A security version, and the one the newest level asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecurityVersion {
    /// Which version.
    pub what: String,
    /// The version there is.
    pub has: u32,
    /// The version the newest level asks for.
    pub needs: u32,
}

impl From<Compared<'_>> for SecurityVersion {
    fn from(compared: Compared<'_>) -> Self {
        Self { what: compared.what(), has: compared.has, needs: compared.needs }
    }
}

/// Certificates shown; a PCK chain has three.
const MAX_CERTIFICATES: usize = 8;

impl Verifier {
    /// What [`Verifier::verify_quote`] judges a quote by. What cannot be read is left out.
    #[must_use]
    pub fn details(&self, quote: &[u8], collateral: &TrustedCollateral) -> Details {
        let mut details = Details::default();
        let Ok(quote) = Quote::parse(quote) else { return details };
        let given = quote.certification.pck_chain();
        let mut certificates: Vec<CertificateDetails> = match (given, &collateral.pck_chain) {
            (Some(pem), _) => CertificateDer::pem_slice_iter(pem)
                .take(MAX_CERTIFICATES)
                .filter_map(|der| Some(CertificateDetails::from(&Certificate::parse(&der.ok()?).ok()?)))
                .collect(),
            (None, Some(Ok(chain))) => [&chain.root, &chain.intermediate, &chain.leaf]
                .map(|certificate| CertificateDetails::from(&**certificate))
                .into(),
            (None, _) => Vec::new(),
        };
        certificates.sort_by_key(|certificate| certificate.role);

        let crls = [(ROOT_CRL, &collateral.root_crl), (PCK_CRL, &collateral.pck_crl)];
        let crls = crls.into_iter().filter_map(|(what, crl)| Some(Window::of_crl(what, crl.as_ref().ok()?)));
        details.validity = certificates
            .iter()
            .map(|certificate| Validity {
                what: format!("certificate {:?}", certificate.subject),
                from: certificate.from,
                until: certificate.until,
            })
            .chain(crls.map(|window| Validity::from(&window)))
            .collect();
        let signed = collateral.tcb_info_trust.windows.iter().chain(&collateral.qe_identity_trust.windows);
        for validity in signed.map(Validity::from) {
            if !details.validity.contains(&validity) {
                details.validity.push(validity);
            }
        }
        details.certificates = certificates;

        let chain = match (given, &collateral.pck_chain) {
            (Some(pem), _) => PckChain::verify(pem, self).ok(),
            (None, chain) => chain.clone().and_then(Result::ok),
        };
        if let (Some(chain), Ok(info)) = (chain, &collateral.tcb_info)
            && let Some(newest) = info.levels.first()
        {
            let mut push = |part, compared: &mut dyn Iterator<Item = Compared<'_>>| {
                details.versions.push(PartVersions { part, versions: compared.map(Into::into).collect() });
            };
            push(TcbPart::SgxPlatform, &mut compare_platform(info, newest, &chain.pck, None));
            if let (Body::Td(report), Some(_)) = (&quote.body, &newest.tdx) {
                let svn = report.tee_tcb_svn();
                push(TcbPart::TdxPlatform, &mut compare_platform(info, newest, &chain.pck, Some(svn)));
                if let Some(module) = (svn[1] > 0).then(|| info.tdx_module_identity(svn[1])).flatten() {
                    let compared = compare_enclave(TcbPart::TdxModule, &module.tcb_levels, svn[0].into());
                    push(TcbPart::TdxModule, &mut std::iter::once(compared));
                }
            }
        }
        if let Ok(identity) = &collateral.qe_identity {
            let svn = quote.qe_report.isv_svn();
            let compared = compare_enclave(TcbPart::QuotingEnclave, &identity.tcb_levels, svn);
            details
                .versions
                .push(PartVersions { part: TcbPart::QuotingEnclave, versions: vec![compared.into()] });
        }
        details
    }
}
