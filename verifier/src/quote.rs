//! The binary structure of DCAP quotes: SGX v3 and v4, TDX v4 and v5 (and SGX v5).
//!
//! Nothing here is trusted: [`Quote::parse`] borrows from the caller's bytes, checks every length before use and
//! decides nothing about authenticity. Layout: Intel "SGX ECDSA QuoteGenReference" and "TDX DCAP Quoting Library API",
//! appendix A.

use std::fmt;

use serde::Serialize;

/// Length of an SGX enclave report body, bytes (SDM vol. 3D, section 38.15).
pub const ENCLAVE_REPORT_LEN: usize = 384;
/// Length of a TDX 1.0 report body, bytes.
pub const TD_REPORT_10_LEN: usize = 584;
/// Length of a TDX 1.5 report body, bytes.
pub const TD_REPORT_15_LEN: usize = 648;
/// Length of an extended TDX 1.5 report body, bytes; it begins with a TDX 1.5 body.
pub const TD_REPORT_15_EXTENDED_LEN: usize = 885;
/// The vendor identifier of Intel's quoting enclaves; other vendors' quotes have another signature structure.
pub const INTEL_QE_VENDOR_ID: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];

const HEADER_LEN: usize = 48;
const TEE_SGX: u32 = 0;
const TEE_TDX: u32 = 0x81;
const KEY_TYPE_ECDSA_P256: u16 = 2;
/// Certification data type of a nested QE report (v4 and later).
const CERTIFICATION_QE_REPORT: u16 = 6;
/// OE report header: version 1, remote attestation type 2, length.
const OE_HEADER_LEN: usize = 16;

/// Why bytes are not a quote this crate understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// The bytes end inside a field.
    #[error(
        "quote ends inside {field}: {needed} bytes needed at offset {offset}, {available} left; get it again in full"
    )]
    Truncated {
        /// The field being read.
        field: &'static str,
        /// Where the field starts.
        offset: usize,
        /// Bytes the field needs.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// The quote version is none of 3, 4, 5.
    #[error("quote version {0} is not supported; versions 3, 4 and 5 are")]
    Version(u16),
    /// The attestation key is not ECDSA P-256.
    #[error("attestation key type {0} is not supported; type 2 (ECDSA P-256) is")]
    AttestationKeyType(u16),
    /// The TEE type is neither SGX nor TDX, or impossible in this quote version.
    #[error("TEE type {tee:#x} is not possible in a quote of version {version}")]
    TeeType {
        /// The TEE type in the header.
        tee: u32,
        /// The quote version in the header.
        version: u16,
    },
    /// The quoting enclave is not from Intel.
    #[error("quoting enclave vendor {} is not Intel's; its signature data cannot be interpreted", hex::encode(.0))]
    Vendor([u8; 16]),
    /// A version 5 body descriptor contradicts the header or itself.
    #[error("body type {kind} of {size} bytes is not possible for TEE type {tee:#x}")]
    Body {
        /// The body type in the descriptor.
        kind: u16,
        /// The body size in the descriptor, bytes.
        size: u32,
        /// The TEE type in the header.
        tee: u32,
    },
    /// The certification data type is not one that can stand at its place.
    #[error("certification data type {found} is not possible here (expected {expected})")]
    CertificationType {
        /// The type found.
        found: u16,
        /// The types possible at this place.
        expected: &'static str,
    },
}

/// Kinds of trusted execution environment this crate appraises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// Intel SGX enclave.
    Sgx,
    /// Intel TDX trust domain.
    Tdx,
    /// AMD SEV-SNP guest.
    SevSnp,
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sgx => "SGX enclave",
            Self::Tdx => "TDX trust domain",
            Self::SevSnp => "SEV-SNP guest",
        })
    }
}

