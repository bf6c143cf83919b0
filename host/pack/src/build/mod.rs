//! Builds an application for the inside, with the machine's cargo, and packs it.
//!
//! The same sources, `Cargo.lock` and toolchain (the C library and linker included) give the same bytes in any folder,
//! on any day and under any user. What stands in the way of that, and what is done about it here:
//! - paths in panic messages and `file!()`, of Rust and C: prefixes are mapped;
//! - the identity that cargo gives to path dependencies outside of the workspace: a wrapper around rustc replaces it;
//! - variables of the environment that change flags or profiles: removed;
//! - the linker's build id: left out;
//! - incremental compilation: off.
//!
//! What remains is the application's to avoid: build scripts that record paths or the time, and
//! `env!("CARGO_MANIFEST_DIR")`.

pub(crate) mod environment;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use serde::Deserialize;

use crate::config::{self, Config, ConfigError};
use crate::{Image, PackError, PackInput, pack};
use environment::{STATIC_PIE, TARGET};

/// What a build is doing, for a progress display.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// How many packages there are at most.
    Packages(usize),
    /// A package has been built; `fresh`: it was already.
    Built {
        /// Its name.
        package: String,
        /// Was it up to date?
        fresh: bool,
    },
    /// A diagnostic of the compiler, as it would print it (several lines, with colours).
    Diagnostic(String),
    /// A line that cargo wrote for people.
    Cargo(String),
    /// Compiling is done, packing begins.
    Packing,
}

/// Builds the enclave of the project in a folder (the one of `enclos.toml`), and packs it; the image is unsigned.
///
/// # Errors
/// When the project cannot be read, cargo fails, or the program cannot be packed.
pub fn build_application(
    project: &Path,
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<Image, BuildError> {
    let program = compile(project, config, progress)?;
    progress(Progress::Packing);
    let app = std::fs::read(&program).map_err(|source| BuildError::File { path: program, source })?;
    Ok(pack(&PackInput { runtime: crate::runtime(), app: &app, config })?)
}

/// Builds the enclave's program only, and returns where it is.
///
/// # Errors
/// As [`build_application`].
pub fn compile(
    project: &Path,
    config: &Config,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, BuildError> {
    let program = Program {
        manifest: &crate_dir(project, config)?.join("Cargo.toml"),
        bin: config.build.bin.as_deref(),
        features: &config.build.features,
        target_dir: ENCLAVE_DIR,
        debug: config.debug,
        flags: &[],
    };
    program.compile(progress)
}

/// Folders of source files, each with the name that it has in the debug information of the enclave's program. Where
/// several match a path, the last counts.
///
/// # Errors
/// When the project cannot be read.
pub fn source_folders(project: &Path, config: &Config) -> Result<Vec<(PathBuf, String)>, BuildError> {
    let metadata = metadata(&cargo_path(), &crate_dir(project, config)?.join("Cargo.toml"))?;
    Ok(metadata.folders(&metadata.target_directory.join(ENCLAVE_DIR)))
}

/// Builds a host program for a container: like the enclave's, static and the same in any folder and on any day.
/// Returns where it is.
///
/// # Errors
/// As [`build_application`].
pub fn compile_host(manifest: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, BuildError> {
    let manifest = manifest
        .canonicalize()
        .map_err(|source| BuildError::File { path: manifest.to_path_buf(), source })?;
    let program = Program {
        manifest: &manifest,
        bin: None,
        features: &[],
        // Flags are no part of the names of files there: in one folder with enclaves, each would have the other built again.
        target_dir: "container",
        debug: false,
        flags: &["-Cstrip=debuginfo"],
    };
    program.compile(progress)
}

/// Where enclaves are built, below cargo's target folder.
const ENCLAVE_DIR: &str = "enclave";

/// A program to be built reproducibly.
struct Program<'a> {
    manifest: &'a Path,
    /// Which of the package's binaries, if it has several.
    bin: Option<&'a str>,
    features: &'a [String],
    /// Below cargo's target folder.
    target_dir: &'a str,
    /// With all debug information, whatever the project's profile says?
    debug: bool,
    /// Besides those that every such program gets.
    flags: &'a [&'a str],
}

impl Program<'_> {
    fn compile(&self, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, BuildError> {
        let manifest = self.manifest;
        let cargo = cargo_path();
        let metadata = metadata(&cargo, manifest)?;
        let package = metadata.package(manifest)?;
        let bin = package.binary(self.bin)?;
        progress(Progress::Packages(metadata.packages.len()));

        let target_dir = metadata.target_directory.join(self.target_dir);
        let wrapper = write_wrapper(&target_dir)?;
        let folders = metadata.folders(&target_dir);
        let mut flags: Vec<OsString> = STATIC_PIE.map(OsString::from).into();
        flags.extend(self.flags.iter().map(OsString::from));
        flags.push("-Clink-arg=-Wl,--build-id=none".into());
        let mut c_flags = OsString::new();
        for (from, to) in &folders {
            let mut pair = from.clone().into_os_string();
            pair.push("=");
            pair.push(to);
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(&pair);
            flags.push(flag);
            // Separated by spaces: a folder with one cannot be mapped there.
            if !pair.as_encoded_bytes().contains(&b' ') {
                c_flags.push("-ffile-prefix-map=");
                c_flags.push(&pair);
                c_flags.push(" ");
            }
        }
        let mut command = Command::new(&cargo);
        environment::clean(&mut command);
        command
            .args(["build", "--release", "--message-format=json-diagnostic-rendered-ansi"])
            .args(["--target", TARGET, "--bin", bin])
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(&target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join(std::ffi::OsStr::new("\x1f")))
            .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "false")
            .env("CFLAGS", &c_flags)
            .env("CXXFLAGS", &c_flags)
            .env("RUSTC_WRAPPER", wrapper)
            .env("ENCLOS_WORKSPACE", &metadata.workspace_root);
        if self.debug {
            command.env("CARGO_PROFILE_RELEASE_DEBUG", "full").env("CARGO_PROFILE_RELEASE_STRIP", "none");
            command.env("CARGO_PROFILE_RELEASE_SPLIT_DEBUGINFO", "off");
        }
        if !self.features.is_empty() {
            command.arg("--features").arg(self.features.join(","));
        }
        run(command, progress)?.ok_or_else(|| BuildError::NoProgram { manifest: manifest.to_path_buf() })
    }
}

