//! X.509 certificates and CRLs as attestation hierarchies use them, and the PCK certificate's SGX extension.
//!
//! Parsing is `x509-cert`'s; this module keeps what verification needs, with the signed bytes exactly as received.
//! Chains are short and of a fixed shape, so paths are checked role by role rather than built.

use std::{collections::HashSet, sync::Arc};

use der::{
    AnyRef, Decode, Encode, Reader, SliceReader, Tag,
    asn1::{BitString, ObjectIdentifier, OctetStringRef, UintRef},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_cert::{
    Certificate as X509,
    crl::CertificateList,
    ext::{Extensions, pkix::BasicConstraints},
    name::Name,
    spki::AlgorithmIdentifierOwned,
};

use crate::{
    crypto,
    status::{Failure, Status},
    types::{Hex, Time},
};

const AUTHORITY_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.35");
const CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");
/// What Intel's hierarchy has in every certificate: authority and subject key id, CRL distribution points, key usage,
/// basic constraints.
const REQUIRED_EXTENSIONS: [ObjectIdentifier; 5] = [
    AUTHORITY_KEY_ID,
    ObjectIdentifier::new_unwrap("2.5.29.31"),
    ObjectIdentifier::new_unwrap("2.5.29.14"),
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    BASIC_CONSTRAINTS,
];
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const SGX_EXTENSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// A certificate, parsed.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// The certificate as received.
    pub(crate) der: Vec<u8>,
    tbs: std::ops::Range<usize>,
    signature: Vec<u8>,
    pub(crate) subject: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) common_name: String,
    pub(crate) issuer_common_name: String,
    /// Big endian, without leading zeros.
    pub(crate) serial: Vec<u8>,
    pub(crate) not_before: Time,
    pub(crate) not_after: Time,
    /// Contents of the subjectPublicKey bit string: an EC point or an RSAPublicKey.
    pub(crate) public_key: Vec<u8>,
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) key_id: Hex<32>,
    pub(crate) is_ca: bool,
    pub(crate) extensions: Vec<(ObjectIdentifier, Vec<u8>)>,
}

impl Certificate {
    /// Parses one DER certificate.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, der::Error> {
        let x509 = X509::from_der(der)?;
        let tbs = x509.tbs_certificate();
        let signed = first_element(der)?;
        let [issuer, subject, key_info] = raw_fields(&der[signed.clone()])?;
        let extensions = extensions(tbs.extensions());
        let is_ca = extensions.iter().find(|(id, _)| *id == BASIC_CONSTRAINTS).is_some_and(|(_, value)| {
            BasicConstraints::from_der(value).is_ok_and(|constraints| constraints.ca)
        });
        Ok(Self {
            tbs: signed,
            signature: signature((x509.signature_algorithm(), x509.signature()), tbs.signature())?,
            common_name: common_name(tbs.subject()),
            issuer_common_name: common_name(tbs.issuer()),
            subject: subject.to_vec(),
            issuer: issuer.to_vec(),
            serial: without_leading_zeros(tbs.serial_number().as_bytes()).to_vec(),
            not_before: Time(tbs.validity().not_before.to_unix_duration().as_secs()),
            not_after: Time(tbs.validity().not_after.to_unix_duration().as_secs()),
            public_key: tbs.subject_public_key_info().subject_public_key.raw_bytes().to_vec(),
            key_id: Hex(crypto::sha256(key_info)),
            is_ca,
            extensions,
            der: der.to_vec(),
        })
    }

    /// The bytes the issuer signed.
    pub(crate) fn tbs(&self) -> &[u8] {
        &self.der[self.tbs.clone()]
    }

    pub(crate) fn is_self_issued(&self) -> bool {
        // Nearly always decides, at a fraction of the cost.
        self.common_name == self.issuer_common_name && same_name(&self.subject, &self.issuer)
    }

    /// Whether `issuer` is the issuer by name and by its P-256 key.
    pub(crate) fn is_issued_by(&self, issuer: &Self) -> bool {
        same_name(&self.issuer, &issuer.subject)
            && crypto::p256_der(&issuer.public_key, self.tbs(), &self.signature)
    }

    /// Whether `issuer` is the issuer by name and by its RSA-PSS key (AMD's hierarchy).
    pub(crate) fn is_issued_by_rsa(&self, issuer: &Self) -> bool {
        same_name(&self.issuer, &issuer.subject)
            && crypto::rsa_pss_sha384(&issuer.public_key, self.tbs(), &self.signature)
    }

    /// The value of an extension.
    pub(crate) fn extension(&self, id: ObjectIdentifier) -> Option<&[u8]> {
        self.extensions.iter().find(|(found, _)| *found == id).map(|(_, value)| value.as_slice())
    }

    /// Which of the extensions every certificate of Intel's hierarchy has is missing.
    fn missing_extension(&self) -> Option<ObjectIdentifier> {
        REQUIRED_EXTENSIONS.into_iter().find(|id| self.extension(*id).is_none())
    }
}

