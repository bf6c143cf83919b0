//! `enclos image`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enclos_pack::compile_host;
use enclos_pack::oci::{Container, label};
use serde_json::json;

use super::build::{self, Display};
use super::{Error, Outcome, read, say_identity, say_json};
use crate::embedded;
use crate::project::Project;
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  enclos image                              the project in this folder, as target/enclos/<name>.oci (a folder)
  enclos image --output vault.tar           an archive, for `skopeo copy oci-archive:…`, `podman load`, `ctr image import`
  enclos image --key release-key.pem --tag 1.2
  enclos inspect oci:target/enclos/vault.oci

The container holds the host program, linked statically, and the enclave; no base image, no shell. A plain program, a
project without host/, gets a host program that does what `enclos run` does. It runs as user 65532
in /var/lib/enclos, where its state goes: mount a volume there. On an SGX node give it /dev/sgx_enclave; without the device
it runs on the emulated CPU, which protects nothing, and says so.

The same sources, signing key and day give the same digest. SOURCE_DATE_EPOCH sets the day that the signature names and
the time that the image names.";

/// Writes a container image (OCI) of a project: its host program and its signed enclave. Needs no daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    /// Private key that signs the enclave (PEM); default: your developer key
    #[arg(long, value_name = "FILE", env = "ENCLOS_KEY")]
    key: Option<PathBuf>,
    /// Where the image goes: a folder, or an archive where the name ends with .tar
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Tag in the image's index
    #[arg(long, default_value = "latest")]
    tag: String,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let project = Project::open(&args.project, ui)?;
    let name = project.config.name.as_str();
    let host = match project.host() {
        Some(manifest) => manifest,
        None => build::unpack("runner", embedded::RUNNER)?.join("host/Cargo.toml"),
    };
    let created = created()?;
    let options = build::Options { key: args.key.clone(), output: None };
    let built = build::image(&project, &options, ui)?;
    say_identity(&built.image, ui);
    ui.status("building", "the host program, static");
    let program = {
        let mut display = Display::new(ui);
        compile_host(&host, &mut |step| display.show(step))?
    };
    let path = args.output.clone().unwrap_or_else(|| project.image().with_extension("oci"));
    let waiting = ui.wait("writing the container image");
    let container =
        Container { name, tag: &args.tag, host: &read(&program)?, enclave: &built.image, created }.build()?;
    match is_archive(&path) {
        true => container.write_archive(&path)?,
        false => container.write_folder(&path)?,
    }
    drop(waiting);
    if ui.json() {
        say_json(&json!({
            "image": path,
            "tag": args.tag,
            "digest": container.digest(),
            "mrenclave": enclos_pack::sign::hex(&built.image.mrenclave()),
            "mrsigner": built.image.verify().ok().map(|k| enclos_pack::sign::hex(&k.mrsigner())),
        }));
    } else {
        ui.status("digest", container.digest());
        ui.status(
            "container",
            format_args!("{} ({} and the like say what is inside)", path.display(), label::MRENCLAVE),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tar")
}

/// The time that the image names, if it is to name one.
fn created() -> Result<Option<u64>, Error> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|t| t.parse().ok());
    seconds.map(Some).ok_or_else(|| {
        Error::Usage(format!(
            "SOURCE_DATE_EPOCH is {text:?}, not a number of seconds since 1970: correct or unset it"
        ))
    })
}