/// A parsed quote, borrowing from the bytes it was parsed from.
#[derive(Debug, Clone)]
pub struct Quote<'a> {
    /// Quote version: 3, 4 or 5.
    pub version: u16,
    /// What was quoted.
    pub tee: Tee,
    /// Security version of the quoting enclave as the quote states it (informative; the QE report is authoritative).
    pub qe_svn: u16,
    /// Security version of the PCE as the quote states it (informative; the PCK certificate is authoritative).
    pub pce_svn: u16,
    /// Custom data of the quoting enclave; its first 16 bytes identify the platform's QE.
    pub user_data: &'a [u8; 20],
    /// The report that was quoted.
    pub body: Body<'a>,
    /// The bytes the attestation key signed.
    pub signed: &'a [u8],
    /// ECDSA P-256 signature of `signed`: r || s, big endian.
    pub signature: &'a [u8; 64],
    /// The attestation key: x || y, big endian.
    pub attestation_key: &'a [u8; 64],
    /// Report of the quoting enclave.
    pub qe_report: EnclaveReport<'a>,
    /// Signature of the QE report by the PCK: r || s, big endian.
    pub qe_report_signature: &'a [u8; 64],
    /// Data the quoting enclave bound into its report along with the attestation key.
    pub qe_auth_data: &'a [u8],
    /// What certifies the PCK.
    pub certification: CertificationData<'a>,
    /// Bytes after the quote; common in the wild, authenticated by nothing. (So are bytes at the end of its nested structures,
    /// which Intel's verifier passes over, too.)
    pub trailing: usize,
}

impl<'a> Quote<'a> {
    /// Parses a quote; an Open Enclave report header (version 1, type 2) before it is skipped.
    ///
    /// # Errors
    /// [`QuoteError`] when the bytes are truncated or of an unsupported kind.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let mut reader = Reader::new(without_oe_header(bytes));
        let version = reader.u16("version")?;
        if !(3..=5).contains(&version) {
            return Err(QuoteError::Version(version));
        }
        let key_type = reader.u16("attestation key type")?;
        if key_type != KEY_TYPE_ECDSA_P256 {
            return Err(QuoteError::AttestationKeyType(key_type));
        }
        let tee_type = reader.u32("TEE type")?;
        let tee = match (tee_type, version) {
            (TEE_SGX, _) => Tee::Sgx,
            (TEE_TDX, 4 | 5) => Tee::Tdx,
            (tee, version) => return Err(QuoteError::TeeType { tee, version }),
        };
        // Reserved from version 4 on; read all the same, because nothing depends on them.
        let qe_svn = reader.u16("QE SVN")?;
        let pce_svn = reader.u16("PCE SVN")?;
        let vendor: &[u8; 16] = reader.array("QE vendor id")?;
        if *vendor != INTEL_QE_VENDOR_ID {
            return Err(QuoteError::Vendor(*vendor));
        }
        let user_data = reader.array("user data")?;
        debug_assert_eq!(reader.offset, HEADER_LEN);
        let body = Body::read(&mut reader, version, tee, tee_type)?;
        let signed = reader.consumed();

        let auth_len = reader.u32("signature data length")?;
        let mut auth = reader.nested("signature data", auth_len)?;
        let signature = auth.array("quote signature")?;
        let attestation_key = auth.array("attestation key")?;
        let certified = if version == 3 {
            QeCertified::read(&mut auth)?
        } else {
            let kind = auth.u16("certification data type")?;
            let len = auth.u32("certification data length")?;
            if kind != CERTIFICATION_QE_REPORT {
                return Err(QuoteError::CertificationType { found: kind, expected: "6, QE report" });
            }
            QeCertified::read(&mut auth.nested("QE report certification data", len)?)?
        };
        Ok(Self {
            version,
            tee,
            qe_svn,
            pce_svn,
            user_data,
            body,
            signed,
            signature,
            attestation_key,
            qe_report: certified.report,
            qe_report_signature: certified.signature,
            qe_auth_data: certified.auth_data,
            certification: certified.certification,
            trailing: reader.left(),
        })
    }

    /// The 64 bytes the attester bound into its report.
    #[must_use]
    pub fn report_data(&self) -> &'a [u8; 64] {
        match self.body {
            Body::Sgx(report) => report.report_data(),
            Body::Td(report) => report.report_data(),
        }
    }
}