/// Parses all certificates in `pem`, in the order they stand there; anything between them is skipped.
///
/// `known` gives certificates parsed before by their bytes.
pub(crate) fn parse_pem_chain(pem: &[u8], known: &dyn KnownRoots) -> Result<Vec<Arc<Certificate>>, Failure> {
    let bad = |detail: String| Failure::new(Status::UnsupportedCertFormat, detail);
    let mut chain = Vec::with_capacity(3);
    for der in CertificateDer::pem_slice_iter(pem) {
        let position = chain.len() + 1;
        let der = der.map_err(|error| bad(format!("certificate {position} is not valid PEM: {error}")))?;
        if let Some(root) = known.get(&der) {
            chain.push(root);
            continue;
        }
        let certificate = Certificate::parse(&der)
            .map_err(|error| bad(format!("certificate {position} is not valid X.509: {error}")))?;
        if let Some(missing) = certificate.missing_extension() {
            let status = match certificate.common_name.as_str() {
                _ if certificate.is_self_issued() => Status::SgxRootCaInvalidExtensions,
                name if name.contains(PCK_NAME) => Status::SgxPckInvalidExtensions,
                name if name.contains(TCB_SIGNING_NAME) => Status::SgxTcbSigningCertInvalidExtensions,
                _ => Status::SgxIntermediateCaInvalidExtensions,
            };
            let name = &certificate.common_name;
            return Err(Failure::new(status, format!("certificate {name:?} lacks extension {missing}")));
        }
        chain.push(Arc::new(certificate));
    }
    if chain.is_empty() {
        return Err(bad("no certificate found in the chain".into()));
    }
    Ok(chain)
}

/// Root certificates seen before, so that the one in every chain is parsed and verified once.
pub(crate) trait KnownRoots {
    /// The certificate of these bytes, if it is a known root.
    fn get(&self, der: &[u8]) -> Option<Arc<Certificate>>;
    /// Whether a root certificate is signed by its own key.
    fn is_self_signed(&self, root: &Arc<Certificate>) -> bool;
}

/// Part of the name of a root certificate of an SGX hierarchy.
pub(crate) const ROOT_NAME: &str = "SGX Root CA";
/// Part of the name of an intermediate CA of an SGX hierarchy.
pub(crate) const INTERMEDIATE_NAME: &str = "CA";
/// Part of the name of a PCK certificate.
pub(crate) const PCK_NAME: &str = "SGX PCK Certificate";
/// Part of the name of the certificate that signs TCB info and enclave identities.
pub(crate) const TCB_SIGNING_NAME: &str = "SGX TCB Signing";

/// A PCK certificate with its CAs, whose signatures on one another have been verified.
///
/// Whether the root is trusted, the certificates are revoked or have expired is not said: that depends on the relying
/// party, the CRLs and the time.
#[derive(Debug, Clone)]
pub(crate) struct PckChain {
    pub(crate) root: Arc<Certificate>,
    pub(crate) intermediate: Arc<Certificate>,
    pub(crate) leaf: Arc<Certificate>,
    pub(crate) pck: Pck,
}

