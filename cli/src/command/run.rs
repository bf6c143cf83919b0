//! `enclos run`

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use enclos::abi::{LINUX_MAGIC, REPORT_MAGIC, REPORT_VARIABLE};
use enclos::quoting::QuotingServer;
use enclos_host::aesm::SOCKET_VARIABLE;
use enclos_host::{Enclave, PlatformChoice, StartError};
use enclos_platform::hardware::{self, Hardware};

use super::build::{self, Built};
use super::{Error, Outcome, say_identity};
use crate::project::Project;
use crate::quoting::{self, PrivateAesm, TcbStateOption};
use crate::ui::Ui;

const EXAMPLES: &str = "\
Examples:
  enclos run                          the project in this folder
  enclos run examples/vault -- list   arguments after -- go to the program
  enclos run --platform hardware      only on SGX hardware, or an error
  enclos run --mount /data=/srv/data  the host's directory for a mount of the manifest; may be repeated
  enclos run --stats                  say at the end what entered and left, and which Linux calls were made

A project with a host crate (`host/`) runs that program, with ENCLOS_IMAGE naming the image and ENCLOS_PLATFORM the
platform. A project without one is a plain program: it runs inside as it is, with this command's standard streams.";

/// Builds a project, says what it is and where it runs, and runs it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    #[command(flatten)]
    options: build::Options,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    /// Of a project without a host program: say at the end how often threads entered and left, and how many Linux calls
    /// were answered inside or needed the host
    #[arg(long)]
    stats: bool,
    /// Of a project without a host program: the directory for a mount of the manifest. Sealed mounts have one below
    /// .enclos/mounts in the project's folder if none is given
    #[arg(long, value_name = "PATH=DIRECTORY", value_parser = parse_mount)]
    mount: Vec<(String, PathBuf)>,
    /// Arguments of the program
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let project = Project::open(&args.project, ui)?;
    let built = build::image(&project, &args.options, ui)?;
    say_identity(&built.image, ui);
    let platform = resolve(args.platform)?;
    if platform == PlatformChoice::Hardware {
        ui.status("platform", "SGX hardware");
    } else {
        ui.warn("the platform is an emulated SGX CPU: it runs the same image, and protects nothing");
    }
    let aesm = aesm(&project, platform)?;
    match project.host() {
        Some(_) if args.stats => Err(Error::Usage(
            "--stats is for projects without a host program; a host program asks Enclave::statistics() itself".into(),
        )),
        Some(_) if !args.mount.is_empty() => Err(Error::Usage(
            "--mount is for projects without a host program; a host program calls Builder::mount itself".into(),
        )),
        Some(manifest) => run_host(&manifest, &built, platform, aesm.as_ref(), args, ui),
        None => {
            let mounts = mounts(&project, &args.mount)?;
            run_inside(&built, platform, aesm.as_ref(), mounts, args, ui)
        }
    }
}

/// Where quotes come from on the emulated platform, for images that may ask for them; unless the user names a place.
fn aesm(project: &Project, platform: PlatformChoice) -> Result<Option<PrivateAesm>, Error> {
    let attests = project.config.services.iter().any(|s| s.as_str() == "Quoting");
    let named = std::env::var_os(SOCKET_VARIABLE).is_some_and(|v| !v.is_empty());
    if platform != PlatformChoice::Emulated || !attests || named {
        return Ok(None);
    }
    PrivateAesm::serve(Arc::new(quoting::open(TcbStateOption::default())?)).map(Some)
}

/// What `auto` comes to on this machine.
///
/// # Errors
/// When hardware is asked for and not to be had.
pub(crate) fn resolve(choice: PlatformChoice) -> Result<PlatformChoice, Error> {
    let present = hardware::DEVICES.iter().any(|device| Path::new(device).exists());
    match choice {
        PlatformChoice::Emulated => Ok(choice),
        PlatformChoice::Auto if !present => Ok(PlatformChoice::Emulated),
        PlatformChoice::Auto | PlatformChoice::Hardware => {
            Hardware::open().map_err(StartError::from)?;
            Ok(PlatformChoice::Hardware)
        }
    }
}

fn run_host(
    manifest: &Path,
    built: &Built,
    platform: PlatformChoice,
    aesm: Option<&PrivateAesm>,
    args: &Args,
    ui: Ui,
) -> Outcome {
    ui.status("building", "the host program");
    let program = build::cargo_binary(manifest, ui)?;
    ui.status("running", program.display());
    let mut command = Command::new(&program);
    command.args(&args.arguments).env("ENCLOS_IMAGE", &built.path);
    command.env("ENCLOS_PLATFORM", name_of(platform)).envs(aesm.map(PrivateAesm::variable));
    let status =
        command.status().map_err(|source| Error::Spawn { program: program.display().to_string(), source })?;
    Ok(exit_code(status))
}