/// Returns the bytes after an Open Enclave remote report header, or all bytes when there is none.
#[must_use]
pub fn without_oe_header(bytes: &[u8]) -> &[u8] {
    // u32 version = 1, u32 type = 2 (remote); a quote starts with its version 3..5, so the two cannot be confused.
    match bytes.split_first_chunk::<OE_HEADER_LEN>() {
        Some((header, quote)) if header[..8] == [1, 0, 0, 0, 2, 0, 0, 0] => quote,
        _ => bytes,
    }
}

/// The report inside a quote.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// SGX enclave report.
    Sgx(EnclaveReport<'a>),
    /// TDX report.
    Td(TdReport<'a>),
}

impl<'a> Body<'a> {
    fn read(reader: &mut Reader<'a>, version: u16, tee: Tee, tee_type: u32) -> Result<Self, QuoteError> {
        if version < 5 {
            return Ok(match tee {
                Tee::Sgx => Self::Sgx(EnclaveReport(reader.array("enclave report")?)),
                _ => Self::Td(TdReport(reader.bytes("TD report", TD_REPORT_10_LEN)?)),
            });
        }
        let kind = reader.u16("body type")?;
        let size = reader.u32("body size")?;
        let len = size as usize;
        match (tee, kind, len) {
            (Tee::Sgx, 1, ENCLAVE_REPORT_LEN) => {
                Ok(Self::Sgx(EnclaveReport(reader.array("enclave report")?)))
            }
            (Tee::Tdx, 2, TD_REPORT_10_LEN)
            | (Tee::Tdx, 3, TD_REPORT_15_LEN)
            | (Tee::Tdx, 4, TD_REPORT_15_EXTENDED_LEN) => {
                Ok(Self::Td(TdReport(reader.bytes("TD report", len)?)))
            }
            _ => Err(QuoteError::Body { kind, size, tee: tee_type }),
        }
    }
}

/// SGX enclave report body (SDM vol. 3D, table 38-21), 384 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnclaveReport<'a>(pub &'a [u8; ENCLAVE_REPORT_LEN]);

impl<'a> EnclaveReport<'a> {
    /// CPUSVN of the platform at the time of the report.
    #[must_use]
    pub fn cpu_svn(&self) -> &'a [u8; 16] {
        slice(self.0, 0)
    }
    /// SSA frame extended features.
    #[must_use]
    pub fn misc_select(&self) -> u32 {
        u32::from_le_bytes(*slice(self.0, 16))
    }
    /// Attribute flags (bit 1 = debug) and XFRM.
    #[must_use]
    pub fn attributes(&self) -> &'a [u8; 16] {
        slice(self.0, 48)
    }
    /// Measurement of the enclave.
    #[must_use]
    pub fn mr_enclave(&self) -> &'a [u8; 32] {
        slice(self.0, 64)
    }
    /// Hash of the enclave signer's public key.
    #[must_use]
    pub fn mr_signer(&self) -> &'a [u8; 32] {
        slice(self.0, 128)
    }
    /// Configuration identity (KSS), all zero when unused.
    #[must_use]
    pub fn config_id(&self) -> &'a [u8; 64] {
        slice(self.0, 192)
    }
    /// Product identity the signer assigned.
    #[must_use]
    pub fn isv_prod_id(&self) -> u16 {
        u16::from_le_bytes(*slice(self.0, 256))
    }
    /// Security version the signer assigned.
    #[must_use]
    pub fn isv_svn(&self) -> u16 {
        u16::from_le_bytes(*slice(self.0, 258))
    }
    /// Configuration security version (KSS).
    #[must_use]
    pub fn config_svn(&self) -> u16 {
        u16::from_le_bytes(*slice(self.0, 260))
    }
    /// Data the enclave put into its report.
    #[must_use]
    pub fn report_data(&self) -> &'a [u8; 64] {
        slice(self.0, 320)
    }
    /// Whether the enclave can be read and changed by a debugger.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.attributes()[0] & 0x02 != 0
    }
}

