//! The emulated PCK hierarchy: its keys and certificates, and the file they are kept in with the platform's state.
//!
//! Names, extensions and roles are those of the real hierarchy (Intel "SGX PCK Certificate and CRL Profile"), because
//! verifiers demand them; every name says besides that it is emulated.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{FMSPC, PCE_ID, PCE_SVN, QuotingError, STATE_FILE};

/// Years in which the certificates begin and end to be valid (on 1 January). The state of an emulated platform is thrown
/// away rather than renewed.
const YEARS: (i32, i32) = (2020, 2049);
/// What the file says to whoever reads it.
const WARNING: &str =
    "keys of an emulated platform: they protect nothing, and no verifier should trust them by default";
/// Where CRLs of the root and of the platform CA would be served; verifiers demand the extension, none follows it.
pub(crate) const ROOT_CRL: &str = "https://localhost:8081/sgx/certification/v4/rootcacrl";
const PCK_CRL: &str = "https://localhost:8081/sgx/certification/v4/pckcrl?ca=platform&encoding=der";

/// What the PCK certificate says of the platform, derived from the machine's secrets: another machine is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlatformIdentity {
    pub(crate) ppid: [u8; 16],
    pub(crate) instance: [u8; 16],
    /// SVNs of the TCB components, which on the emulated machine are the bytes of its CPUSVN.
    pub(crate) cpu_svn: [u8; 16],
}

/// The hierarchy, ready to sign.
pub(crate) struct Hierarchy {
    root: CertificateAuthority,
    platform_ca: CertificateAuthority,
    tcb_signing_pem: String,
    pck_pem: String,
    pub(crate) pck: SigningKey,
    pub(crate) tcb_signing: SigningKey,
    pub(crate) attestation: SigningKey,
}

impl Hierarchy {
    /// The hierarchy in the directory; made, whole or not at all, when there is none.
    pub(crate) fn open(directory: &Path, platform: &PlatformIdentity) -> Result<Self, QuotingError> {
        let path = directory.join(STATE_FILE);
        let mut state = match State::read(&path)? {
            Some(state) => state,
            None => {
                let made = State::make(platform)?;
                made.write(directory, |file| match file.persist_noclobber(&path) {
                    // Somebody else was first: theirs counts.
                    Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    other => other.map(drop).map_err(|error| error.error),
                })?;
                State::read(&path)?.ok_or_else(|| {
                    let gone = io::Error::new(io::ErrorKind::NotFound, "it was removed meanwhile");
                    QuotingError::Io { what: "reading", path: path.clone(), source: gone }
                })?
            }
        };
        if state.ppid != platform.ppid {
            return Err(QuotingError::OtherMachine { path });
        }
        let malformed = |reason: String| QuotingError::Malformed { path: path.clone(), reason };
        let key = |name: &str, pkcs8: &[u8]| {
            SigningKey::from_pkcs8(pkcs8).map_err(|error| malformed(format!("{name} key: {error}")))
        };
        let authority = |role: Role, key: &[u8], pem: &str| {
            CertificateAuthority::load(role, key, pem)
                .map_err(|error| malformed(format!("key of {}: {error}", role.name())))
        };
        let root = authority(Role::Root, &state.keys.root, &state.certificates.root)?;
        let platform_ca =
            authority(Role::PlatformCa, &state.keys.platform_ca, &state.certificates.platform_ca)?;
        let pck = key("PCK", &state.keys.pck)?;
        let pck_pem = match state.pck_certificates.iter().find(|pck| pck.cpu_svn == platform.cpu_svn) {
            Some(found) => found.certificate.clone(),
            // The machine is configured with another CPUSVN than before: another TCB, another certificate.
            None => {
                let issued = issue_pck(&state.keys.pck, platform, &platform_ca.issuer)?;
                state
                    .pck_certificates
                    .push(PckCertificate { cpu_svn: platform.cpu_svn, certificate: issued.clone() });
                state.write(directory, |file| file.persist(&path).map(drop).map_err(|error| error.error))?;
                issued
            }
        };
        Ok(Self {
            pck,
            tcb_signing: key("TCB signing", &state.keys.tcb_signing)?,
            attestation: key("attestation", &state.keys.attestation)?,
            tcb_signing_pem: state.certificates.tcb_signing.clone(),
            pck_pem,
            root,
            platform_ca,
        })
    }

    /// The root certificate, PEM.
    pub(crate) fn root_pem(&self) -> &str {
        &self.root.pem
    }

    /// PCK certificate, PEM.
    pub(crate) fn pck_pem(&self) -> &str {
        &self.pck_pem
    }

    /// PCK certificate, platform CA and root, PEM.
    pub(crate) fn pck_chain(&self) -> String {
        [&*self.pck_pem, &self.platform_ca.pem, &self.root.pem].concat()
    }

    /// Platform CA and root, PEM.
    pub(crate) fn pck_issuer_chain(&self) -> String {
        [&*self.platform_ca.pem, &self.root.pem].concat()
    }

