//! `enclos attestation-service`

use std::path::PathBuf;
use std::process::ExitCode;

use enclos_attestation_service::{Config, StartError, serve_file};
use serde_json::json;

use super::{Outcome, say_json, write};
use crate::ui::{Ui, say};

const AFTER_HELP: &str = "\
Examples:
  enclos attestation-service --example > service.toml   # a configuration to begin with, explained
  enclos attestation-service --check service.toml       # is it usable? (starts nothing)
  enclos attestation-service service.toml               # serve until interrupt or SIGTERM
  curl http://127.0.0.1:8080/openapi.json               # what there is to be asked

Serves attest, policies, certificates, certs, tcbbaselines and openid-configuration as Azure Attestation does, besides
/openapi.json, /metrics (Prometheus) and /health. Without [authentication] or [tls] it serves on loopback only.

Logs are JSON lines on standard error. They have neither bodies, queries nor headers.

Environment:
  ENCLOS_LOG    what is logged: error, warn, info, debug, or by module (default: info; with --quiet: error)";

/// Serves Azure Attestation's REST interface over local appraisal of SGX, TDX and SEV-SNP evidence.
///
/// Its SDKs and relying parties work with it unmodified. Collateral comes from a folder, policies and signing keys are
/// in a store of its own or in PostgreSQL: nothing is asked of the network but what the configuration names.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The configuration, TOML; paths in it are relative to it
    #[arg(value_name = "CONFIG", required_unless_present = "example")]
    config: Option<PathBuf>,
    /// Read and check the configuration, and serve nothing
    #[arg(long)]
    check: bool,
    /// Print a configuration to begin with; with CONFIG, write it there unless the file exists
    #[arg(long, conflicts_with = "check")]
    example: bool,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let Some(path) = &args.config else {
        say!("{}", EXAMPLE.trim_end());
        return Ok(ExitCode::SUCCESS);
    };
    if args.example {
        if path.exists() {
            return Err(super::Error::Usage(format!(
                "{} is there already; name another file, or remove it",
                path.display()
            )));
        }
        write(path, EXAMPLE.as_bytes())?;
        ui.status("wrote", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    if args.check {
        let config = Config::read(path).map_err(StartError::from)?;
        let hosts: Vec<_> = config.tenants.iter().map(|tenant| &tenant.host).collect();
        if ui.json() {
            say_json(&json!({
                "listen": config.listen,
                "tls": config.tls.is_some(),
                "authentication": config.authentication.is_some(),
                "tenants": hosts,
            }));
        } else {
            ui.status("usable", path.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    ui.status("serving", format_args!("as {} says; interrupt to stop", path.display()));
    serve_file(path, if ui.quiet() { "error" } else { "info" })?;
    Ok(ExitCode::SUCCESS)
}

const EXAMPLE: &str = include_str!("attestation_service.toml");
