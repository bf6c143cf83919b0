//! Outcomes of the single checks and TCB statuses.
//!
//! The names and numbers of [`Status`] are those of Intel's quote verification library (`SgxEcdsaAttestation/
//! QuoteVerification.h`), so that results can be compared line by line; those from 1000 on are ours.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::Time;

macro_rules! statuses {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// Outcome of one check, in the terms of Intel's quote verification library.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Status {
            $($(#[$doc])* #[serde(rename = $name)] $variant = $code,)*
        }

        impl Status {
            /// Name as Intel's library prints it, without `STATUS_`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

statuses! {
    /// The check passed.
    Ok = 0, "OK";
    /// A certificate or certificate chain cannot be parsed or has the wrong length.
    UnsupportedCertFormat = 1, "UNSUPPORTED_CERT_FORMAT";
    /// The chain has no root certificate.
    SgxRootCaMissing = 2, "SGX_ROOT_CA_MISSING";
    /// The root certificate lacks a required extension.
    SgxRootCaInvalidExtensions = 4, "SGX_ROOT_CA_INVALID_EXTENSIONS";
    /// The root certificate is not signed by itself.
    SgxRootCaInvalidIssuer = 5, "SGX_ROOT_CA_INVALID_ISSUER";
    /// The PCK chain has no intermediate CA.
    SgxIntermediateCaMissing = 7, "SGX_INTERMEDIATE_CA_MISSING";
    /// The intermediate certificate is not a CA certificate.
    SgxIntermediateCaInvalid = 8, "SGX_INTERMEDIATE_CA_INVALID";
    /// The intermediate certificate lacks a required extension.
    SgxIntermediateCaInvalidExtensions = 9, "SGX_INTERMEDIATE_CA_INVALID_EXTENSIONS";
    /// The intermediate certificate is not signed by the root.
    SgxIntermediateCaInvalidIssuer = 10, "SGX_INTERMEDIATE_CA_INVALID_ISSUER";
    /// The intermediate certificate is revoked.
    SgxIntermediateCaRevoked = 11, "SGX_INTERMEDIATE_CA_REVOKED";
    /// The chain has no PCK certificate.
    SgxPckMissing = 12, "SGX_PCK_MISSING";
    /// The PCK certificate lacks an extension or has a malformed one.
    SgxPckInvalidExtensions = 14, "SGX_PCK_INVALID_EXTENSIONS";
    /// The PCK certificate is not signed by the intermediate CA.
    SgxPckInvalidIssuer = 15, "SGX_PCK_INVALID_ISSUER";
    /// The PCK certificate is revoked (found verifying its chain).
    SgxPckRevoked = 16, "SGX_PCK_REVOKED";
    /// The PCK chain ends in a root that is not trusted.
    SgxPckCertChainUntrusted = 18, "SGX_PCK_CERT_CHAIN_UNTRUSTED";
    /// The TCB info is not JSON of the expected shape.
    SgxTcbInfoUnsupportedFormat = 19, "SGX_TCB_INFO_UNSUPPORTED_FORMAT";
    /// The TCB info has a value that is not allowed.
    SgxTcbInfoInvalid = 20, "SGX_TCB_INFO_INVALID";
    /// The TCB info is not signed by its signing certificate.
    TcbInfoInvalidSignature = 21, "TCB_INFO_INVALID_SIGNATURE";
    /// The signing chain has no TCB signing certificate.
    SgxTcbSigningCertMissing = 22, "SGX_TCB_SIGNING_CERT_MISSING";
    /// The TCB signing certificate lacks a required extension.
    SgxTcbSigningCertInvalidExtensions = 24, "SGX_TCB_SIGNING_CERT_INVALID_EXTENSIONS";
    /// The TCB signing certificate is not signed by the root.
    SgxTcbSigningCertInvalidIssuer = 25, "SGX_TCB_SIGNING_CERT_INVALID_ISSUER";
    /// The signing chain ends in a root that is not trusted.
    SgxTcbSigningCertChainUntrusted = 26, "SGX_TCB_SIGNING_CERT_CHAIN_UNTRUSTED";
    /// The TCB signing certificate is revoked.
    SgxTcbSigningCertRevoked = 27, "SGX_TCB_SIGNING_CERT_REVOKED";
    /// A CRL cannot be parsed.
    SgxCrlUnsupportedFormat = 28, "SGX_CRL_UNSUPPORTED_FORMAT";
    /// A CRL is not from the CA it should be from.
    SgxCrlUnknownIssuer = 29, "SGX_CRL_UNKNOWN_ISSUER";
    /// A CRL lacks a required extension.
    SgxCrlInvalidExtensions = 31, "SGX_CRL_INVALID_EXTENSIONS";
    /// A CRL is not signed by its issuer.
    SgxCrlInvalidSignature = 32, "SGX_CRL_INVALID_SIGNATURE";
    /// Something needed for the check was not given.
    MissingParameters = 36, "MISSING_PARAMETERS";
    /// The quote cannot be parsed or is of an unsupported kind.
    UnsupportedQuoteFormat = 37, "UNSUPPORTED_QUOTE_FORMAT";
    /// The PCK certificate cannot be parsed.
    UnsupportedPckCertFormat = 38, "UNSUPPORTED_PCK_CERT_FORMAT";
    /// The PCK certificate is not one.
    InvalidPckCert = 39, "INVALID_PCK_CERT";
    /// The PCK CRL cannot be parsed.
    UnsupportedPckRlFormat = 40, "UNSUPPORTED_PCK_RL_FORMAT";
    /// The PCK CRL is not from the issuer of the PCK certificate.
    InvalidPckCrl = 41, "INVALID_PCK_CRL";
    /// The TCB info cannot be used for the quote.
    UnsupportedTcbInfoFormat = 42, "UNSUPPORTED_TCB_INFO_FORMAT";
    /// The PCK certificate is revoked (found verifying the quote).
    PckRevoked = 43, "PCK_REVOKED";
    /// The TCB info is for another platform or TEE.
    TcbInfoMismatch = 44, "TCB_INFO_MISMATCH";
    /// Security updates are missing.
    TcbOutOfDate = 45, "TCB_OUT_OF_DATE";
    /// The TCB level is revoked.
    TcbRevoked = 46, "TCB_REVOKED";
    /// The platform needs another configuration.
    TcbConfigurationNeeded = 47, "TCB_CONFIGURATION_NEEDED";
    /// Security updates are missing and the platform needs another configuration.
    TcbOutOfDateConfigurationNeeded = 48, "TCB_OUT_OF_DATE_CONFIGURATION_NEEDED";
    /// The platform is below every TCB level.
    TcbNotSupported = 49, "TCB_NOT_SUPPORTED";
    /// The TCB info names a status nobody knows.
    TcbUnrecognizedStatus = 50, "TCB_UNRECOGNIZED_STATUS";
    /// The QE report is not signed by the PCK.
    InvalidQeReportSignature = 55, "INVALID_QE_REPORT_SIGNATURE";
    /// The QE report does not bind the attestation key.
    InvalidQeReportData = 56, "INVALID_QE_REPORT_DATA";
    /// The quote is not signed by the attestation key.
    InvalidQuoteSignature = 57, "INVALID_QUOTE_SIGNATURE";
    /// The QE identity is not JSON of the expected shape.
    SgxEnclaveIdentityUnsupportedFormat = 62, "SGX_ENCLAVE_IDENTITY_UNSUPPORTED_FORMAT";
    /// The QE identity has a value that is not allowed.
    SgxEnclaveIdentityInvalid = 63, "SGX_ENCLAVE_IDENTITY_INVALID";
    /// The version of the QE identity is not supported.
    SgxEnclaveIdentityUnsupportedVersion = 64, "SGX_ENCLAVE_IDENTITY_UNSUPPORTED_VERSION";
    /// The QE identity cannot be used for the quote.
    UnsupportedQeIdentityFormat = 72, "UNSUPPORTED_QE_IDENTITY_FORMAT";
    /// The quoting enclave is not the one the QE identity describes.
    QeIdentityMismatch = 74, "QE_IDENTITY_MISMATCH";
    /// The TCB info has expired.
    SgxTcbInfoExpired = 75, "SGX_TCB_INFO_EXPIRED";
    /// The QE identity is not signed by its signing certificate.
    SgxEnclaveIdentityInvalidSignature = 76, "SGX_ENCLAVE_IDENTITY_INVALID_SIGNATURE";
    /// A certificate of the PCK chain has expired.
    SgxPckCertChainExpired = 78, "SGX_PCK_CERT_CHAIN_EXPIRED";
    /// A CRL has expired or is not yet valid.
    SgxCrlExpired = 79, "SGX_CRL_EXPIRED";
    /// A certificate of the signing chain has expired.
    SgxSigningCertChainExpired = 80, "SGX_SIGNING_CERT_CHAIN_EXPIRED";
    /// The QE identity has expired.
    SgxEnclaveIdentityExpired = 81, "SGX_ENCLAVE_IDENTITY_EXPIRED";
    /// Enclaves must be hardened in software.
    TcbSwHardeningNeeded = 82, "TCB_SW_HARDENING_NEEDED";
    /// Enclaves must be hardened in software and the platform needs another configuration.
    TcbConfigurationAndSwHardeningNeeded = 83, "TCB_CONFIGURATION_AND_SW_HARDENING_NEEDED";
    /// The TDX module is not one the TCB info describes.
    TdxModuleMismatch = 85, "TDX_MODULE_MISMATCH";
    /// The platform is up to date but the trust domain was launched before; relaunch it.
    TcbTdRelaunchAdvised = 87, "TCB_TD_RELAUNCH_ADVISED";
    /// As above, and the platform needs another configuration.
    TcbTdRelaunchAdvisedConfigurationNeeded = 88, "TCB_TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED";

    // Ours, for evidence Intel's library does not know.
    /// The SEV-SNP report cannot be parsed or is of an unsupported kind.
    SnpUnsupportedReportFormat = 1000, "SNP_UNSUPPORTED_REPORT_FORMAT";
    /// The certificate chain of an SEV-SNP endorsement key cannot be parsed or is incomplete.
    SnpUnsupportedChainFormat = 1001, "SNP_UNSUPPORTED_CHAIN_FORMAT";
    /// A certificate of the chain is not signed by the one above it.
    SnpChainInvalidIssuer = 1002, "SNP_CHAIN_INVALID_ISSUER";
    /// The chain ends in a root that is not AMD's.
    SnpChainUntrusted = 1003, "SNP_CHAIN_UNTRUSTED";
    /// A certificate of the chain, or the CRL, has expired.
    SnpChainExpired = 1004, "SNP_CHAIN_EXPIRED";
    /// A certificate of the chain is revoked.
    SnpChainRevoked = 1005, "SNP_CHAIN_REVOKED";
    /// The CRL cannot be parsed or is not signed by the root.
    SnpCrlInvalid = 1006, "SNP_CRL_INVALID";
    /// The report is not signed by the endorsement key.
    SnpInvalidReportSignature = 1007, "SNP_INVALID_REPORT_SIGNATURE";
    /// The endorsement key is certified for other security versions than those reported.
    SnpTcbMismatch = 1008, "SNP_TCB_MISMATCH";
    /// The endorsement key is certified for another chip than the one reported.
    SnpChipMismatch = 1009, "SNP_CHIP_MISMATCH";
}

impl Status {
    /// Number of the status in Intel's library.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The TCB status this outcome of a quote's verification stands for; `None` when the quote was refused before its
    /// TCB was judged.
    #[must_use]
    pub fn tcb(self) -> Option<TcbStatus> {
        Some(match self {
            Self::Ok => TcbStatus::UpToDate,
            Self::TcbSwHardeningNeeded => TcbStatus::SwHardeningNeeded,
            Self::TcbConfigurationNeeded => TcbStatus::ConfigurationNeeded,
            Self::TcbConfigurationAndSwHardeningNeeded => TcbStatus::ConfigurationAndSwHardeningNeeded,
            Self::TcbOutOfDate => TcbStatus::OutOfDate,
            Self::TcbOutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
            Self::TcbTdRelaunchAdvised => TcbStatus::TdRelaunchAdvised,
            Self::TcbTdRelaunchAdvisedConfigurationNeeded => TcbStatus::TdRelaunchAdvisedConfigurationNeeded,
            Self::TcbRevoked => TcbStatus::Revoked,
            Self::TcbNotSupported => TcbStatus::NotSupported,
            _ => return None,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("OK"),
            other => write!(f, "{}({})", other.name(), other.code()),
        }
    }
}

/// Status of a TCB level, or of several taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Every security update is in place.
    UpToDate,
    /// Up to date, but the enclave's software must mitigate the advisories itself.
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// Up to date, but the platform may be configured insecurely.
    ConfigurationNeeded,
    /// Both of the above.
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// Security updates are missing.
    OutOfDate,
    /// Security updates are missing, and the platform may be configured insecurely.
    OutOfDateConfigurationNeeded,
    /// The platform is up to date, but the trust domain was launched before it was.
    #[serde(rename = "TDRelaunchAdvised")]
    TdRelaunchAdvised,
    /// As above, and the platform may be configured insecurely.
    #[serde(rename = "TDRelaunchAdvisedConfigurationNeeded")]
    TdRelaunchAdvisedConfigurationNeeded,
    /// Compromised; nothing it attests can be believed.
    Revoked,
    /// Below every level the vendor knows, or of a level nobody published. Not a status a vendor assigns.
    NotSupported,
}

impl TcbStatus {
    /// Name as the vendor writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::TdRelaunchAdvised => "TDRelaunchAdvised",
            Self::TdRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
            Self::Revoked => "Revoked",
            Self::NotSupported => "NotSupported",
        }
    }

    /// Whether the configuration of the platform is in question.
    pub(crate) fn needs_configuration(self) -> bool {
        matches!(
            self,
            Self::ConfigurationNeeded
                | Self::ConfigurationAndSwHardeningNeeded
                | Self::OutOfDateConfigurationNeeded
                | Self::TdRelaunchAdvisedConfigurationNeeded
        )
    }

    /// This status, given that another component (TDX module, quoting enclave) of it is out of date.
    pub(crate) fn with_component_out_of_date(self) -> Self {
        match self {
            Self::UpToDate | Self::SwHardeningNeeded => Self::OutOfDate,
            Self::ConfigurationNeeded | Self::ConfigurationAndSwHardeningNeeded => {
                Self::OutOfDateConfigurationNeeded
            }
            other => other,
        }
    }

    /// The outcome Intel's library gives for a quote of this status.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::UpToDate => Status::Ok,
            Self::SwHardeningNeeded => Status::TcbSwHardeningNeeded,
            Self::ConfigurationNeeded => Status::TcbConfigurationNeeded,
            Self::ConfigurationAndSwHardeningNeeded => Status::TcbConfigurationAndSwHardeningNeeded,
            Self::OutOfDate => Status::TcbOutOfDate,
            Self::OutOfDateConfigurationNeeded => Status::TcbOutOfDateConfigurationNeeded,
            Self::TdRelaunchAdvised => Status::TcbTdRelaunchAdvised,
            Self::TdRelaunchAdvisedConfigurationNeeded => Status::TcbTdRelaunchAdvisedConfigurationNeeded,
            Self::Revoked => Status::TcbRevoked,
            Self::NotSupported => Status::TcbNotSupported,
        }
    }
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a check did not pass: its outcome, and the cause and cure in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{status}: {detail}")]
pub struct Failure {
    /// Outcome in the terms of Intel's library.
    pub status: Status,
    /// What was found, and what to do about it.
    pub detail: String,
    /// Set when the only thing wrong is that a validity ended: when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<Time>,
}

impl Failure {
    pub(crate) fn new(status: Status, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), expired: None }
    }

    /// The same cause seen by another check, which names it differently.
    pub(crate) fn as_status(&self, status: Status) -> Self {
        Self { status, ..self.clone() }
    }
}
