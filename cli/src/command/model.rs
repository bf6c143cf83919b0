//! `enclos model`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enclos_key_broker::jwe::{self, ContentKey};
use enclos_key_broker::store::{StoreError, key_from_jwk};
use enclos_pack::sign::hex;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Error, Outcome, key_broker, read, say_json, write};
use crate::ui::Ui;

const AFTER_HELP: &str = "\
Examples:
  enclos model encrypt digits.onnx --key digits --policy policy.toml     makes the key in the broker's store, if it is not there
  enclos model encrypt digits.onnx --key digits -o /srv/digits.onnx.jwe
  enclos model encrypt digits.onnx --key digits --jwk key.jwk            with a key from a file; no store is looked at
  enclos model decrypt digits.onnx.jwe -o digits.onnx
  enclos inference --model digits.onnx.jwe --key-broker http://127.0.0.1:8095

An encrypted model is a JSON Web Encryption (RFC 7516) in compact serialization: alg dir, enc A256GCM. Its header, in the open,
names the key. Clients of the service know the model by the SHA-256 of the plain file, which is said here.";

/// Encrypt a model for enclaves that its owner's key broker releases the key to.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The key broker's store: a folder [default: key-broker in the state folder]
    #[arg(long, value_name = "FOLDER", global = true)]
    store: Option<PathBuf>,
    /// Use the key in this file, a JSON Web Key, and no store
    #[arg(long, value_name = "FILE", global = true, conflicts_with = "store")]
    jwk: Option<PathBuf>,
    /// Results as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Encrypt a file
    Encrypt {
        /// An ONNX file
        model: PathBuf,
        /// Where to [default: MODEL with .jwe behind it]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Name of the key
        #[arg(long, value_name = "NAME")]
        key: String,
        /// If there is no such key, make one with this policy, TOML
        #[arg(long, value_name = "FILE", conflicts_with = "jwk")]
        policy: Option<PathBuf>,
    },
    /// Decrypt a file
    Decrypt {
        /// An encrypted model
        model: PathBuf,
        /// Where to
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let (output, key_id, sha256) = match &args.command {
        Command::Encrypt { model, output, key, policy } => {
            let output = output.clone().unwrap_or_else(|| {
                let mut name = model.as_os_str().to_owned();
                name.push(".jwe");
                name.into()
            });
            let content = read(model)?;
            if jwe::is_jwe(&content) {
                return Err(Error::Usage(format!("{} is encrypted already", model.display())));
            }
            let content_key = key_of(args, key, policy.as_deref(), ui)?;
            let _waiting = ui.wait("encrypting");
            let sha256 = hex(&Sha256::digest(&content));
            let jwe = jwe::encrypt(content, key, &content_key)?;
            write(&output, jwe.as_bytes())?;
            (output, key.clone(), sha256)
        }
        Command::Decrypt { model, output } => {
            let jwe = read(model)?;
            let key_id = jwe::key_id(&jwe)?;
            let key = key_of(args, &key_id, None, ui)?;
            let _waiting = ui.wait("decrypting");
            let content = jwe::decrypt(&jwe, &key_id, &key)?;
            write(output, &content)?;
            (output.clone(), key_id, hex(&Sha256::digest(&*content)))
        }
    };
    ui.status("wrote", format_args!("{}, with the key {key_id}", output.display()));
    ui.status("model", format_args!("SHA-256 {sha256} (of the plain file)"));
    if ui.json() {
        say_json(&json!({ "output": output, "key": key_id, "sha256": sha256 }));
    }
    Ok(ExitCode::SUCCESS)
}

fn key_of(args: &Args, name: &str, policy: Option<&Path>, ui: Ui) -> Result<ContentKey, Error> {
    if let Some(path) = &args.jwk {
        return Ok(key_from_jwk(&read(path)?)?);
    }
    let store = key_broker::open(args.store.as_deref())?;
    match (store.key(name), policy) {
        (Ok(key), _) if key.revoked.is_some() && matches!(args.command, Command::Encrypt { .. }) => {
            Err(Error::Usage(format!("the key {name} was revoked: encrypt with another one")))
        }
        (Ok(key), None) => Ok(key.key),
        (Ok(key), Some(path)) => match read(path)? == key.policy_text.as_bytes() {
            true => Ok(key.key),
            false => Err(Error::Usage(format!(
                "there is a key {name} with another policy than {}: leave --policy out to use it, or name another key",
                path.display()
            ))),
        },
        (Err(StoreError::Unknown { .. }), Some(policy)) => {
            Ok(key_broker::add(&store, name, None, policy, ui)?.key)
        }
        (Err(StoreError::Unknown { .. }), None) => Err(Error::Usage(format!(
            "there is no key {name} in {}: give --policy to make one, or --jwk",
            store.folder().display()
        ))),
        (Err(e), _) => Err(e.into()),
    }
}
