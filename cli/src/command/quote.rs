//! `enclos quote`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use enclos::quoting::{AttesterClient, QuotingServer, REPORT_DATA};
use enclos_host::{Enclave, PlatformChoice};
use enclos_verifier::{Bytes, Policy, Quote};
use serde_json::json;

use super::{Error, Outcome, build, read_image, run::resolve, say_json, write};
use crate::embedded;
use crate::project::Project;
use crate::provisioning::Provisioning;
use crate::quoting::{self, PrivateAesm, TcbStateOption};
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  enclos quote --nonce 00112233                          of a small enclave that enclos brings along
  enclos quote --nonce 00112233 demo.enclave -o demo.quote
  enclos quote --nonce 00112233 --collateral collateral.json --root root.pem
  enclos verify quote.bin --collateral collateral.json --nonce 00112233

The small enclave shows what this machine's evidence looks like. An image or project of yours has to serve the contract
`Attester` (enclos::quoting); enclaves that attest to their keys do so by contracts of their own.

On the emulated platform --tcb-state says how the collateral describes it, to see what a policy does. On hardware,
collateral comes from your provisioning service: --pccs.";

/// Start an enclave and have it attest: writes its quote.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group(clap::ArgGroup::new("data").required(true)))]
pub(crate) struct Args {
    /// An image, or a project's folder; default: a small enclave that attests to anything
    image: Option<PathBuf>,
    /// Hexadecimal digits, up to 64 bytes, that the report data begins with; zeros follow
    #[arg(long, value_name = "HEX", group = "data")]
    nonce: Option<String>,
    /// All 64 bytes of report data, hexadecimal
    #[arg(long, value_name = "HEX", group = "data")]
    report_data: Option<String>,
    /// Where the quote goes
    #[arg(long, short, value_name = "FILE", default_value = "quote.bin")]
    output: PathBuf,
    /// Write the platform's collateral here, for `enclos verify`: the emulated one's own, or what --pccs gives
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    #[command(flatten)]
    provisioning: Provisioning,
    /// Write the emulated root certificate (PEM) here
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// What the collateral says of the platform's TCB
    #[arg(long, value_enum, value_name = "STATE", default_value_t)]
    tcb_state: TcbStateOption,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let report_data = report_data(args)?;
    let platform = resolve(args.platform)?;
    let emulated = platform == PlatformChoice::Emulated;
    if !emulated && (args.root.is_some() || (args.collateral.is_some() && args.provisioning.pccs.is_none())) {
        return Err(Error::Usage(
            "--root is of the emulated platform; on hardware --collateral needs --pccs, your provisioning service".into(),
        ));
    }
    if args.provisioning.pccs.is_some() && args.collateral.is_none() {
        return Err(Error::Usage(
            "--pccs fetches collateral: say with --collateral where it is to go".into(),
        ));
    }
    let path = match &args.image {
        None => build::embedded_image("attester", embedded::ATTESTER, ui)?.path,
        Some(path) if path.is_dir() => {
            build::image(&Project::open(path, ui)?, &build::Options::default(), ui)?.path
        }
        Some(path) => path.clone(),
    };
    let image = read_image(&path)?;
    let quoting = match emulated {
        true => Some(Arc::new(quoting::open(args.tcb_state)?)),
        false => None,
    };
    let quote = {
        let _waiting = ui.wait("asking the enclave for evidence");
        evidence(&path, platform, quoting.as_ref(), &report_data)?
    };
    write(&args.output, &quote)?;
    if let Some(path) = &args.collateral {
        // Whether it is genuine is for `verify`, which knows the roots to trust.
        let unusable = |e: enclos_verifier::QuoteError| Error::NoEvidence {
            path: args.output.clone(),
            reason: e.to_string(),
        };
        let parsed = Quote::parse(&quote).map_err(unusable)?;
        let fetched = args.provisioning.collateral(&parsed, &Policy::default())?;
        match (fetched, &quoting) {
            (Some(fetched), _) => write(path, &quoting::json(&fetched)?)?,
            (None, Some(quoting)) => write(path, &quoting::collateral_json(quoting)?)?,
            (None, None) => {}
        }
    }
    if let (Some(quoting), Some(path)) = (&quoting, &args.root) {
        quoting::write_root(quoting, path)?;
    }
    if ui.json() {
        say_json(&json!({
            "quote": args.output,
            "bytes": quote.len(),
            "report_data": Bytes(report_data.to_vec()),
            "mrenclave": enclos_pack::sign::hex(&image.mrenclave()),
            "platform": quoting.as_deref().map(quoting::described),
            "collateral": args.collateral,
            "root_certificate": args.root,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    super::say_identity(&image, ui);
    ui.status("quote", format_args!("{} ({} bytes)", args.output.display(), quote.len()));
    if let Some(path) = &args.collateral {
        ui.status("collateral", path.display());
    }
    if let Some(quoting) = &quoting {
        ui.status("root", format_args!("{} (SHA-256 of its key)", quoting.root_key_id()));
        ui.warn("the platform is emulated: this quote proves nothing, and verifiers refuse it unless told its root");
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the image and has it attest.
fn evidence(
    image: &Path,
    platform: PlatformChoice,
    quoting: Option<&Arc<enclos_quoting::EmulatedQuoting>>,
    report_data: &[u8; REPORT_DATA],
) -> Result<Vec<u8>, Error> {
    let aesm = quoting.map(|quoting| PrivateAesm::serve(Arc::clone(quoting))).transpose()?;
    let mut builder = Enclave::builder(image).platform(platform);
    if let Some(aesm) = &aesm {
        builder = builder.service(QuotingServer::new(aesm.client()));
    }
    let enclave = builder.start()?;
    let attester = enclave.connect::<AttesterClient<_>>()?;
    let quote = attester.evidence(report_data)?;
    // Its evidence has been given; how it ends does not matter.
    let _ = enclave.shutdown(Duration::from_secs(5));
    Ok(quote)
}

fn report_data(args: &Args) -> Result<[u8; REPORT_DATA], Error> {
    let (name, text) = match (&args.nonce, &args.report_data) {
        (Some(nonce), _) => ("--nonce", nonce),
        (_, Some(data)) => ("--report-data", data),
        (None, None) => return Err(Error::Usage("give --nonce or --report-data".into())),
    };
    let bytes = super::hexadecimal(name, text)?;
    let fits = match args.nonce {
        Some(_) => (1..=REPORT_DATA).contains(&bytes.len()),
        None => bytes.len() == REPORT_DATA,
    };
    if !fits {
        let wanted = if args.nonce.is_some() { "1 to 64" } else { "exactly 64" };
        return Err(Error::Usage(format!("{name} has {} bytes; it must have {wanted}", bytes.len())));
    }
    let mut data = [0; REPORT_DATA];
    data[..bytes.len()].copy_from_slice(&bytes);
    Ok(data)
}
