//! `enclos build`

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use enclos_pack::sign::hex;
use enclos_pack::{Date, Image, Progress, SigningKey, build_application};
use enclos_platform::emulator::machine::MachineConfig;
use serde_json::json;

use super::{Error, Outcome, say_identity, say_json, write};
use crate::project::{Project, developer_key};
use crate::ui::{Bar, Ui};
use crate::{embedded, gdb};

const EXAMPLES: &str = "\
Examples:
  enclos build                                  signed with the developer key, which is made when there is none
  enclos build --key release-key.pem
  enclos build --unsigned                       to be signed elsewhere, see `enclos sign --help`

The image is written to target/enclos/<name>.enclave. The same sources, Cargo.lock and toolchain give the same
MRENCLAVE, in another folder and on another day.";

/// Builds the enclave of a project into a measured and signed image.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    #[command(flatten)]
    options: Options,
    /// Leave the image unsigned
    #[arg(long, conflicts_with = "key")]
    unsigned: bool,
    /// Results as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How images are built and signed.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Private key that signs the image (PEM); default: your developer key
    #[arg(long, value_name = "FILE", env = "ENCLOS_KEY")]
    pub(crate) key: Option<PathBuf>,
    /// Where the image goes; default: target/enclos/<name>.enclave
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// An image in memory, and where it was written.
pub(crate) struct Built {
    pub(crate) path: PathBuf,
    pub(crate) image: Image,
    /// Of a debug image: the script by which gdb finds its symbols.
    pub(crate) gdb_script: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let project = Project::open(&args.project, ui)?;
    let built = image_signed_by(&project, &args.options, !args.unsigned, ui)?;
    if ui.json() {
        let identity = built.image.identity();
        say_json(&json!({
            "image": built.path,
            "mrenclave": hex(&built.image.mrenclave()),
            "mrsigner": built.image.verify().ok().map(|k| hex(&k.mrsigner())),
            "product_id": identity.product_id,
            "security_version": identity.security_version,
            "debug": identity.debug,
            "gdb_script": built.gdb_script,
        }));
    } else {
        ui.status("image", built.path.display());
        say_identity(&built.image, ui);
        if let Some(script) = &built.gdb_script {
            ui.status("debugging", format_args!("gdb -x {} --args <host program>", script.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds, packs and signs the enclave of a project.
///
/// # Errors
/// When one of the steps fails.
pub(crate) fn image(project: &Project, options: &Options, ui: Ui) -> Result<Built, Error> {
    image_signed_by(project, options, true, ui)
}

/// Builds a project that this command carries with it, in the state directory: the next run finds it built.
///
/// # Errors
/// When it cannot be unpacked or built.
pub(crate) fn embedded_image(name: &str, files: &[(&str, &str)], ui: Ui) -> Result<Built, Error> {
    let project = embedded_project(name, files, ui)?;
    image(&project, &Options::default(), ui)
}

/// Unpacks such a project, and opens it.
///
/// # Errors
/// When it cannot be unpacked.
pub(crate) fn embedded_project(name: &str, files: &[(&str, &str)], ui: Ui) -> Result<Project, Error> {
    Project::open(&unpack(name, files)?, ui)
}

/// Unpacks a project that this command carries with it into the state directory, and returns where it is.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn unpack(name: &str, files: &[(&str, &str)]) -> Result<PathBuf, Error> {
    let version = embedded::version_of(files).replace(' ', "-");
    let folder = MachineConfig::state_dir().join(name).join(&version[..version.len().min(24)]);
    embedded::write_all(&folder, embedded::project(files, &[]))?;
    if !folder.join("Cargo.lock").exists() {
        embedded::write_all(&folder, [("Cargo.lock".to_owned(), embedded::LOCK.to_owned())])?;
    }
    // Project and SDK have versions of their own.
    embedded::unpack_sdk(&folder)?;
    Ok(folder)
}

fn image_signed_by(project: &Project, options: &Options, signed: bool, ui: Ui) -> Result<Built, Error> {
    let key = match (&options.key, signed) {
        (_, false) => None,
        (Some(path), true) => Some(SigningKey::load(path)?),
        (None, true) => Some(developer_key(ui)?),
    };
    ui.status("building", format_args!("the enclave of {}", project.config.name.as_str()));
    let mut image = {
        let mut display = Display::new(ui);
        build_application(&project.folder, &project.config, &mut |step| display.show(step))?
    };
    if let Some(key) = key {
        image.sign(&key, Date::today()?)?;
    }
    let path = options.output.clone().unwrap_or_else(|| project.image());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.into(), source })?;
    }
    write(&path, &image.to_file_bytes())?;
    let gdb_script = match image.identity().debug {
        true => Some(gdb::write_script(project, &image, &path)?),
        false => None,
    };
    Ok(Built { path, image, gdb_script })
}

/// Shows a build: a bar on a terminal, cargo's lines elsewhere; the compiler's diagnostics in any case.
pub(crate) struct Display {
    ui: Ui,
    bar: Option<Bar>,
    total: usize,
}

impl Display {
    pub(crate) fn new(ui: Ui) -> Self {
        Self { ui, bar: None, total: 0 }
    }