/// TDX report body (TDX module specification, TDREPORT_STRUCT), 584 bytes or longer from TDX 1.5 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdReport<'a>(&'a [u8]);

impl<'a> TdReport<'a> {
    /// Security versions of the TDX components; byte 1 is the TDX module's major version.
    #[must_use]
    pub fn tee_tcb_svn(&self) -> &'a [u8; 16] {
        slice(self.0, 0)
    }
    /// Measurement of the TDX module.
    #[must_use]
    pub fn mr_seam(&self) -> &'a [u8; 48] {
        slice(self.0, 16)
    }
    /// Signer of the TDX module, zero for Intel's.
    #[must_use]
    pub fn mr_signer_seam(&self) -> &'a [u8; 48] {
        slice(self.0, 64)
    }
    /// Attributes of the TDX module.
    #[must_use]
    pub fn seam_attributes(&self) -> &'a [u8; 8] {
        slice(self.0, 112)
    }
    /// Attributes of the trust domain; byte 0 is the "tud" group whose bit 0 is debug.
    #[must_use]
    pub fn td_attributes(&self) -> &'a [u8; 8] {
        slice(self.0, 120)
    }
    /// Extended features the trust domain may use.
    #[must_use]
    pub fn xfam(&self) -> &'a [u8; 8] {
        slice(self.0, 128)
    }
    /// Measurement of the initial contents of the trust domain.
    #[must_use]
    pub fn mr_td(&self) -> &'a [u8; 48] {
        slice(self.0, 136)
    }
    /// Software-defined configuration identity.
    #[must_use]
    pub fn mr_config_id(&self) -> &'a [u8; 48] {
        slice(self.0, 184)
    }
    /// Software-defined owner identity.
    #[must_use]
    pub fn mr_owner(&self) -> &'a [u8; 48] {
        slice(self.0, 232)
    }
    /// Software-defined owner configuration.
    #[must_use]
    pub fn mr_owner_config(&self) -> &'a [u8; 48] {
        slice(self.0, 280)
    }
    /// Run-time measurement registers 0 to 3.
    #[must_use]
    pub fn rtmr(&self) -> [&'a [u8; 48]; 4] {
        [slice(self.0, 328), slice(self.0, 376), slice(self.0, 424), slice(self.0, 472)]
    }
    /// Data the trust domain put into its report.
    #[must_use]
    pub fn report_data(&self) -> &'a [u8; 64] {
        slice(self.0, 520)
    }
    /// Security versions the platform would have after relaunching the trust domain (TDX 1.5).
    #[must_use]
    pub fn tee_tcb_svn2(&self) -> Option<&'a [u8; 16]> {
        self.0.get(584..600)?.try_into().ok()
    }
    /// Measurement of the service TDs bound to the trust domain (TDX 1.5); zero when there are none.
    #[must_use]
    pub fn mr_service_td(&self) -> Option<&'a [u8; 48]> {
        self.0.get(600..648)?.try_into().ok()
    }
    /// Whether the trust domain can be read and changed by a debugger (TUD.DEBUG, or a reserved TUD bit).
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.td_attributes()[0] != 0
    }
    /// Whether the trust domain may be migrated (bit 29 of the attributes).
    #[must_use]
    pub fn is_migratable(&self) -> bool {
        self.td_attributes()[3] & 0x20 != 0
    }
    /// Whether EPT violations are kept from becoming exceptions in the trust domain (SEPT_VE_DISABLE, bit 28).
    #[must_use]
    pub fn is_sept_ve_disabled(&self) -> bool {
        self.td_attributes()[3] & 0x10 != 0
    }
    /// Whether a service TD is bound to the trust domain.
    #[must_use]
    pub fn has_service_td(&self) -> bool {
        self.mr_service_td().is_some_and(|mr| mr.iter().any(|byte| *byte != 0))
    }
}

