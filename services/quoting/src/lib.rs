//! The quoting service of the emulated platform: turns REPORTs into DCAP quotes, and issues the collateral to judge them.
//!
//! **This evidence proves nothing.** Its keys lie in a file that whoever runs the emulator can read, and its chain ends in
//! a root that no default policy accepts. It exists so that attestation can be developed and tested without hardware,
//! with evidence in the formats of the real one: other people's verifiers accept it once given the root, and only then.
//!
//! Formats: Intel "SGX ECDSA QuoteGenReference", appendix A (quote v3); "SGX PCK Certificate and CRL Profile"; Intel PCS
//! API v4 (TCB info v3, QE identity v2).
//!
//! ```no_run
//! use enclos_platform::emulator::machine::{Machine, MachineConfig};
//! use enclos_quoting::EmulatedQuoting;
//! use enclos_verifier::Time;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let report_from_an_enclave = |_target: [u8; 512]| [0; 432];
//! let machine = Machine::new(&MachineConfig::default())?;
//! let quoting = EmulatedQuoting::open(&machine, &MachineConfig::state_dir())?;
//! let report = report_from_an_enclave(quoting.target_info()); // by EREPORT
//! let quote = quoting.quote(&report)?;
//! let collateral = quoting.collateral(Time::now())?;
//! println!("{} bytes under root {}", quote.len(), quoting.root_key_id());
//! # let _ = collateral;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod aesm;
mod collateral;
mod enclave;
mod hierarchy;
mod pccs;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use enclos_platform::{
    PlatformError,
    emulator::{keys::KeyError, machine::Machine},
};
use enclos_verifier::{Collateral, Hex, Time, quote::INTEL_QE_VENDOR_ID};
use ring::digest::{SHA256, digest};

pub use aesm::AesmSocket;
use enclave::{QuotingEnclave, REPORT, REPORT_BODY, TARGETINFO};
use hierarchy::{Hierarchy, PlatformIdentity};
pub use pccs::serve_pccs;

/// File that holds keys and certificates, in the state directory; readable by its owner only.
pub const STATE_FILE: &str = "emulated-quoting.json";
/// FMSPC of the emulated platform: "EMULAT" in ASCII, which is no family of Intel's.
pub const FMSPC: [u8; 6] = *b"EMULAT";
/// PCE-ID of the emulated platform.
pub const PCE_ID: [u8; 2] = [0; 2];
/// PCESVN of the emulated platform.
pub const PCE_SVN: u16 = 13;

const QUOTE_VERSION: u16 = 3;
/// Attestation key type: ECDSA-256 with P-256.
const ECDSA_P256: u16 = 2;
/// Bytes of a signature: r and s.
const SIGNATURE: usize = 64;
/// Certification data type: PCK certificate chain, PEM.
const PCK_CHAIN: u16 = 5;

/// What collateral says of the emulated platform's TCB; for tests of relying parties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TcbState {
    /// `UpToDate`.
    #[default]
    UpToDate,
    /// `SWHardeningNeeded`, with an advisory.
    SwHardeningNeeded,
    /// `OutOfDate`: a newer PCE is asked for.
    OutOfDate,
    /// `Revoked`: the level the platform is at is not to be trusted any more. (No certificate is in a CRL.)
    Revoked,
}

/// The quoting service of an emulated platform: the roles of quoting enclave, PCE and provisioning service in one.
pub struct EmulatedQuoting {
    enclave: QuotingEnclave,
    hierarchy: Hierarchy,
    platform: PlatformIdentity,
    /// Identifier of the quoting enclave on this machine.
    qe_id: [u8; 16],
    root_key_id: Hex<32>,
    /// What precedes the report in a quote.
    header: Vec<u8>,
    /// What follows the quote's signature in a quote: attestation key, its certification by the PCK, the PCK's chain.
    certification: Vec<u8>,
    tcb_state: TcbState,
}

impl std::fmt::Debug for EmulatedQuoting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmulatedQuoting").field("root_key_id", &self.root_key_id).finish_non_exhaustive()
    }
}