    pub(crate) fn show(&mut self, step: Progress) {
        match step {
            Progress::Packages(count) => self.total = count,
            Progress::Built { fresh: true, .. } => {}
            Progress::Built { package, .. } if self.ui.moves() => {
                self.bar.get_or_insert_with(|| self.ui.steps(self.total as u64)).step(&package);
            }
            Progress::Cargo(line) if !self.ui.moves() && !self.ui.quiet() && !self.ui.json() => {
                anstream::eprintln!("{line}");
            }
            Progress::Diagnostic(text) if !self.ui.quiet() => {
                let text = text.trim_end();
                match &self.bar {
                    Some(bar) => bar.aside(|| anstream::eprintln!("{text}")),
                    None => anstream::eprintln!("{text}"),
                }
            }
            Progress::Packing => {
                // The old bar has to go before the new one is drawn.
                self.bar = None;
                self.bar = Some(self.ui.wait("packing"));
            }
            _ => {}
        }
    }
}

/// A host program that is built while its enclave is: either compiler leaves a core idle at times.
pub(crate) struct HostBuild {
    manifest: PathBuf,
    /// Says nothing: what it would say is said by the build that finds its work done.
    ahead: Option<Child>,
}

impl HostBuild {
    /// Starts building the binary of a crate.
    pub(crate) fn start(manifest: PathBuf) -> Self {
        let mut command = cargo("build");
        command.arg("--quiet").arg("--manifest-path").arg(&manifest);
        let ahead = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok();
        Self { manifest, ahead }
    }

    /// Waits for the end, and says where the binary is.
    ///
    /// # Errors
    /// When cargo fails or there is no binary.
    pub(crate) fn finish(mut self, ui: Ui) -> Result<PathBuf, Error> {
        if let Some(mut child) = self.ahead.take() {
            let _bar = ui.wait("building the host program");
            let _ = child.wait();
        }
        let mut command = cargo("build");
        command.arg("--manifest-path").arg(&self.manifest);
        run_cargo(command, "building the host program", ui)
    }
}

impl Drop for HostBuild {
    /// The enclave failed: nobody waits for the host any more.
    fn drop(&mut self) {
        if let Some(mut child) = self.ahead.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `cargo <task> --release`, the cargo that runs us if one does. What that one says of our own package is not meant for the
/// build: build scripts look at it (ring's does, at `OUT_DIR` too), and with and without it by turns crates are built again and
/// again.
fn cargo(task: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let is_ours = |name: &str| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "OUT_DIR"
        };
        if name.to_str().is_some_and(is_ours) {
            command.env_remove(name);
        }
    }
    command.args([task, "--release", "--message-format=json-render-diagnostics"]);
    command
}

/// Runs a build; cargo's own progress and messages go to standard error. Returns the last binary it names.
fn run_cargo(mut command: Command, what: &str, ui: Ui) -> Result<PathBuf, Error> {
    if ui.quiet() || ui.json() {
        command.arg("--quiet");
    }
    let spawn = |source| Error::Spawn { program: "cargo".into(), source };
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().map_err(spawn)?;
    let mut program = None;
    if let Some(messages) = child.stdout.take() {
        for line in BufReader::new(messages).lines() {
            let line = line.map_err(spawn)?;
            // One JSON object a line (cargo reference, "External tools"); other lines are no messages.
            let Ok(message) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
            if let Some(path) = message["executable"].as_str() {
                program = Some(PathBuf::from(path));
            }
        }
    }
    let status = child.wait().map_err(spawn)?;
    match program {
        Some(program) if status.success() => Ok(program),
        None if status.success() => {
            Err(Error::Usage(format!("{what} gave no program: the crate has no binary (src/main.rs)")))
        }
        _ => Err(Error::Cargo { what: what.into() }),
    }
}