impl PckChain {
    /// Parses and verifies a PEM chain.
    pub(crate) fn verify(pem: &[u8], known: &dyn KnownRoots) -> Result<Self, Failure> {
        let chain = parse_pem_chain(pem, known)?;
        if chain.len() != 3 {
            let detail =
                format!("a PCK chain has 3 certificates (PCK, CA, root); this one has {}", chain.len());
            return Err(Failure::new(Status::UnsupportedCertFormat, detail));
        }
        let missing = |status, what: &str| Failure::new(status, format!("the PCK chain has no {what}"));
        let (roots, others): (Vec<_>, Vec<_>) =
            chain.into_iter().partition(|certificate| certificate.is_self_issued());
        let root =
            roots.into_iter().next_back().filter(|root| root.common_name.contains(ROOT_NAME)).ok_or_else(
                || missing(Status::SgxRootCaMissing, "self-issued certificate named \"… SGX Root CA …\""),
            )?;
        let (leaves, intermediates): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|certificate| certificate.common_name.contains(PCK_NAME));
        let intermediate = intermediates
            .into_iter()
            .find(|certificate| certificate.common_name.contains(INTERMEDIATE_NAME))
            .ok_or_else(|| missing(Status::SgxIntermediateCaMissing, "certificate of an intermediate CA"))?;
        let leaf = leaves
            .into_iter()
            .next()
            .ok_or_else(|| missing(Status::SgxPckMissing, "certificate named \"… SGX PCK Certificate …\""))?;
        let pck = Pck::parse(&leaf)?;

        let unsigned =
            |status, what: &str, by: &str| Failure::new(status, format!("{what} is not signed by {by}"));
        if !known.is_self_signed(&root) {
            return Err(unsigned(Status::SgxRootCaInvalidIssuer, "the root certificate", "its own key"));
        }
        if !intermediate.is_issued_by(&root) {
            return Err(unsigned(Status::SgxIntermediateCaInvalidIssuer, "the intermediate CA", "the root"));
        }
        if !(intermediate.is_ca && root.is_ca) {
            let detail = "the root or the intermediate certificate is not one of a CA (basic constraints)";
            return Err(Failure::new(Status::SgxIntermediateCaInvalid, detail));
        }
        if !leaf.is_issued_by(&intermediate) {
            return Err(unsigned(Status::SgxPckInvalidIssuer, "the PCK certificate", "the intermediate CA"));
        }
        Ok(Self { root, intermediate, leaf, pck })
    }
}

/// Parses and verifies the chain of a CA that issues PCK certificates: itself and the root, in either order.
pub(crate) fn verify_ca_chain(
    pem: &[u8],
    known: &dyn KnownRoots,
) -> Result<(Arc<Certificate>, Arc<Certificate>), Failure> {
    let (roots, others): (Vec<_>, Vec<_>) =
        parse_pem_chain(pem, known)?.into_iter().partition(|certificate| certificate.is_self_issued());
    let ([root], [ca]) = (roots.as_slice(), others.as_slice()) else {
        let detail = format!(
            "the chain of a PCK CA has 2 certificates (CA, root); this one has {} and {}",
            others.len(),
            roots.len()
        );
        return Err(Failure::new(Status::UnsupportedCertFormat, detail));
    };
    if !known.is_self_signed(root) {
        let detail = "the root certificate is not signed by its own key";
        return Err(Failure::new(Status::SgxRootCaInvalidIssuer, detail));
    }
    if !ca.is_issued_by(root) {
        let detail = "the intermediate CA is not signed by the root";
        return Err(Failure::new(Status::SgxIntermediateCaInvalidIssuer, detail));
    }
    if !(ca.is_ca && root.is_ca) {
        let detail = "the root or the intermediate certificate is not one of a CA (basic constraints)";
        return Err(Failure::new(Status::SgxIntermediateCaInvalid, detail));
    }
    Ok((Arc::clone(root), Arc::clone(ca)))
}