    /// TCB signing certificate and root, PEM.
    pub(crate) fn tcb_signing_chain(&self) -> String {
        [&*self.tcb_signing_pem, &self.root.pem].concat()
    }

    /// CRLs of the root and of the platform CA, DER: nothing is revoked.
    pub(crate) fn crls(
        &self,
        issued: OffsetDateTime,
        next: OffsetDateTime,
    ) -> Result<[Vec<u8>; 2], QuotingError> {
        Ok([self.root.crl(issued, next)?, self.platform_ca.crl(issued, next)?])
    }
}

/// A P-256 key that signs as quotes and collateral want it: r || s.
pub(crate) struct SigningKey(EcdsaKeyPair);

impl SigningKey {
    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, ring::error::KeyRejected> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new()).map(Self)
    }

    /// x || y, big endian.
    pub(crate) fn public(&self) -> &[u8] {
        // ring gives an uncompressed point: 0x04 before the coordinates.
        &self.0.public_key().as_ref()[1..]
    }

    /// ECDSA with SHA-256: r || s, big endian.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, QuotingError> {
        let signature = self.0.sign(&SystemRandom::new(), message).map_err(|_| QuotingError::Random)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// The certificates there are but for the PCK's, which is by TCB.
#[derive(Clone, Copy)]
enum Role {
    Root,
    PlatformCa,
    TcbSigning,
}

impl Role {
    /// What verifiers look for in names, and what keeps people from taking it for Intel's.
    fn name(self) -> &'static str {
        match self {
            Self::Root => "Enclos Emulated SGX Root CA",
            Self::PlatformCa => "Enclos Emulated SGX PCK Platform CA",
            Self::TcbSigning => "Enclos Emulated SGX TCB Signing",
        }
    }

    /// Serial numbers are unique under the one root that issues these.
    fn params(self) -> CertificateParams {
        match self {
            Self::Root => params(self.name(), &[1], Some(1)),
            Self::PlatformCa => params(self.name(), &[2], Some(0)),
            Self::TcbSigning => params(self.name(), &[3], None),
        }
    }
}

struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl CertificateAuthority {
    fn load(role: Role, pkcs8: &[u8], pem: &str) -> Result<Self, rcgen::Error> {
        Ok(Self { issuer: Issuer::new(role.params(), key_pair(pkcs8)?), pem: pem.to_owned() })
    }

    fn crl(&self, issued: OffsetDateTime, next: OffsetDateTime) -> Result<Vec<u8>, QuotingError> {
        let params = CertificateRevocationListParams {
            this_update: issued,
            next_update: next,
            // Later lists have higher numbers.
            crl_number: SerialNumber::from_slice(&issued.unix_timestamp().to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.der().to_vec())
    }
}

fn params(name: &str, serial: &[u8], path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, "Enclos emulated platform");
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.not_before = date_time_ymd(YEARS.0, 1, 1);
    params.not_after = date_time_ymd(YEARS.1, 1, 1);
    (params.is_ca, params.key_usages) = match path_length {
        Some(length) => (
            IsCa::Ca(BasicConstraints::Constrained(length)),
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign],
        ),
        None => (IsCa::ExplicitNoCa, vec![KeyUsagePurpose::DigitalSignature]),
    };
    params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![ROOT_CRL.into()] }];
    params.use_authority_key_identifier_extension = true;
    params
}

fn issue_pck(
    pkcs8: &[u8],
    platform: &PlatformIdentity,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<String, QuotingError> {
    let identity = [&platform.ppid[..], &platform.cpu_svn, &PCE_SVN.to_le_bytes()].concat();
    let mut serial = digest(&SHA256, &identity).as_ref()[..16].to_vec();
    // Positive, and without a leading zero byte.
    serial[0] = serial[0] & 0x3f | 0x40;
    let mut leaf = params("Enclos Emulated SGX PCK Certificate", &serial, None);
    leaf.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![PCK_CRL.into()] }];
    leaf.key_usages.push(KeyUsagePurpose::ContentCommitment);
    leaf.custom_extensions.push(CustomExtension::from_oid_content(&SGX_EXTENSION, sgx_extension(platform)));
    Ok(leaf.signed_by(&key_pair(pkcs8)?, issuer)?.pem())
}

const SGX_EXTENSION: [u64; 7] = [1, 2, 840, 113_741, 1, 13, 1];

