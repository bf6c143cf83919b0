//! `enclos sign`

use std::path::PathBuf;
use std::process::ExitCode;

use enclos_pack::sign::hex;
use enclos_pack::{Date, SigningKey, VerifyingKey};
use serde_json::json;

use super::{Error, Outcome, read, read_image, say_identity, say_json, write};
use crate::ui::Ui;

const EXAMPLES: &str = "\
In one step:
  enclos sign vault.enclave --key release-key.pem

In two, with a key in an HSM or on another machine:
  enclos sign vault.enclave --emit-body vault.body
  openssl dgst -sha256 -sign key.pem -out vault.sig vault.body     # there
  enclos sign vault.enclave --attach vault.sig --body vault.body --public-key key.pub.pem

  With a device that signs digests: --emit-digest writes the SHA-256 of the same body; keep the body as well.";

/// Signs an image. An earlier signature is replaced.
///
/// A signature is RSA-3072 with public exponent 3, PKCS #1 v1.5 and SHA-256, over a body of 256 bytes that holds the
/// measurement, product id, security version and the attributes the image may be launched with.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The image
    image: PathBuf,
    /// Private key (PEM)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["emit_body", "emit_digest", "attach"])]
    key: Option<PathBuf>,
    /// Write the 256 bytes to be signed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "attach"])]
    emit_body: Option<PathBuf>,
    /// Write their SHA-256 (32 bytes)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "attach"])]
    emit_digest: Option<PathBuf>,
    /// Attach a signature made elsewhere (384 bytes, as openssl writes them)
    #[arg(long, value_name = "FILE", requires = "public_key", conflicts_with = "key")]
    attach: Option<PathBuf>,
    /// The body that was signed; without it the body of today (UTC)
    #[arg(long, value_name = "FILE", requires = "attach")]
    body: Option<PathBuf>,
    /// The signer's public key (PEM)
    #[arg(long, value_name = "FILE", requires = "attach")]
    public_key: Option<PathBuf>,
    /// Where the signed image goes; default: in place
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let mut image = read_image(&args.image)?;
    let date = Date::today()?;
    if args.emit_body.is_some() || args.emit_digest.is_some() {
        let digest = image.signing_digest(date);
        if let Some(path) = &args.emit_body {
            write(path, &image.signing_body(date))?;
            ui.status("wrote", format_args!("{}: sign it with SHA-256 and PKCS #1 v1.5", path.display()));
        }
        if let Some(path) = &args.emit_digest {
            write(path, &digest)?;
            ui.status("wrote", format_args!("{}: SHA-256 of the body", path.display()));
        }
        if ui.json() {
            say_json(&json!({
                "mrenclave": hex(&image.mrenclave()),
                "body": args.emit_body,
                "digest": hex(&digest),
            }));
        }
        return Ok(ExitCode::SUCCESS);
    }
    match (&args.key, &args.attach, &args.public_key) {
        (Some(key), None, None) => image.sign(&SigningKey::load(key)?, date)?,
        (None, Some(signature), Some(public)) => {
            let body = match &args.body {
                Some(path) => read(path)?,
                None => image.signing_body(date).to_vec(),
            };
            image.attach_signature(&body, &VerifyingKey::load(public)?, &read(signature)?)?;
        }
        _ => return Err(Error::Usage("give --key, or --attach with --public-key, or --emit-body".into())),
    }
    let to = args.output.as_ref().unwrap_or(&args.image);
    write(to, &image.to_file_bytes())?;
    if ui.json() {
        say_json(&json!({
            "image": to,
            "mrenclave": hex(&image.mrenclave()),
            "mrsigner": hex(&image.verify()?.mrsigner()),
        }));
    } else {
        ui.status("signed", to.display());
        say_identity(&image, ui);
    }
    Ok(ExitCode::SUCCESS)
}
