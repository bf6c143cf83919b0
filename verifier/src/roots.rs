//! Which root keys a relying party trusts.
//!
//! Roots are pinned by *key*, not by certificate: Intel has issued its SGX root certificate twice with one key, and
//! evidence from either time is evidence from the same root.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Serialize, Serializer};

use crate::{pki::Certificate, types::Hex};

/// SHA-256 of the SubjectPublicKeyInfo of "Intel SGX Root CA".
pub const INTEL_SGX_ROOT: Hex<32> = Hex([
    0xa0, 0xaf, 0x03, 0x12, 0x89, 0xf5, 0xd5, 0xd4, 0x13, 0x2f, 0x91, 0x86, 0x06, 0x8a, 0x7f, 0xc1, 0x36,
    0x28, 0x63, 0x3b, 0xa2, 0x35, 0x77, 0x74, 0x72, 0xe2, 0x9b, 0x6b, 0x6c, 0x67, 0xa4, 0x9e,
]);
/// SHA-256 of the SubjectPublicKeyInfo of AMD's root keys (ARK), by product.
pub const AMD_ROOTS: [(&str, Hex<32>); 3] = [
    (
        "Milan",
        Hex([
            0x9f, 0x05, 0x6b, 0xee, 0x44, 0x37, 0x7e, 0x29, 0x30, 0x8c, 0xb5, 0xff, 0xa8, 0x95, 0xbd, 0xfb,
            0x62, 0xd1, 0x88, 0x81, 0xfa, 0x6b, 0xed, 0x8d, 0x6f, 0x07, 0x5b, 0x02, 0x04, 0x08, 0x9c, 0xb9,
        ]),
    ),
    (
        "Genoa",
        Hex([
            0x42, 0x9a, 0x69, 0xc9, 0x42, 0x2a, 0xa2, 0x58, 0xee, 0x4d, 0x8d, 0xb5, 0xfc, 0xda, 0x9c, 0x64,
            0x70, 0xef, 0x15, 0xf8, 0xcd, 0x5a, 0x9c, 0xeb, 0xd6, 0xcb, 0xc7, 0xd9, 0x0b, 0x86, 0x38, 0x31,
        ]),
    ),
    (
        "Turin",
        Hex([
            0x4f, 0x12, 0x54, 0x10, 0x56, 0x3a, 0x2a, 0xb9, 0xa5, 0x03, 0x56, 0xf9, 0x24, 0x3f, 0x6f, 0xe0,
            0xb6, 0xf7, 0x3d, 0xe9, 0x86, 0x03, 0xf5, 0x3f, 0x90, 0x33, 0x9c, 0x70, 0xe9, 0xd7, 0xad, 0x08,
        ]),
    ),
];

/// SHA-256 of the certificates Intel has issued for that key (2018 to 2033, and 2018 to 2049). Their signatures have
/// been verified, by a test of this crate; a constant spares every verifier doing it again.
pub(crate) const INTEL_ROOT_CERTIFICATES: [Hex<32>; 2] = [
    Hex([
        0xfc, 0x64, 0xf8, 0x07, 0x6d, 0x79, 0xa4, 0xfe, 0xe9, 0xd1, 0xd4, 0x73, 0xd7, 0x4c, 0x89, 0xeb, 0x8d,
        0x8f, 0xd5, 0x5c, 0x5a, 0xba, 0xfe, 0xab, 0xeb, 0xa7, 0x36, 0x6d, 0x20, 0x42, 0x94, 0x04,
    ]),
    Hex([
        0x44, 0xa0, 0x19, 0x6b, 0x2b, 0x99, 0xf8, 0x89, 0xb8, 0xe1, 0x49, 0xe9, 0x5b, 0x80, 0x7a, 0x35, 0x0e,
        0x74, 0x24, 0x96, 0x43, 0x99, 0xe8, 0x85, 0xa7, 0xcb, 0xb8, 0xcc, 0xfa, 0xb6, 0x74, 0xd3,
    ]),
];

/// Roots to accept: always the vendors', and any emulated roots named by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roots {
    emulated: Vec<Hex<32>>,
}

