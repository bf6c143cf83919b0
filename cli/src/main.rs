//! The `enclos` command: make, build, sign, inspect and run enclaves.
//!
//! One file a command in `command`; `project` knows where things lie in a project, `embedded` what the command carries
//! with it, `ui` what people see.

#![forbid(unsafe_code)]

// `fuzzing` has fuzz targets take signatures for valid (verifier/src/crypto.rs). No command is ever built so.
#[cfg(fuzzing)]
compile_error!("the configuration `fuzzing` is for fuzz targets only");

mod command;
mod embedded;
mod gdb;
mod linux_calls;
mod project;
mod provisioning;
mod quoting;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::command::{
    aesm, attestation_service, bench, build, connect, doctor, image, infer, inference, inference_proxy,
    inspect, key_broker, keygen, model, new, pccs, quote, run, sign, verify,
};
use crate::ui::Ui;

const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    it failed; standard error names cause and cure
  2    wrong usage
  3    `doctor`: nothing here can run an enclave
  4    `verify`, `connect`, `infer`, `inference-proxy`: the evidence is refused
  70   `run`: the enclave ended by a fault
  Otherwise `run` ends with the exit code of the program it ran.

Environment:
  ENCLOS_AESM     socket that quotes come from (default: the platform's)
  ENCLOS_STATE    folder of the developer key and of the emulated machine
                  (default: $XDG_STATE_HOME/enclos, else ~/.local/state/enclos)
  NO_COLOR        no colours

Begin with:
  enclos new demo && cd demo && enclos run";

/// Builds, measures, signs and runs SGX enclaves written in ordinary Rust, on SGX hardware or an emulated SGX CPU.
#[derive(Debug, Parser)]
#[command(name = "enclos", version, after_help = AFTER_HELP, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Say only what went wrong
    #[arg(long, short, global = true)]
    quiet: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new project: contract, enclave, host program and a test
    New(new::Args),
    /// Build the enclave of a project into a measured and signed image
    Build(build::Args),
    /// Sign an image, in one step or in two with a key kept elsewhere
    Sign(sign::Args),
    /// Make a key that signs images
    Keygen(keygen::Args),
    /// Show what an image is: identity, layout, permissions, contracts
    Inspect(inspect::Args),
    /// Build a project and run it
    Run(run::Args),
    /// Write a container image (OCI) of a project
    Image(image::Args),
    /// Have an enclave attest: writes its quote
    Quote(quote::Args),
    /// Judge evidence by a policy, and say why
    Verify(verify::Args),
    /// Answer as AESM does, with quotes of the emulated platform
    Aesm(aesm::Args),
    /// Serve collateral of the emulated platform, as a PCCS does
    Pccs(pccs::Args),
    /// Say what this machine has and lacks for enclaves
    Doctor(doctor::Args),
    /// Connect to an attested TLS server, say what it is, and talk to it
    Connect(connect::Args),
    /// Serve ONNX models from an enclave: nobody but clients and the enclave sees requests
    Inference(inference::Args),
    /// Verify an inference service, then ask it, encrypted
    Infer(infer::Args),
    /// Encrypt a model for enclaves that a key broker releases its key to
    Model(model::Args),
    /// Release the keys of encrypted models to enclaves that meet their owner's policy
    KeyBroker(key_broker::Args),
    /// Speak the plain Open Inference Protocol on this machine; verify and encrypt underneath
    InferenceProxy(inference_proxy::Args),
    /// Measure what calls, Linux calls and starts cost on this machine
    Bench(bench::Args),
    /// Serve Azure Attestation's REST interface over local appraisal
    AttestationService(attestation_service::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ui = |json| Ui::new(cli.quiet, json);
    let outcome = match cli.command {
        Command::New(args) => new::run(&args, ui(false)),
        Command::Build(args) => build::run(&args, ui(args.json)),
        Command::Sign(args) => sign::run(&args, ui(args.json)),
        Command::Keygen(args) => keygen::run(&args, ui(args.json)),
        Command::Inspect(args) => inspect::run(&args, ui(args.json)),
        Command::Run(args) => run::run(&args, ui(false)),
        Command::Image(args) => image::run(&args, ui(args.json)),
        Command::Quote(args) => quote::run(&args, ui(args.json)),
        Command::Verify(args) => verify::run(&args, ui(args.json)),
        Command::Aesm(args) => aesm::run(&args, ui(args.json)),
        Command::Pccs(args) => pccs::run(&args, ui(args.json)),
        Command::Doctor(args) => doctor::run(&args, ui(args.json)),
        Command::Connect(args) => connect::run(&args, ui(args.json)),
        Command::Inference(args) => inference::run(&args, ui(args.json)),
        Command::Infer(args) => infer::run(&args, ui(args.json)),
        Command::Model(args) => model::run(&args, ui(args.json)),
        Command::KeyBroker(args) => key_broker::run(&args, ui(args.json)),
        Command::InferenceProxy(args) => inference_proxy::run(&args, ui(args.json)),
        Command::Bench(args) => bench::run(&args, ui(args.json)),
        Command::AttestationService(args) => attestation_service::run(&args, ui(args.json)),
    };
    outcome.unwrap_or_else(|e| {
        ui::error(&e);
        ExitCode::from(e.exit_code())
    })
}