impl EmulatedQuoting {
    /// The quoting service of a machine, with its hierarchy in `state_dir`, usually the machine's own; made when there is
    /// none. Its quoting enclave takes three pages of the machine's EPC at most.
    ///
    /// # Errors
    /// [`QuotingError`] when the hierarchy cannot be read or made or is another machine's, or the machine does not launch
    /// the quoting enclave.
    pub fn open(machine: &Arc<Machine>, state_dir: &Path) -> Result<Self, QuotingError> {
        let platform = PlatformIdentity {
            ppid: half(machine.platform_secret("PPID")),
            instance: half(machine.platform_secret("platform instance")),
            cpu_svn: machine.cpu_svn(),
        };
        let enclave = QuotingEnclave::launch(machine)?;
        let hierarchy = Hierarchy::open(state_dir, &platform)?;
        let root_key_id = enclos_verifier::key_id(hierarchy.root_pem().as_bytes()).map_err(|error| {
            QuotingError::Malformed {
                path: state_dir.join(STATE_FILE),
                reason: format!("root certificate: {error}"),
            }
        })?;
        let qe_id: [u8; 16] = half(machine.platform_secret("quoting enclave"));
        // Intel's QE has 32 bytes of it too; some verifiers insist.
        let auth_data = machine.platform_secret("QE authentication data");
        Ok(Self {
            header: header(enclave.signer().2, &qe_id),
            certification: certification(&enclave, &hierarchy, &auth_data)?,
            enclave,
            hierarchy,
            platform,
            qe_id,
            root_key_id,
            tcb_state: TcbState::default(),
        })
    }

    /// The same with collateral that says this of its TCB.
    #[must_use]
    pub fn with_tcb_state(self, tcb_state: TcbState) -> Self {
        Self { tcb_state, ..self }
    }

    /// TARGETINFO of the quoting enclave: what EREPORT needs for a REPORT that can be quoted.
    pub fn target_info(&self) -> [u8; TARGETINFO] {
        self.enclave.target_info()
    }

    /// The quote of a REPORT: DCAP, version 3, ECDSA, with the PCK chain.
    ///
    /// # Errors
    /// [`QuotingError::Report`] when the REPORT is not from this machine, not for this quoting enclave, or altered.
    pub fn quote(&self, report: &[u8; REPORT]) -> Result<Vec<u8>, QuotingError> {
        if !self.enclave.verifies(report).map_err(QuotingError::ReportKey)? {
            return Err(QuotingError::Report);
        }
        let mut quote = [&self.header, &report[..REPORT_BODY]].concat();
        let signature = self.hierarchy.attestation.sign(&quote)?;
        quote.extend(length(signature.len() + self.certification.len()));
        quote.extend(signature);
        quote.extend(&self.certification);
        Ok(quote)
    }

    /// Bytes of every quote.
    fn quote_size(&self) -> usize {
        self.header.len() + REPORT_BODY + size_of::<u32>() + SIGNATURE + self.certification.len()
    }

    /// The attestation key: x and y.
    fn attestation_key(&self) -> &[u8] {
        self.hierarchy.attestation.public()
    }

    /// What a relying party needs to judge quotes of this platform at a time; valid for thirty days.
    ///
    /// # Errors
    /// [`QuotingError::Time`] when the certificates are not valid then.
    pub fn collateral(&self, time: Time) -> Result<Collateral, QuotingError> {
        collateral::collateral(&self.hierarchy, &self.enclave, &self.platform.cpu_svn, time, self.tcb_state)
    }

    /// SHA-256 of the root's SubjectPublicKeyInfo: what a policy names to accept this platform's evidence.
    pub fn root_key_id(&self) -> Hex<32> {
        self.root_key_id
    }

    /// The root certificate, PEM: what other verifiers are given.
    pub fn root_certificate(&self) -> &str {
        self.hierarchy.root_pem()
    }

    /// Chain of the PCK certificate: itself, platform CA, root; PEM.
    pub fn pck_chain(&self) -> String {
        self.hierarchy.pck_chain()
    }

    /// CPUSVN that the PCK certificate is for.
    pub fn cpu_svn(&self) -> [u8; 16] {
        self.platform.cpu_svn
    }
}