/// The SGX extension ("SGX PCK Certificate and CRL Profile", section 1.3.5): a sequence of OIDs with values.
fn sgx_extension(platform: &PlatformIdentity) -> Vec<u8> {
    use yasna::{DERWriter, models::ObjectIdentifier};
    /// SEQUENCE { OID below the extension's, value }.
    fn entry(writer: DERWriter<'_>, arcs: &[u64], value: impl FnOnce(DERWriter<'_>)) {
        writer.write_sequence(|writer| {
            let id = [&SGX_EXTENSION[..], arcs].concat();
            writer.next().write_oid(&ObjectIdentifier::from_slice(&id));
            value(writer.next());
        });
    }
    yasna::construct_der(|writer| {
        writer.write_sequence(|values| {
            entry(values.next(), &[1], |w| w.write_bytes(&platform.ppid));
            entry(values.next(), &[2], |w| {
                w.write_sequence(|tcb| {
                    for (arc, svn) in (1..).zip(platform.cpu_svn) {
                        entry(tcb.next(), &[2, arc], |w| w.write_u8(svn));
                    }
                    entry(tcb.next(), &[2, 17], |w| w.write_u16(PCE_SVN));
                    entry(tcb.next(), &[2, 18], |w| w.write_bytes(&platform.cpu_svn));
                });
            });
            entry(values.next(), &[3], |w| w.write_bytes(&PCE_ID));
            entry(values.next(), &[4], |w| w.write_bytes(&FMSPC));
            // Type 1, scalable: what platform CAs certify.
            entry(values.next(), &[5], |w| w.write_enum(1));
            entry(values.next(), &[6], |w| w.write_bytes(&platform.instance));
            entry(values.next(), &[7], |w| {
                w.write_sequence(|configuration| {
                    // Dynamic platform, cached keys, SMT: an emulator has none of them.
                    for arc in 1..=3 {
                        entry(configuration.next(), &[7, arc], |w| w.write_bool(false));
                    }
                });
            });
        });
    })
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, rcgen::Error> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ECDSA_P256_SHA256)
}

/// [`STATE_FILE`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    warning: String,
    /// Of the machine it belongs to.
    #[serde(with = "hex::serde")]
    ppid: [u8; 16],
    keys: Keys,
    certificates: Certificates,
    pck_certificates: Vec<PckCertificate>,
}

/// PKCS #8, DER.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(with = "hex::serde")]
    root: Vec<u8>,
    #[serde(with = "hex::serde")]
    platform_ca: Vec<u8>,
    #[serde(with = "hex::serde")]
    tcb_signing: Vec<u8>,
    #[serde(with = "hex::serde")]
    pck: Vec<u8>,
    #[serde(with = "hex::serde")]
    attestation: Vec<u8>,
}

/// PEM.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Certificates {
    root: String,
    platform_ca: String,
    tcb_signing: String,
}

/// A PCK certificate is for one TCB.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PckCertificate {
    #[serde(with = "hex::serde")]
    cpu_svn: [u8; 16],
    /// PEM.
    certificate: String,
}

impl State {
    fn make(platform: &PlatformIdentity) -> Result<Self, QuotingError> {
        let key = || {
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map(|document| document.as_ref().to_vec())
                .map_err(|_| QuotingError::Random)
        };
        let keys =
            Keys { root: key()?, platform_ca: key()?, tcb_signing: key()?, pck: key()?, attestation: key()? };
        let root_key = key_pair(&keys.root)?;
        let root = Role::Root.params().self_signed(&root_key)?.pem();
        let root_issuer = Issuer::new(Role::Root.params(), root_key);
        let issued = |role: Role, key: &[u8]| -> Result<String, rcgen::Error> {
            Ok(role.params().signed_by(&key_pair(key)?, &root_issuer)?.pem())
        };
        let certificates = Certificates {
            root,
            platform_ca: issued(Role::PlatformCa, &keys.platform_ca)?,
            tcb_signing: issued(Role::TcbSigning, &keys.tcb_signing)?,
        };
        let platform_ca = Issuer::new(Role::PlatformCa.params(), key_pair(&keys.platform_ca)?);
        let certificate = issue_pck(&keys.pck, platform, &platform_ca)?;
        Ok(Self {
            version: 1,
            warning: WARNING.into(),
            ppid: platform.ppid,
            pck_certificates: vec![PckCertificate { cpu_svn: platform.cpu_svn, certificate }],
            keys,
            certificates,
        })
    }

    /// `None` when there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, QuotingError> {
        let io = |source| QuotingError::Io { what: "reading", path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io)?,
        };
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(QuotingError::Permissions { path: path.to_owned(), mode });
        }
        let malformed = |reason: String| QuotingError::Malformed { path: path.to_owned(), reason };
        let text = match io::read_to_string(file) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(malformed("it is not UTF-8".into()));
            }
            other => other.map_err(io)?,
        };
        let state: Self = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        match state.version {
            1 => Ok(Some(state)),
            version => Err(malformed(format!("version {version} instead of 1"))),
        }
    }

    /// Writes it aside, for `place` to put it where it belongs: nobody ever sees half a file.
    fn write(
        &self,
        directory: &Path,
        place: impl FnOnce(tempfile::NamedTempFile) -> io::Result<()>,
    ) -> Result<(), QuotingError> {
        let path = directory.join(STATE_FILE);
        let written = || {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            // Made with mode 0600.
            let mut file =
                tempfile::Builder::new().prefix(&format!("{STATE_FILE}.")).tempfile_in(directory)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            place(file)?;
            fs::File::open(directory)?.sync_all()
        };
        written().map_err(|source| QuotingError::Io { what: "writing", path, source })
    }
}
