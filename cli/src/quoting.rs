//! The emulated platform's quoting, as the commands need it: on this user's machine, with a socket if asked for.

use std::net::SocketAddr;
use std::sync::Arc;

use enclos_host::Kind;
use enclos_host::aesm::{Aesm, SOCKET_VARIABLE};
use enclos_pack::sign::hex;
use enclos_platform::emulator::machine::{Machine, MachineConfig};
use enclos_quoting::{AesmSocket, EmulatedQuoting, TcbState};
use enclos_verifier::{Collateral, Time};
use tempfile::TempDir;

use crate::command::Error;

/// What collateral says of the emulated platform, as an option.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum TcbStateOption {
    /// UpToDate
    #[default]
    UpToDate,
    /// SWHardeningNeeded, with an advisory
    HardeningNeeded,
    /// OutOfDate, with an advisory
    OutOfDate,
    /// Revoked, with an advisory
    Revoked,
}

impl From<TcbStateOption> for TcbState {
    fn from(option: TcbStateOption) -> Self {
        match option {
            TcbStateOption::UpToDate => Self::UpToDate,
            TcbStateOption::HardeningNeeded => Self::SwHardeningNeeded,
            TcbStateOption::OutOfDate => Self::OutOfDate,
            TcbStateOption::Revoked => Self::Revoked,
        }
    }
}

/// The quoting service of this user's emulated machine; made when there is none.
///
/// # Errors
/// When its state cannot be read or made.
pub(crate) fn open(state: TcbStateOption) -> Result<EmulatedQuoting, Error> {
    let machine = Machine::new(&MachineConfig::default())?;
    Ok(EmulatedQuoting::open(&machine, &MachineConfig::state_dir())?.with_tcb_state(state.into()))
}

/// AESM of the emulated platform on a socket that only this user can reach, for as long as it is kept.
pub(crate) struct PrivateAesm {
    // Dropped first: it removes its file from the folder.
    socket: AesmSocket,
    _folder: TempDir,
}

impl PrivateAesm {
    /// Serves on a socket of its own.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub(crate) fn serve(quoting: Arc<EmulatedQuoting>) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("enclos-").tempdir();
        let folder = folder.map_err(|source| Error::Write { path: std::env::temp_dir(), source })?;
        let path = folder.path().join(enclos_host::aesm::EMULATED_SOCKET);
        let socket = AesmSocket::serve(&path, quoting).map_err(|source| Error::Socket { path, source })?;
        Ok(Self { socket, _folder: folder })
    }

    /// The environment variable that leads hosts to it.
    pub(crate) fn variable(&self) -> (&'static str, &std::path::Path) {
        (SOCKET_VARIABLE, self.socket.path())
    }

    /// The way to it.
    pub(crate) fn client(&self) -> Aesm {
        Aesm::at(self.socket.path(), Kind::Emulated)
    }
}

/// What relying parties need to be told of an emulated platform, for programs.
pub(crate) fn described(quoting: &EmulatedQuoting) -> serde_json::Value {
    serde_json::json!({
        "emulated": true,
        "emulated_root": quoting.root_key_id(),
        "mrenclave_of_quoting_enclave": hex(&quoting.target_info()[..32]),
    })
}

/// Writes the emulated platform's root certificate, PEM.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_root(quoting: &EmulatedQuoting, path: &std::path::Path) -> Result<(), Error> {
    crate::command::write(path, quoting.root_certificate().as_bytes())
}

/// Collateral of the present, as JSON.
///
/// # Errors
/// When the certificates are not valid now.
pub(crate) fn collateral_json(quoting: &EmulatedQuoting) -> Result<Vec<u8>, Error> {
    json(&quoting.collateral(Time::now())?)
}

/// Collateral as it lies in files.
///
/// # Errors
/// When it cannot be serialized.
pub(crate) fn json(collateral: &Collateral) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(collateral).map_err(|e| Error::Usage(e.to_string()))
}

/// An address of PCCS as software for SGX nodes is configured with it.
pub(crate) fn pccs_url(address: SocketAddr) -> String {
    format!("http://{address}/sgx/certification/v4/")
}