impl Roots {
    /// The vendors' roots only.
    #[must_use]
    pub fn vendors() -> Self {
        Self::default()
    }

    /// The vendors' roots and emulated ones, each named by the SHA-256 of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn with_emulated(keys: impl IntoIterator<Item = Hex<32>>) -> Self {
        Self { emulated: keys.into_iter().collect() }
    }

    /// What the root certificate of an SGX hierarchy stands for.
    pub(crate) fn classify_sgx(&self, root: &Certificate) -> RootOfTrust {
        match root.key_id {
            INTEL_SGX_ROOT => RootOfTrust::Intel,
            key if self.emulated.contains(&key) => RootOfTrust::Emulated { key },
            key => RootOfTrust::Unknown { key },
        }
    }

    /// What the root certificate of an SEV hierarchy stands for.
    pub(crate) fn classify_amd(&self, root: &Certificate) -> RootOfTrust {
        let key = root.key_id;
        match AMD_ROOTS.iter().find(|(_, known)| *known == key) {
            Some((product, _)) => RootOfTrust::Amd { product },
            None => RootOfTrust::Unknown { key },
        }
    }
}

/// The SHA-256 of the SubjectPublicKeyInfo of a certificate, by which [`Roots`] and policies name a root.
///
/// # Errors
/// [`NotACertificate`] when `certificate` is neither a DER nor a PEM certificate.
pub fn key_id(certificate: &[u8]) -> Result<Hex<32>, NotACertificate> {
    parse(certificate).map(|certificate| certificate.key_id)
}

/// Reads a certificate, DER or PEM.
pub(crate) fn parse(certificate: &[u8]) -> Result<Certificate, NotACertificate> {
    let no = |error: &dyn std::fmt::Display| NotACertificate(error.to_string());
    let der = der_of(certificate).map_err(|error| no(&error))?;
    Certificate::parse(&der).map_err(|error| no(&error))
}

/// The DER of a certificate in DER or PEM. DER goes first: certificates that carry quotes have PEM inside.
pub(crate) fn der_of(certificate: &[u8]) -> Result<CertificateDer<'_>, rustls_pki_types::pem::Error> {
    /// DER of a SEQUENCE (X.690, 8.9).
    const SEQUENCE: u8 = 0x30;
    match certificate.first() {
        Some(&SEQUENCE) => Ok(CertificateDer::from(certificate)),
        _ => CertificateDer::from_pem_slice(certificate),
    }
}

/// Bytes are not a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("neither a PEM nor a DER certificate: {0}")]
pub struct NotACertificate(pub(crate) String);

/// Who vouches for the platform in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootOfTrust {
    /// Intel's SGX root.
    Intel,
    /// AMD's root for a product line.
    Amd {
        /// Product line, for example `Milan`.
        product: &'static str,
    },
    /// An emulated platform's root that the relying party named: there is no hardware protection.
    Emulated {
        /// SHA-256 of its SubjectPublicKeyInfo.
        key: Hex<32>,
    },
    /// A root the relying party does not know.
    Unknown {
        /// SHA-256 of its SubjectPublicKeyInfo.
        key: Hex<32>,
    },
}

impl RootOfTrust {
    /// Whether evidence under this root is worth anything.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }
}

impl std::fmt::Display for RootOfTrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Intel => f.write_str("Intel SGX root"),
            Self::Amd { product } => write!(f, "AMD {product} root"),
            Self::Emulated { key } => write!(f, "emulated root {key} (no hardware protection)"),
            Self::Unknown { key } => write!(f, "unknown root {key}"),
        }
    }
}

impl Serialize for RootOfTrust {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Plain<'a> {
            kind: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            product: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            key: Option<Hex<32>>,
        }
        let (kind, product, key) = match *self {
            Self::Intel => ("intel", None, Some(INTEL_SGX_ROOT)),
            Self::Amd { product } => ("amd", Some(product), None),
            Self::Emulated { key } => ("emulated", None, Some(key)),
            Self::Unknown { key } => ("unknown", None, Some(key)),
        };
        Plain { kind, product, key }.serialize(serializer)
    }
}
