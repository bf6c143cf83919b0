//! `enclos aesm`

use std::path::PathBuf;
use std::sync::Arc;

use enclos_host::aesm::EMULATED_SOCKET;
use enclos_platform::emulator::machine::MachineConfig;
use enclos_quoting::AesmSocket;
use serde_json::json;

use super::{Error, Outcome, say_json};
use crate::quoting::{self, TcbStateOption};
use crate::ui::{Ui, say};

const EXAMPLES: &str = "\
Examples:
  enclos aesm                                        where hosts on the emulated platform look for it
  enclos aesm --socket /var/run/aesmd/aesm.socket    where software written for SGX nodes does

`enclos run` and `enclos quote` bring their own: this is for programs that are started otherwise. Quotes are of this
user's emulated platform and protect nothing. It runs until it is interrupted (Ctrl-C).";

/// Answer as AESM does, with quotes of the emulated platform.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where the socket is made; default: aesm.socket in the state folder
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where it is, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let path = args.socket.clone().unwrap_or_else(|| MachineConfig::state_dir().join(EMULATED_SOCKET));
    let quoting = Arc::new(quoting::open(TcbStateOption::default())?);
    let described = quoting::described(&quoting);
    let _socket = AesmSocket::serve(&path, Arc::clone(&quoting))
        .map_err(|source| Error::Socket { path: path.clone(), source })?;
    if ui.json() {
        say_json(&json!({ "socket": path, "platform": described }));
    } else {
        say!("{}", path.display());
    }
    ui.status("serving", format_args!("quotes under the emulated root {}", quoting.root_key_id()));
    ui.warn("the platform is emulated: these quotes protect nothing");
    loop {
        std::thread::park();
    }
}