fn run_inside(
    built: &Built,
    platform: PlatformChoice,
    aesm: Option<&PrivateAesm>,
    mounts: Vec<(String, PathBuf)>,
    args: &Args,
    ui: Ui,
) -> Outcome {
    for (path, directory) in &mounts {
        ui.status("mount", format_args!("{path} from {}", directory.display()));
    }
    ui.status("running", built.path.display());
    let linux = Arc::new(Mutex::new(Vec::new()));
    let seen = linux.clone();
    let mut builder = Enclave::builder(built.path.as_path())
        .platform(platform)
        .args(args.arguments.iter().map(String::as_str))
        .envs(std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?))))
        .stdin(BufReader::new(io::stdin()));
    if let Some(aesm) = aesm {
        builder = builder.service(QuotingServer::new(aesm.client()));
    }
    for (path, directory) in mounts {
        builder = builder.mount(path, directory);
    }
    if args.stats {
        builder = builder.env(REPORT_VARIABLE, "1").log(move |level, text| match parse_linux_calls(text) {
            Some(calls) => *seen.lock().unwrap_or_else(PoisonError::into_inner) = calls,
            None if text.starts_with(REPORT_MAGIC) => {}
            None => eprintln!("[enclave] {level:?}: {text}"),
        });
    }
    let enclave = builder.start()?;
    let status = enclave.wait().map_err(Error::End);
    if args.stats {
        let calls = std::mem::take(&mut *linux.lock().unwrap_or_else(PoisonError::into_inner));
        say_statistics(&enclave, calls, ui);
    }
    Ok(ExitCode::from(status? as u8))
}

fn parse_mount(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((path, directory)) if path.starts_with('/') && !directory.is_empty() => {
            Ok((path.to_owned(), directory.into()))
        }
        _ => Err("write the mount's path, an equals sign and a directory: /data=/srv/data".to_owned()),
    }
}

/// The directories for a project's mounts: those given, and default ones for sealed files, which are made.
fn mounts(project: &Project, given: &[(String, PathBuf)]) -> Result<Vec<(String, PathBuf)>, Error> {
    let wanted = &project.config.mounts;
    if let Some((path, _)) = given.iter().find(|(path, _)| !wanted.iter().any(|m| &m.path == path)) {
        return Err(Error::Usage(format!(
            "enclos.toml has no mount {path}; it has: {}",
            wanted.iter().map(|m| m.path.as_str()).collect::<Vec<_>>().join(", ")
        )));
    }
    let mut all = Vec::new();
    for mount in wanted {
        let directory = match given.iter().find(|(path, _)| *path == mount.path) {
            Some((_, directory)) => directory.clone(),
            None if mount.kind.is_sealed() => {
                let directory = project.folder.join(".enclos/mounts").join(mount.path[1..].replace('/', "-"));
                std::fs::create_dir_all(&directory)
                    .map_err(|source| Error::Write { path: directory.clone(), source })?;
                directory
            }
            // ENODEV inside, and a log record that says why: the program may do without.
            None => continue,
        };
        all.push((mount.path.clone(), directory));
    }
    Ok(all)
}

/// Number of a Linux call, how often it was made, and how often it needed the host.
type LinuxCall = (u64, u64, u64);

/// Reads the runtime's record (`enclos::abi::LINUX_MAGIC`).
fn parse_linux_calls(text: &str) -> Option<Vec<LinuxCall>> {
    let call = |word: &str| {
        let (number, counts) = word.split_once('=')?;
        let (made, passed) = counts.split_once('/')?;
        Some((number.parse().ok()?, made.parse().ok()?, passed.parse().ok()?))
    };
    text.strip_prefix(LINUX_MAGIC)?.split_ascii_whitespace().map(call).collect()
}

/// On standard error: standard output is the program's.
fn say_statistics(enclave: &Enclave, mut calls: Vec<LinuxCall>, ui: Ui) {
    let s = enclave.statistics();
    ui.status(
        "crossings",
        format_args!(
            "{} EENTER, {} ERESUME, {} exceptions; {} requests to the host",
            s.eenter, s.eresume, s.exceptions, s.host_calls
        ),
    );
    if calls.is_empty() {
        ui.warn(
            "the runtime told no Linux calls: it does when the program exits, and only with stdio = true",
        );
    }
    calls.sort_by_key(|(number, made, passed)| (std::cmp::Reverse((*passed, *made)), *number));
    for (number, made, passed) in calls {
        let name = crate::linux_calls::name(number).map_or_else(|| format!("call {number}"), str::to_owned);
        ui.status(&name, format_args!("{} inside, {passed} passed out", made.saturating_sub(passed)));
    }
}

/// The status of a child as our own: as a shell does it, 128 and the number for a signal.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    ExitCode::from(code as u8)
}

fn name_of(choice: PlatformChoice) -> &'static str {
    match choice {
        PlatformChoice::Auto => "auto",
        PlatformChoice::Hardware => "hardware",
        PlatformChoice::Emulated => "emulated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read() {
        assert_eq!(parse_mount("/a=b=c"), Ok(("/a".to_owned(), "b=c".into())));
        assert!(["a=b", "/a", "/a="].into_iter().all(|t| parse_mount(t).is_err()));
    }

    #[test]
    fn the_runtimes_record_is_read() {
        assert_eq!(parse_linux_calls("ENCLOS-LINUX 0=5/3 202=7/0"), Some(vec![(0, 5, 3), (202, 7, 0)]));
        assert_eq!(parse_linux_calls("ENCLOS-LINUX"), Some(vec![]));
        assert_eq!(parse_linux_calls("ENCLOS-LINUX 0=5"), None);
        assert_eq!(parse_linux_calls("ENCLOS-CALLS direct=1"), None);
    }
}
