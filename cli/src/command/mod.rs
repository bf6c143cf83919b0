//! The commands, one file each: its arguments, and what it does.

#[cfg(not(all(feature = "attestation-service", feature = "inference")))]
mod absent;
pub(crate) mod aesm;
#[cfg(feature = "attestation-service")]
pub(crate) mod attestation_service;
pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod connect;
pub(crate) mod doctor;
pub(crate) mod image;
#[cfg(feature = "inference")]
pub(crate) mod infer;
#[cfg(feature = "inference")]
pub(crate) mod inference;
#[cfg(feature = "inference")]
pub(crate) mod inference_proxy;
pub(crate) mod inspect;
#[cfg(feature = "inference")]
pub(crate) mod key_broker;
pub(crate) mod keygen;
#[cfg(feature = "inference")]
pub(crate) mod model;
pub(crate) mod new;
pub(crate) mod pccs;
pub(crate) mod quote;
pub(crate) mod run;
pub(crate) mod sign;
pub(crate) mod verify;

#[cfg(not(feature = "attestation-service"))]
pub(crate) use self::absent::attestation_service;
#[cfg(not(feature = "inference"))]
pub(crate) use self::absent::{
    inference, inference as infer, inference as inference_proxy, inference as key_broker, inference as model,
};

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enclos::quoting::NoQuote;
use enclos_host::{CallError, ConnectError, End, StartError};
use enclos_pack::{BuildError, ConfigError, ImageError, SignError};
use enclos_platform::emulator::machine::StateError;
use enclos_quoting::QuotingError;
use enclos_verifier::{CollateralError, CollateralMismatch, PolicyError};

use crate::embedded::WriteError;
use crate::ui::{Ui, say};

/// What a command comes to.
pub(crate) type Outcome = Result<ExitCode, Error>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Unpack(#[from] WriteError),
    #[error("{} is not a project: it has no enclos.toml; name the project's folder, or make one with `enclos new`", path.display())]
    NoProject { path: PathBuf },
    #[error("{} is not there: build it with `enclos build`", path.display())]
    NotBuilt { path: PathBuf },
    #[error(
        "the runtime did not tell what it refused: the program did not come to its end ({ended}); try a longer --patience, or arguments after --"
    )]
    NoReport { ended: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{} is not usable", path.display())]
    Image { path: PathBuf, source: ImageError },
    #[error("the enclave cannot be built")]
    Build(#[from] BuildError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error(transparent)]
    Oci(#[from] enclos_pack::oci::OciError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the enclave cannot be reached")]
    Connect(#[from] ConnectError),
    #[error("a call into the enclave failed")]
    Call(#[from] CallError),
    #[error("the enclave gives no evidence")]
    NoQuote(#[from] CallError<NoQuote>),
    #[error(transparent)]
    Machine(#[from] StateError),
    #[error(transparent)]
    Quoting(#[from] QuotingError),
    #[error("cannot make the socket {}: {source}; if another one listens there, use that or name another path", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot listen at {address}: {source}; choose another port (0: any that is free)")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("{} is no evidence: {reason}", path.display())]
    NoEvidence { path: PathBuf, reason: String },
    #[error("{} is not usable", path.display())]
    Policy { path: PathBuf, source: PolicyError },
    #[error("{} is no collateral", path.display())]
    Collateral { path: PathBuf, source: CollateralError },
    #[error("there is no collateral at {}: name it with --collateral, or a provisioning service with --pccs; `enclos quote --collateral` writes that of the emulated platform", path.display())]
    NoCollateral { path: PathBuf },
    #[cfg(feature = "pccs")]
    #[error("the provisioning service gives no collateral: {0}")]
    Provisioning(String),
    #[error(transparent)]
    Mismatch(#[from] CollateralMismatch),
    #[error("the enclave did not end by itself: {0}")]
    End(End),
    #[cfg(feature = "attestation-service")]
    #[error("the attestation service cannot serve")]
    Service(#[from] enclos_attestation_service::StartError),
    #[cfg(feature = "inference")]
    #[error("the inference service cannot serve")]
    Inference(#[from] enclos_inference_host::ServeError),
    #[cfg(feature = "inference")]
    #[error(transparent)]
    KeyStore(#[from] enclos_key_broker::store::StoreError),
    #[cfg(feature = "inference")]
    #[error(transparent)]
    Jwe(#[from] enclos_key_broker::jwe::JweError),
    #[cfg(feature = "inference")]
    #[error(transparent)]
    KeyRecord(#[from] enclos_key_broker::audit::AuditError),
    #[cfg(feature = "inference")]
    #[error("the key broker cannot serve")]
    Broker(#[from] enclos_key_broker::Refusal),
    #[cfg(feature = "inference")]
    #[error("the key broker cannot serve")]
    BrokerHttp(#[from] enclos_key_broker::http::ServeError),
    #[cfg(feature = "inference")]
    #[error(transparent)]
    Relay(#[from] enclos_key_broker::client::RelayError),
    #[cfg(feature = "inference")]
    #[error(transparent)]
    Proxy(#[from] enclos_inference_proxy::ProxyError),
    #[error("cannot start {program}: {source}; is it installed and in PATH?")]
    Spawn { program: String, source: io::Error },
    #[error("{what} failed; the messages above say why")]
    Cargo { what: String },
    #[error("{0}")]
    Peer(String),
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// What the command ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            #[cfg(feature = "inference")]
            Self::Proxy(enclos_inference_proxy::ProxyError::NoGateway { .. }) => 2,
            Self::End(End::Faulted { .. }) => 70,
            _ => 1,
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })
}

fn read_image(path: &Path) -> Result<enclos_pack::Image, Error> {
    enclos_pack::Image::parse(&read(path)?).map_err(|source| Error::Image { path: path.into(), source })
}

/// Hexadecimal digits of an option.
fn hexadecimal(option: &str, text: &str) -> Result<Vec<u8>, Error> {
    hex::decode(text).map_err(|e| Error::Usage(format!("{option} is not hexadecimal: {e}")))
}

/// Writes a file in one step: who reads it sees the old contents or the new.
pub(crate) fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    replace(path, contents).map_err(|source| Error::Write { path: path.into(), source })
}

/// The same, whoever else writes the same file: other processes and threads do, with one state folder.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}-{count}.partial", std::process::id()));
    let written = std::fs::write(&partial, contents).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// A result for programs: one line of JSON on standard output.
fn say_json(value: &impl serde::Serialize) {
    say!("{}", serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}")));
}

/// The identity of an image, for people.
fn say_identity(image: &enclos_pack::Image, ui: Ui) {
    let identity = image.identity();
    ui.status("MRENCLAVE", enclos_pack::sign::hex(&image.mrenclave()));
    if let Ok(signer) = image.verify() {
        ui.status("MRSIGNER", enclos_pack::sign::hex(&signer.mrsigner()));
    }
    ui.status(
        "identity",
        format_args!(
            "product {}, security version {}, {}",
            identity.product_id,
            identity.security_version,
            if identity.debug { "debug: readable by anyone on the machine" } else { "production (no debug)" }
        ),
    );
}

#[cfg(test)]
mod tests {
    /// As commands do that share a state folder.
    #[test]
    fn files_that_several_write_are_always_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::thread::scope(|scope| {
            for byte in 0..4_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        super::replace(path, &vec![byte; 100_000]).unwrap();
                        let read = std::fs::read(path).unwrap();
                        assert_eq!(read.len(), 100_000);
                        assert!(read.iter().all(|b| *b == read[0]));
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