/// What the SGX extension of a PCK certificate says (Intel "SGX PCK Certificate and CRL Profile", section 1.3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pck {
    pub(crate) ppid: Hex<16>,
    pub(crate) fmspc: Hex<6>,
    pub(crate) pce_id: Hex<2>,
    /// SGX TCB components 1 to 16.
    pub(crate) components: [u8; 16],
    pub(crate) pce_svn: u16,
    /// Platform instance, only where a platform CA issued the certificate.
    pub(crate) platform_instance: Option<Hex<16>>,
    pub(crate) dynamic_platform: Option<bool>,
    pub(crate) cached_keys: Option<bool>,
    pub(crate) smt_enabled: Option<bool>,
}

impl Pck {
    fn parse(certificate: &Certificate) -> Result<Self, Failure> {
        let bad = |detail: String| Failure::new(Status::SgxPckInvalidExtensions, detail);
        let extension = certificate
            .extension(SGX_EXTENSION)
            .ok_or_else(|| bad(format!("the PCK certificate has no SGX extension ({SGX_EXTENSION})")))?;
        Self::parse_extension(extension)
            .map_err(|error| bad(format!("the SGX extension of the PCK certificate is malformed: {error}")))?
            .ok_or_else(|| bad("the SGX extension of the PCK certificate lacks a required value".into()))
    }

    fn parse_extension(bytes: &[u8]) -> der::Result<Option<Self>> {
        let (mut ppid, mut fmspc, mut pce_id, mut sgx_type) = (None, None, None, None);
        let (mut platform_instance, mut configuration) = (None, [None; 3]);
        let mut components = [None; 16];
        let (mut pce_svn, mut cpu_svn) = (None, None);
        for (arc, value) in entries(bytes)? {
            match arc {
                1 => ppid = Some(octets(value)?),
                2 => {
                    for (arc, value) in entries(&value.to_der()?)? {
                        match arc {
                            1..=16 => components[arc as usize - 1] = Some(integer::<1>(value)?[0]),
                            17 => pce_svn = Some(u16::from_be_bytes(integer(value)?)),
                            18 => cpu_svn = Some(octets::<16>(value)?),
                            _ => {}
                        }
                    }
                }
                3 => pce_id = Some(octets(value)?),
                4 => fmspc = Some(octets(value)?),
                5 if value.header().tag() == Tag::Enumerated => sgx_type = Some(()),
                6 => platform_instance = Some(octets(value)?),
                7 => {
                    for (arc, value) in entries(&value.to_der()?)? {
                        if let 1..=3 = arc {
                            configuration[arc as usize - 1] = Some(value.decode_as::<bool>()?);
                        }
                    }
                }
                _ => {}
            }
        }
        let mut svns = [0; 16];
        for (svn, component) in svns.iter_mut().zip(components) {
            let Some(component) = component else { return Ok(None) };
            *svn = component;
        }
        let (Some(ppid), Some(fmspc), Some(pce_id), Some(pce_svn), Some(_), Some(())) =
            (ppid, fmspc, pce_id, pce_svn, cpu_svn, sgx_type)
        else {
            return Ok(None);
        };
        let [dynamic_platform, cached_keys, smt_enabled] = configuration;
        Ok(Some(Self {
            ppid,
            fmspc,
            pce_id,
            components: svns,
            pce_svn,
            platform_instance,
            dynamic_platform,
            cached_keys,
            smt_enabled,
        }))
    }
}

/// A certificate revocation list, parsed.
#[derive(Debug, Clone)]
pub(crate) struct Crl {
    tbs: Vec<u8>,
    signature: Vec<u8>,
    pub(crate) issuer: Vec<u8>,
    pub(crate) issuer_common_name: String,
    pub(crate) this_update: Time,
    /// Absent only where the issuer made no promise of another list.
    pub(crate) next_update: Option<Time>,
    revoked: HashSet<Vec<u8>>,
    extensions: Vec<(ObjectIdentifier, Vec<u8>)>,
}

