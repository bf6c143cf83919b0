//! `enclos keygen`

use std::path::PathBuf;
use std::process::ExitCode;

use enclos_pack::SigningKey;
use enclos_pack::sign::hex;
use serde_json::json;

use super::{Outcome, say_json, write};
use crate::ui::Ui;

/// Makes an RSA-3072 key with public exponent 3, as SGX demands, in a file that only you can read.
///
/// Whoever has the key can sign images that read what yours sealed. Keep it off shared machines; `enclos sign` also
/// takes signatures made elsewhere (`enclos sign --help`).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enclos keygen release-key.pem\n  enclos keygen release-key.pem --public release-key.pub.pem"
)]
pub(crate) struct Args {
    /// Where the private key goes (PKCS #8 PEM); never overwritten
    file: PathBuf,
    /// Where the public key goes too
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let waiting = ui.wait("making an RSA-3072 key");
    let key = SigningKey::generate()?;
    drop(waiting);
    key.write_new(&args.file)?;
    if let Some(path) = &args.public {
        write(path, key.public().to_pem()?.as_bytes())?;
    }
    let mrsigner = hex(&key.public().mrsigner());
    if ui.json() {
        say_json(&json!({ "key": args.file, "public": args.public, "mrsigner": mrsigner }));
    } else {
        ui.status("wrote", args.file.display());
        ui.status("MRSIGNER", mrsigner);
    }
    Ok(ExitCode::SUCCESS)
}