/// Where the enclave's crate is.
fn crate_dir(project: &Path, config: &Config) -> Result<PathBuf, BuildError> {
    let path = match &config.build.crate_dir {
        Some(folder) => project.join(folder),
        None if project.join("enclave/Cargo.toml").is_file() => project.join("enclave"),
        None => project.to_path_buf(),
    };
    path.canonicalize().map_err(|source| BuildError::File { path, source })
}

/// The cargo that runs us if one does, else the one on the path.
fn cargo_path() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Runs the build and reports what it says. Returns the executable it made.
fn run(mut command: Command, progress: &mut dyn FnMut(Progress)) -> Result<Option<PathBuf>, BuildError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| BuildError::Cargo { source })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (sender, receiver) = mpsc::channel();
    let mut program = None;
    let mut last_words = String::new();
    thread::scope(|scope| {
        let for_errors = sender.clone();
        scope.spawn(move || send_lines(stdout, false, &sender));
        scope.spawn(move || send_lines(stderr, true, &for_errors));
        for (is_error, line) in receiver {
            if is_error {
                if line.starts_with("error") {
                    last_words = line.clone();
                }
                progress(Progress::Cargo(line));
                continue;
            }
            // One JSON object a line (cargo reference, "External tools"); what build scripts print is not.
            match serde_json::from_str(&line) {
                Ok(Message::Artifact { target, executable, fresh }) => {
                    if executable.is_some() {
                        program = executable;
                    }
                    progress(Progress::Built { package: target.name, fresh });
                }
                Ok(Message::Diagnostic { message: Rendered { rendered: Some(text) } }) => {
                    progress(Progress::Diagnostic(text));
                }
                _ => {}
            }
        }
    });
    let status = child.wait().map_err(|source| BuildError::Cargo { source })?;
    if status.success() { Ok(program) } else { Err(BuildError::Failed { status, last_words }) }
}

fn send_lines(from: Option<impl Read>, is_error: bool, to: &mpsc::Sender<(bool, String)>) {
    for line in from.into_iter().flat_map(|f| BufReader::new(f).lines()).map_while(Result::ok) {
        // The receiver lives until both senders are gone.
        let _ = to.send((is_error, line));
    }
}

/// A line of `--message-format=json`.
#[derive(Deserialize)]
#[serde(tag = "reason")]
enum Message {
    #[serde(rename = "compiler-artifact")]
    Artifact { target: Target, executable: Option<PathBuf>, fresh: bool },
    #[serde(rename = "compiler-message")]
    Diagnostic { message: Rendered },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Rendered {
    rendered: Option<String>,
}

/// What `cargo metadata` says.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    /// Absent: it comes from a path.
    source: Option<String>,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    default_run: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    #[serde(default)]
    kind: Vec<String>,
}