/// What comes with a quote to certify its PCK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificationData<'a> {
    /// 1 to 3: identifiers by which to fetch the PCK certificate; 4: the certificate; 5: its PEM chain.
    pub kind: u16,
    /// The data as it stands in the quote.
    pub data: &'a [u8],
}

impl<'a> CertificationData<'a> {
    /// The PCK certificate chain (type 5), PEM, leaf first; `None` when it must come from elsewhere.
    #[must_use]
    pub fn pck_chain(&self) -> Option<&'a [u8]> {
        (self.kind == 5).then_some(self.data)
    }

    /// The identifiers by which to fetch the PCK certificate (types 1 to 3).
    #[must_use]
    pub fn pck_identifiers(&self) -> Option<PckIdentifiers<'a>> {
        let ppid_len = match self.kind {
            1 => 16,
            2 => 256,
            3 => 384,
            _ => return None,
        };
        // Type 1 exists with its PPID padded to the length of an encrypted one; the versions stand at the end.
        let (ppid, tail) = self.data.split_at_checked(self.data.len().checked_sub(20)?)?;
        Some(PckIdentifiers {
            encrypted: self.kind != 1,
            ppid: ppid.get(..ppid_len)?,
            cpu_svn: slice(tail, 0),
            pce_svn: u16::from_le_bytes(*slice(tail, 16)),
            pce_id: u16::from_le_bytes(*slice(tail, 18)),
        })
    }
}

/// Identifiers of a PCK certificate, as a provisioning service wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PckIdentifiers<'a> {
    /// Whether `ppid` is encrypted with RSA-OAEP to Intel's key (256 or 384 bytes) or plain (16 bytes).
    pub encrypted: bool,
    /// Platform provisioning identifier.
    pub ppid: &'a [u8],
    /// CPUSVN the PCK was derived for.
    pub cpu_svn: &'a [u8; 16],
    /// PCE security version the PCK was derived for.
    pub pce_svn: u16,
    /// Identity of the PCE.
    pub pce_id: u16,
}

/// The part of the signature data that the PCK certifies.
struct QeCertified<'a> {
    report: EnclaveReport<'a>,
    signature: &'a [u8; 64],
    auth_data: &'a [u8],
    certification: CertificationData<'a>,
}

impl<'a> QeCertified<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, QuoteError> {
        let report = EnclaveReport(reader.array("QE report")?);
        let signature = reader.array("QE report signature")?;
        let auth_len = reader.u16("QE authentication data length")?;
        let auth_data = reader.bytes("QE authentication data", auth_len.into())?;
        let kind = reader.u16("certification data type")?;
        if !(1..=5).contains(&kind) {
            return Err(QuoteError::CertificationType { found: kind, expected: "1 to 5" });
        }
        let len = reader.u32("certification data length")?;
        let data = reader.bytes("certification data", len as usize)?;
        Ok(Self { report, signature, auth_data, certification: CertificationData { kind, data } })
    }
}

/// Reads little-endian fields, never past the end.
struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], QuoteError> {
        let offset = self.offset;
        let available = self.bytes.len() - offset;
        let slice = offset
            .checked_add(len)
            .and_then(|end| self.bytes.get(offset..end))
            .ok_or(QuoteError::Truncated { field, offset, needed: len, available })?;
        self.offset += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<&'a [u8; N], QuoteError> {
        Ok(slice(self.bytes(field, N)?, 0))
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, QuoteError> {
        Ok(u16::from_le_bytes(*self.array(field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, QuoteError> {
        Ok(u32::from_le_bytes(*self.array(field)?))
    }

    fn nested(&mut self, field: &'static str, len: u32) -> Result<Self, QuoteError> {
        Ok(Self::new(self.bytes(field, len as usize)?))
    }

    fn consumed(&self) -> &'a [u8] {
        &self.bytes[..self.offset]
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }
}

/// `N` bytes at a fixed offset of a structure whose length was checked when it was read.
fn slice<const N: usize>(bytes: &[u8], offset: usize) -> &[u8; N] {
    bytes[offset..].first_chunk().expect("fixed offsets lie inside structures of checked length")
}
