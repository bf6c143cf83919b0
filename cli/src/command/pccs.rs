//! `enclos pccs`

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;

use super::{Error, Outcome, say_json};
use crate::quoting::{self, TcbStateOption};
use crate::ui::{Ui, say};

const EXAMPLES: &str = "\
Examples:
  enclos pccs                                       at port 8081, as PCCS has it
  enclos pccs --listen 127.0.0.1:0                  at any free port, which is printed
  enclos pccs --tcb-state out-of-date --root root.pem

Point software written for SGX nodes there (`pccs_url` in sgx_default_qcnl.conf, PCCS_URL), and give its verifier the
root certificate that --root writes. It runs until it is interrupted (Ctrl-C).";

/// Serve collateral of the emulated platform, as a PCCS does.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Address and port; port 0: any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// What is said of the platform's TCB
    #[arg(long, value_enum, value_name = "STATE", default_value_t)]
    tcb_state: TcbStateOption,
    /// Write the emulated root certificate (PEM) here
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Where it is, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let quoting = Arc::new(quoting::open(args.tcb_state)?);
    if let Some(path) = &args.root {
        quoting::write_root(&quoting, path)?;
    }
    let failed = |source| Error::Listen { address: args.listen, source };
    let listener = TcpListener::bind(args.listen).map_err(failed)?;
    let url = quoting::pccs_url(listener.local_addr().map_err(failed)?);
    if ui.json() {
        say_json(&json!({ "url": url, "platform": quoting::described(&quoting) }));
    } else {
        say!("{url}");
    }
    ui.status("serving", format_args!("collateral under the emulated root {}", quoting.root_key_id()));
    enclos_quoting::serve_pccs(listener, quoting, std::future::pending()).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
