//! `enclos attestation-service`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use enclos::quoting::QuotingServer;
use enclos_attestation_service::engine::{
    Configuration, ConfigurationServer, EngineClient, InEnclave, NotKept, RecordsServer, Settings,
};
use enclos_attestation_service::store::RecordFile;
use enclos_attestation_service::{Config, SharedEngine, StartError, serve_file, serve_file_with};
use enclos_host::{Enclave, PlatformChoice};
use serde_json::json;

use super::run::resolve;
use super::{Error, Outcome, build, read_image, say_identity, say_json, write};
use crate::project::Project;
use crate::quoting::{self, PrivateAesm, TcbStateOption};
use crate::ui::{Ui, say};

const AFTER_HELP: &str = "\
Examples:
  enclos attestation-service --example > service.toml   # a configuration to begin with, explained
  enclos attestation-service --check service.toml       # is it usable? (starts nothing)
  enclos attestation-service service.toml               # serve until interrupt or SIGTERM
  curl http://127.0.0.1:8080/openapi.json               # what there is to be asked
  enclos attestation-service service.toml --enclave attestation-service.enclave
  enclos attestation-service service.toml --enclave services/attestation/enclave    # its project: built first

Serves attest, policies, certificates, certs, tcbbaselines and openid-configuration as Azure Attestation does, besides
/openapi.json, /metrics (Prometheus) and /health. Without [authentication] or [tls] it serves on loopback only.

With --enclave, appraisal, policies and signing keys are inside an enclave; HTTP, TLS and files stay outside. The certificates
in /certs then carry evidence of the enclave that holds their keys, which `enclos verify` checks:
  curl http://127.0.0.1:8080/certs > certs.json
  enclos verify certs.json --policy policy.toml --collateral collateral.json
docs/decisions/0005 says what the host of such a service can still do.

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
    /// Have the signing keys, and what decides what is signed, in this enclave: an image, or the project it is built from
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["check", "example"])]
    enclave: Option<PathBuf>,
    /// auto, hardware or emulated; of --enclave
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
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
                "demands": config.demands(),
                "demands_digest": config.demands().digest(),
            }));
        } else {
            ui.status("usable", path.display());
            ui.status(
                "demands",
                format_args!("{} (SHA-256, as in evidence of --enclave)", config.demands().digest()),
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let level = if ui.quiet() { "error" } else { "info" };
    let serving = || ui.status("serving", format_args!("as {} says; interrupt to stop", path.display()));
    let Some(image) = &args.enclave else {
        serving();
        serve_file(path, level)?;
        return Ok(ExitCode::SUCCESS);
    };
    let host = EnclaveHost::prepare(image, args.platform, ui)?;
    serving();
    serve_file_with(path, level, move |config, settings| host.start(config, settings))?;
    Ok(ExitCode::SUCCESS)
}

/// What is needed to start the engine's enclave.
struct EnclaveHost {
    image: PathBuf,
    platform: PlatformChoice,
    aesm: Option<PrivateAesm>,
}

impl EnclaveHost {
    fn prepare(image: &Path, platform: PlatformChoice, ui: Ui) -> Result<Self, Error> {
        let image = match image.is_dir() {
            true => build::image(&Project::open(image, ui)?, &build::Options::default(), ui)?.path,
            false => image.to_owned(),
        };
        say_identity(&read_image(&image)?, ui);
        let platform = resolve(platform)?;
        let aesm = match platform {
            PlatformChoice::Emulated => {
                ui.warn("the platform is an emulated SGX CPU: it runs the same image, and protects nothing");
                Some(PrivateAesm::serve(Arc::new(quoting::open(TcbStateOption::default())?))?)
            }
            _ => None,
        };
        Ok(Self { image, platform, aesm })
    }

    /// Starts the enclave, which opens its sealed records and has its signing key attested.
    fn start(self, config: &Config, settings: Settings) -> Result<SharedEngine, StartError> {
        let Some(folder) = &config.data else {
            return Err(no_engine(Error::Usage(
                "records sealed in an enclave are for one machine: give the configuration data, a folder, in place of [postgres]"
                    .into(),
            )));
        };
        let settings = serde_json::to_vec(&settings).map_err(no_engine)?;
        let mut builder = Enclave::builder(self.image.as_path())
            .platform(self.platform)
            .service(ConfigurationServer::new(Told(settings)))
            .service(RecordsServer::new(RecordFile::open(folder)?));
        if let Some(aesm) = &self.aesm {
            builder = builder.service(QuotingServer::new(aesm.client()));
        }
        let enclave = builder.start().map_err(no_engine)?;
        let client = enclave.connect::<EngineClient<_>>().map_err(no_engine)?;
        Ok(Arc::new(InEnclave::new(client, (enclave, self.aesm))))
    }
}

fn no_engine(error: impl std::error::Error + Send + Sync + 'static) -> StartError {
    StartError::Engine(Box::new(error))
}

/// What the enclave is told.
struct Told(Vec<u8>);

impl Configuration for Told {
    fn settings(&self) -> Result<Vec<u8>, NotKept> {
        Ok(self.0.clone())
    }
}

const EXAMPLE: &str = include_str!("attestation_service.toml");