impl Crl {
    /// Parses a DER list.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, der::Error> {
        let list = CertificateList::<x509_cert::certificate::Rfc5280>::from_der(der)?;
        let tbs = &list.tbs_cert_list;
        let revoked = tbs.revoked_certificates.iter().flatten();
        Ok(Self {
            tbs: der[first_element(der)?].to_vec(),
            signature: signature((&list.signature_algorithm, &list.signature), &tbs.signature)?,
            issuer: crl_issuer(&der[first_element(der)?])?.to_vec(),
            issuer_common_name: common_name(&tbs.issuer),
            this_update: Time(tbs.this_update.to_unix_duration().as_secs()),
            next_update: tbs.next_update.map(|time| Time(time.to_unix_duration().as_secs())),
            revoked: revoked
                .map(|entry| without_leading_zeros(entry.serial_number.as_bytes()).to_vec())
                .collect(),
            extensions: extensions(tbs.crl_extensions.as_ref()),
        })
    }

    /// Whether the certificate's serial number is on the list; the issuers must have been compared.
    pub(crate) fn revokes(&self, certificate: &Certificate) -> bool {
        self.revoked.contains(&certificate.serial)
    }

    /// Checks that `issuer` issued this list; `verified` says that its signature by that key was verified before.
    pub(crate) fn check_issuer(
        &self,
        what: &str,
        issuer: &Certificate,
        verified: bool,
    ) -> Result<(), Failure> {
        if self.issuer != issuer.subject {
            let (found, expected) = (&self.issuer_common_name, &issuer.common_name);
            let detail =
                format!("the {what} is from {found:?}, not from {expected:?}; get the one of that CA");
            return Err(Failure::new(Status::SgxCrlUnknownIssuer, detail));
        }
        if let Some(id) = [CRL_NUMBER, AUTHORITY_KEY_ID]
            .into_iter()
            .find(|id| !self.extensions.iter().any(|(found, _)| found == id))
        {
            return Err(Failure::new(
                Status::SgxCrlInvalidExtensions,
                format!("the {what} lacks extension {id}"),
            ));
        }
        if !verified && !crypto::p256_der(&issuer.public_key, &self.tbs, &self.signature) {
            let detail = format!("the {what} is not signed by {:?}", issuer.common_name);
            return Err(Failure::new(Status::SgxCrlInvalidSignature, detail));
        }
        Ok(())
    }

    /// Whether the RSA-PSS key of `issuer` signed this list (AMD's hierarchy).
    pub(crate) fn is_issued_by_rsa(&self, issuer: &Certificate) -> bool {
        self.issuer == issuer.subject
            && crypto::rsa_pss_sha384(&issuer.public_key, &self.tbs, &self.signature)
    }
}

/// Whether two DER names are the same: byte for byte, or in the attributes Intel's hierarchy uses (string types and
/// order differ between re-issues).
pub(crate) fn same_name(left: &[u8], right: &[u8]) -> bool {
    left == right
        || matches!((attributes(left), attributes(right)), (Some(left), Some(right)) if left == right)
}

/// Values of CN, C, O, L and ST.
fn attributes(name: &[u8]) -> Option<[Option<Vec<u8>>; 5]> {
    let name = Name::from_der(name).ok()?;
    let ids = ["2.5.4.3", "2.5.4.6", "2.5.4.10", "2.5.4.7", "2.5.4.8"].map(ObjectIdentifier::new_unwrap);
    Some(ids.map(|id| {
        name.iter().find(|attribute| attribute.oid == id).map(|found| found.value.value().to_vec())
    }))
}

fn common_name(name: &Name) -> String {
    name.iter()
        .find(|attribute| attribute.oid == COMMON_NAME)
        .map(|attribute| String::from_utf8_lossy(attribute.value.value()).into_owned())
        .unwrap_or_default()
}

fn extensions(extensions: Option<&Extensions>) -> Vec<(ObjectIdentifier, Vec<u8>)> {
    extensions
        .into_iter()
        .flatten()
        .map(|extension| (extension.extn_id, extension.extn_value.as_bytes().to_vec()))
        .collect()
}