/// Why there is no quote, or no collateral.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuotingError {
    /// The REPORT's MAC is not right.
    #[error(
        "the REPORT is not for this quoting enclave: its MAC does not verify; it was made on another machine, for \
         another target, or altered on the way: make it by EREPORT with the TARGETINFO of this quoting service"
    )]
    Report,
    /// The machine gave no REPORT key.
    #[error("the emulated machine gives the quoting enclave no REPORT key: {0:?}")]
    ReportKey(KeyError),
    /// The machine did not launch the quoting enclave.
    #[error(
        "the emulated machine does not launch its quoting enclave: {0}; it needs 8 KiB of EPC, 64-bit enclaves, and \
         launch control that is not locked to another signer"
    )]
    Launch(#[source] PlatformError),
    /// The file system refused.
    #[error("{what} {}: {source}; give a state directory that you can write", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file is not what this version writes.
    #[error(
        "{} is not a state of the emulated quoting service ({reason}); remove it to start with a new root \
         (policies that name the old one will refuse new quotes)",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Others than the owner may read or write the file.
    #[error("{} has mode {mode:o}, it must be the owner's alone: run `chmod 600` on it", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The hierarchy belongs to a machine with other secrets.
    #[error(
        "{} belongs to another emulated machine; give each machine a state directory of its own, or remove the file to \
         start with a new root",
        path.display()
    )]
    OtherMachine {
        /// The file.
        path: PathBuf,
    },
    /// The emulated certificates are not valid then.
    #[error(
        "there is no collateral for {time}: the emulated platform's certificates are good from {first} to {last}"
    )]
    Time {
        /// The time asked for.
        time: Time,
        /// The first time possible.
        first: Time,
        /// The last time possible.
        last: Time,
    },
    /// A certificate or CRL could not be made.
    #[error("a certificate or CRL of the emulated hierarchy cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TCB info or QE identity could not be written as JSON.
    #[error("the emulated platform's reference values cannot be written: {0}")]
    Encoding(#[from] serde_json::Error),
    /// The system has no random numbers, without which there are no keys and signatures.
    #[error("the system gives no random numbers, without which nothing can be signed")]
    Random,
}

/// "Quote Header".
fn header(qe_svn: u16, qe_id: &[u8; 16]) -> Vec<u8> {
    let mut header = Vec::with_capacity(48);
    header.extend(QUOTE_VERSION.to_le_bytes());
    header.extend(ECDSA_P256.to_le_bytes());
    // Reserved in version 3; in later ones the TEE, of which 0 is SGX.
    header.extend([0; 4]);
    header.extend(qe_svn.to_le_bytes());
    header.extend(PCE_SVN.to_le_bytes());
    // Says how to read the signature data, not who made it; the certificates say that.
    header.extend(INTEL_QE_VENDOR_ID);
    // User data: the QE's identifier, padded.
    header.extend(qe_id);
    header.extend([0; 4]);
    header
}

/// "ECDSA 256-bit Quote Signature Data Structure" after the signature itself.
fn certification(
    enclave: &QuotingEnclave,
    hierarchy: &Hierarchy,
    auth_data: &[u8; 32],
) -> Result<Vec<u8>, QuotingError> {
    let attestation_key = hierarchy.attestation.public();
    let mut bound = [0; 64];
    bound[..32].copy_from_slice(digest(&SHA256, &[attestation_key, auth_data].concat()).as_ref());
    let qe_report = enclave.report_body(&bound);
    let pck_chain = hierarchy.pck_chain();
    let mut data = Vec::with_capacity(1024 + pck_chain.len());
    data.extend(attestation_key);
    data.extend(qe_report);
    data.extend(hierarchy.pck.sign(&qe_report)?);
    data.extend(&length(auth_data.len())[..2]);
    data.extend(auth_data);
    data.extend(PCK_CHAIN.to_le_bytes());
    data.extend(length(pck_chain.len()));
    data.extend(pck_chain.as_bytes());
    Ok(data)
}

/// A length as quotes write it. What is measured here has a few thousand bytes.
fn length(bytes: usize) -> [u8; 4] {
    (bytes as u32).to_le_bytes()
}

fn half(secret: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&secret[..16]);
    half
}