fn metadata(cargo: &Path, manifest: &Path) -> Result<Metadata, BuildError> {
    let mut command = Command::new(cargo);
    environment::clean(&mut command);
    command.args(["metadata", "--format-version=1", "--filter-platform", TARGET]);
    let run = command.arg("--manifest-path").arg(manifest).stdin(Stdio::null()).output();
    let run = run.map_err(|source| BuildError::Cargo { source })?;
    if !run.status.success() {
        let text = String::from_utf8_lossy(&run.stderr).trim().to_owned();
        return Err(BuildError::Failed { status: run.status, last_words: text });
    }
    serde_json::from_slice(&run.stdout).map_err(|e| BuildError::Metadata { message: e.to_string() })
}

impl Metadata {
    fn package(&self, manifest: &Path) -> Result<&Package, BuildError> {
        let found = self.packages.iter().find(|p| p.manifest_path == manifest);
        found.ok_or_else(|| BuildError::NoProgram { manifest: manifest.to_path_buf() })
    }

    /// Folders whose paths may end up in the program, with what stands there instead. Later ones count more.
    fn folders(&self, target_dir: &Path) -> Vec<(PathBuf, String)> {
        let rustc = std::env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from);
        let mut folders = environment::folders(&rustc);
        for package in self.packages.iter().filter(|p| p.source.is_none()) {
            if let Some(folder) = package.manifest_path.parent()
                && !folder.starts_with(&self.workspace_root)
            {
                folders.push((folder.to_path_buf(), format!("/path/{}-{}", package.name, package.version)));
            }
        }
        folders.push((self.workspace_root.clone(), "/project".to_owned()));
        folders.push((target_dir.to_path_buf(), "/target".to_owned()));
        folders
    }
}

impl Package {
    fn binary(&self, wanted: Option<&str>) -> Result<&str, BuildError> {
        let bins: Vec<&str> = self
            .targets
            .iter()
            .filter(|t| t.kind.iter().any(|k| k == "bin"))
            .map(|t| t.name.as_str())
            .collect();
        match (wanted.or(self.default_run.as_deref()), &bins[..]) {
            (Some(name), _) => bins.iter().find(|b| **b == name).copied(),
            (None, [only]) => Some(*only),
            (None, _) => None,
        }
        .ok_or_else(|| BuildError::WhichBinary {
            package: self.name.clone(),
            wanted: wanted.map(str::to_owned),
            bins: bins.iter().map(|b| (*b).to_owned()).collect(),
        })
    }
}

/// Writes the wrapper around rustc into the target folder.
fn write_wrapper(target_dir: &Path) -> Result<PathBuf, BuildError> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = target_dir.join("rustc-wrapper.sh");
    let text = include_str!("rustc-wrapper.sh");
    let failed = |source| BuildError::File { path: path.clone(), source };
    // Cargo builds everything again when the file changes.
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(path);
    }
    std::fs::create_dir_all(target_dir).map_err(failed)?;
    // Renamed into place: another build may be executing it.
    let new = target_dir.join(format!("rustc-wrapper.{}", std::process::id()));
    std::fs::write(&new, text).map_err(failed)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    std::fs::rename(&new, &path).map_err(failed)?;
    Ok(path)
}

/// Why an application could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or folder.
    #[error("{}: {source}; check `crate` under [build] in {}", path.display(), config::FILE_NAME)]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Cargo does not run.
    #[error("cannot run cargo: {source}; install Rust from https://rustup.rs")]
    Cargo {
        /// Why.
        source: std::io::Error,
    },
    /// Cargo failed.
    #[error("cargo failed ({status}): {last_words}")]
    Failed {
        /// Its exit status.
        status: ExitStatus,
        /// The last line with an error.
        last_words: String,
    },
    /// `cargo metadata` said something else than expected.
    #[error("cannot read what `cargo metadata` says ({message}): update enclos or cargo")]
    Metadata {
        /// What is wrong.
        message: String,
    },
    /// Several binaries, or none.
    #[error(
        "package {package} has {}: name one of them as `bin` under [build] in {}",
        describe(wanted.as_deref(), bins), config::FILE_NAME
    )]
    WhichBinary {
        /// The package.
        package: String,
        /// The one asked for.
        wanted: Option<String>,
        /// Those there are.
        bins: Vec<String>,
    },
    /// No executable came out.
    #[error("{} gives no program: the crate needs a src/main.rs", manifest.display())]
    NoProgram {
        /// Its manifest.
        manifest: PathBuf,
    },
    /// Packing failed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

fn describe(wanted: Option<&str>, bins: &[String]) -> String {
    match (wanted, bins) {
        (_, []) => "no binary (src/main.rs)".to_owned(),
        (Some(name), _) => format!("no binary {name:?}, only {}", bins.join(", ")),
        (None, _) => format!("several binaries, {}", bins.join(", ")),
    }
}