/// The signature of a certificate or CRL, whose unsigned algorithm must be the signed one (RFC 5280, 4.1.1.2).
fn signature(
    (algorithm, signature): (&AlgorithmIdentifierOwned, &BitString),
    signed: &AlgorithmIdentifierOwned,
) -> der::Result<Vec<u8>> {
    if algorithm != signed {
        return Err(Tag::Sequence.value_error().into());
    }
    Ok(signature.as_bytes().ok_or_else(|| Tag::BitString.value_error())?.to_vec())
}

/// Where the first element of the outer SEQUENCE lies: the part that is signed.
fn first_element(der: &[u8]) -> der::Result<std::ops::Range<usize>> {
    let body = AnyRef::from_der(der)?.value();
    let start = der.len() - body.len();
    let element = SliceReader::new(body)?.tlv_bytes()?;
    Ok(start..start + element.len())
}

/// Issuer of a TBSCertList that was parsed before, as it stands there.
fn crl_issuer(tbs: &[u8]) -> der::Result<&[u8]> {
    let mut reader = SliceReader::new(AnyRef::from_der(tbs)?.value())?;
    let first = reader.tlv_bytes()?;
    if first.first() == Some(&VERSION) {
        let _algorithm = reader.tlv_bytes()?;
    }
    reader.tlv_bytes()
}

/// Issuer, subject and SubjectPublicKeyInfo of a TBSCertificate that was parsed before, as they stand there.
fn raw_fields(tbs: &[u8]) -> der::Result<[&[u8]; 3]> {
    let mut reader = SliceReader::new(AnyRef::from_der(tbs)?.value())?;
    let first = reader.tlv_bytes()?;
    if first.first() == Some(&EXPLICIT_VERSION) {
        let _serial = reader.tlv_bytes()?;
    }
    let _algorithm = reader.tlv_bytes()?;
    let issuer = reader.tlv_bytes()?;
    let _validity = reader.tlv_bytes()?;
    Ok([issuer, reader.tlv_bytes()?, reader.tlv_bytes()?])
}

/// Tag of a certificate's version, which version 1 certificates lack.
const EXPLICIT_VERSION: u8 = 0xa0;
/// Tag of a CRL's version, which version 1 lists lack.
const VERSION: u8 = 0x02;

/// The entries of a SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, ANY }: last arc of the identifier, and value.
fn entries(bytes: &[u8]) -> der::Result<Vec<(u32, AnyRef<'_>)>> {
    let mut reader = SliceReader::new(AnyRef::from_der(bytes)?.value())?;
    let mut entries = Vec::with_capacity(18);
    while !reader.is_finished() {
        let entry = AnyRef::decode(&mut reader)?;
        let mut pair = SliceReader::new(entry.value())?;
        let id: ObjectIdentifier = ObjectIdentifier::decode(&mut pair)?;
        let value = AnyRef::decode(&mut pair)?;
        pair.finish()?;
        entries.push((id.arcs().last().unwrap_or_default(), value));
    }
    Ok(entries)
}

fn octets<const N: usize>(value: AnyRef<'_>) -> der::Result<Hex<N>> {
    let octets: &OctetStringRef = value.decode_as()?;
    let bytes: [u8; N] = octets.as_bytes().try_into().map_err(|_| Tag::OctetString.length_error())?;
    Ok(Hex(bytes))
}

/// A non-negative INTEGER of at most `N` bytes, big endian.
fn integer<const N: usize>(value: AnyRef<'_>) -> der::Result<[u8; N]> {
    let integer: UintRef<'_> = value.decode_as()?;
    let digits = integer.as_bytes();
    let mut bytes = [0; N];
    let start = N.checked_sub(digits.len()).ok_or_else(|| Tag::Integer.length_error())?;
    bytes[start..].copy_from_slice(digits);
    Ok(bytes)
}

fn without_leading_zeros(mut bytes: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = bytes {
        bytes = rest;
    }
    bytes
}
