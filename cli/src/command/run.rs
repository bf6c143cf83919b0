//! `enclos run`

use std::ffi::OsString;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use enclos::manifest::{Mount, items};
use enclos::quoting::QuotingServer;
use enclos_host::aesm::SOCKET_VARIABLE;
use enclos_host::{Enclave, PlatformChoice, STATISTICS_VARIABLE, StartError, Summary};
use enclos_pack::Image;
use enclos_platform::hardware::{self, Hardware};
use signal_hook::iterator::Signals;

use super::build::{self, Built, HostBuild};
use super::{Error, Outcome, read_image, say_identity};
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
  enclos run --gdb                    under gdb, with the symbols of what runs inside (needs debug = true)
  enclos run vault.enclave -- list    a plain program's image as it is, nothing is built

A project with a host crate (`host/`) runs that program, with ENCLOS_IMAGE naming the image and ENCLOS_PLATFORM the
platform. A project without one is a plain program: it runs inside as it is, with this command's standard streams, and
is passed the signals that `signals` in enclos.toml lists.

gdb is the program that ENCLOS_GDB names, else `gdb`. For processes started otherwise: docs/debugging.md.";

/// Builds a project, says what it is and where it runs, and runs it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The project's folder, or an image
    #[arg(default_value = ".")]
    project: PathBuf,
    #[command(flatten)]
    options: build::Options,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    /// Say at the end of each enclave how often threads entered and left, and how many Linux calls were answered inside
    /// or needed the host
    #[arg(long)]
    stats: bool,
    /// Of a project without a host program: the directory for a mount of the manifest. Sealed mounts have one below
    /// .enclos/mounts in the project's folder if none is given
    #[arg(long, value_name = "PATH=DIRECTORY", value_parser = parse_mount)]
    mount: Vec<(String, PathBuf)>,
    /// Start under gdb, on the emulated platform; breakpoints in the enclave work
    #[arg(long, conflicts_with = "stats")]
    gdb: bool,
    /// Arguments of the program
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let (built, host, folder) = if args
        .project
        .extension()
        .is_some_and(|e| e == enclos_pack::image::EXTENSION)
    {
        if args.options.key.is_some() || args.options.output.is_some() {
            return Err(Error::Usage(
                "--key and --output are for projects, which are built; to sign an image: enclos sign".into(),
            ));
        }
        let image = read_image(&args.project)?;
        (Built { path: args.project.clone(), image, gdb_script: None }, None, None)
    } else {
        let project = Project::open(&args.project, ui)?;
        if args.gdb && !project.config.debug {
            return Err(Error::Usage(format!(
                "{} is not a debug image, whose memory no debugger may read: set debug = true in {}. That is measured: \
                 the image is then another one, and must not be given secrets",
                project.config.name.as_str(),
                enclos_pack::config::FILE_NAME
            )));
        }
        let host = project.host();
        if host.is_some() && !args.mount.is_empty() {
            return Err(Error::Usage(
                "--mount is for projects without a host program; a host program calls Builder::mount itself"
                    .into(),
            ));
        }
        let host = host.map(HostBuild::start);
        (build::image(&project, &args.options, ui)?, host, Some(project.folder))
    };
    say_identity(&built.image, ui);
    let platform = resolve(args.platform)?;
    if platform == PlatformChoice::Hardware {
        ui.status("platform", "SGX hardware");
    } else {
        ui.warn("the platform is an emulated SGX CPU: it runs the same image, and protects nothing");
    }
    let mounts = match host {
        Some(_) => Vec::new(),
        None => mounts(&built.image, folder.as_deref(), &args.mount)?,
    };
    if args.gdb {
        return run_gdb(host, &built, platform, mounts, args, ui);
    }
    let aesm = aesm(&built.image, platform)?;
    match host {
        Some(host) => run_host(host, &built, platform, aesm.as_ref(), args, ui),
        None => run_inside(&built, platform, aesm.as_ref(), mounts, args, ui),
    }
}

/// Where quotes come from on the emulated platform, for images that may ask for them; unless the user names a place.
fn aesm(image: &Image, platform: PlatformChoice) -> Result<Option<PrivateAesm>, Error> {
    let attests = items(image.manifest().services).any(|s| s == "Quoting");
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
    host: HostBuild,
    built: &Built,
    platform: PlatformChoice,
    aesm: Option<&PrivateAesm>,
    args: &Args,
    ui: Ui,
) -> Outcome {
    ui.status("building", "the host program");
    let program = host.finish(ui)?;
    ui.status("running", program.display());
    let mut command = Command::new(&program);
    command.args(&args.arguments);
    let statistics = args.stats.then(StatisticsFile::new).transpose()?;
    command.envs(statistics.as_ref().map(|file| (STATISTICS_VARIABLE, file.0.path())));
    let status = run_command(command, built, platform, aesm);
    if let Some(file) = statistics {
        file.say(ui)?;
    }
    status
}

/// Runs the host program, or this command with the image, under gdb.
fn run_gdb(
    host: Option<HostBuild>,
    built: &Built,
    platform: PlatformChoice,
    mounts: Vec<(String, PathBuf)>,
    args: &Args,
    ui: Ui,
) -> Outcome {
    let Some(script) = &built.gdb_script else {
        return Err(Error::Usage(
            "--gdb needs the project: an image file has not the symbols. Name the project's folder".into(),
        ));
    };
    if platform == PlatformChoice::Hardware {
        return Err(Error::Usage(
            "--gdb is for the emulated platform: on SGX hardware gdb sees a thread inside at the exit pointer, not where \
             it is. Add --platform emulated"
                .into(),
        ));
    }
    let mut command = Command::new(std::env::var_os("ENCLOS_GDB").unwrap_or_else(|| "gdb".into()));
    command.args(["-q", "-iex", "set debuginfod enabled off", "-x"]).arg(script).arg("--args");
    match host {
        Some(host) => {
            ui.status("building", "the host program");
            command.arg(host.finish(ui)?);
        }
        None => {
            let this = std::env::current_exe();
            let this = this.map_err(|source| Error::Spawn { program: "enclos".into(), source })?;
            command.arg(this).args(["--quiet", "run"]).arg(&built.path);
            for (path, directory) in mounts {
                let mut mount = OsString::from(path + "=");
                mount.push(directory);
                command.arg("--mount").arg(mount);
            }
            command.arg("--");
        }
    }
    command.args(&args.arguments);
    ui.status(
        "debugging",
        "`break` in the enclave, then `run`; gdb learns where the enclave lies when it is loaded",
    );
    let aesm = aesm(&built.image, platform)?;
    run_command(command, built, platform, aesm.as_ref())
}

/// Runs a host program for an image to its end.
fn run_command(
    mut command: Command,
    built: &Built,
    platform: PlatformChoice,
    aesm: Option<&PrivateAesm>,
) -> Outcome {
    command.env("ENCLOS_IMAGE", &built.path);
    command.env("ENCLOS_PLATFORM", name_of(platform)).envs(aesm.map(PrivateAesm::variable));
    let status = command
        .status()
        .map_err(|source| Error::Spawn { program: command.get_program().display().to_string(), source })?;
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
    let statistics = args.stats.then(StatisticsFile::new).transpose()?;
    if let Some(file) = &statistics {
        builder = builder.statistics(file.0.path());
    }
    let enclave = builder.start()?;
    let status = waited(&enclave, built.image.manifest().signals)?;
    if let Some(file) = statistics {
        file.say(ui)?;
    }
    Ok(ExitCode::from(status? as u8))
}

/// Waits for the program's end and passes on to it the signals that its manifest permits; the others do to this process
/// what they always do.
fn waited(enclave: &Enclave, permitted: u64) -> Result<Result<i32, Error>, Error> {
    if permitted == 0 {
        return Ok(enclave.wait().map_err(Error::End));
    }
    let numbers = (1..64).filter(|number| permitted & (1 << (number - 1)) != 0);
    let mut received = Signals::new(numbers)
        .map_err(|source| Error::Usage(format!("cannot wait for signals to pass on: {source}")))?;
    let handle = received.handle();
    Ok(std::thread::scope(|scope| {
        scope.spawn(move || {
            for signal in received.forever() {
                // Of these numbers none is refused.
                let _ = enclave.signal(signal);
            }
        });
        let status = enclave.wait().map_err(Error::End);
        handle.close();
        status
    }))
}

fn parse_mount(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((path, directory)) if path.starts_with('/') && !directory.is_empty() => {
            Ok((path.to_owned(), directory.into()))
        }
        _ => Err("write the mount's path, an equals sign and a directory: /data=/srv/data".to_owned()),
    }
}

/// The directories for an image's mounts: those given, and default ones in the project's `folder` for sealed files, which
/// are made.
fn mounts(
    image: &Image,
    folder: Option<&Path>,
    given: &[(String, PathBuf)],
) -> Result<Vec<(String, PathBuf)>, Error> {
    let wanted: Vec<Mount<'_>> = items(image.manifest().mounts).filter_map(Mount::parse).collect();
    if let Some((path, _)) = given.iter().find(|(path, _)| !wanted.iter().any(|m| m.path == path)) {
        return Err(Error::Usage(format!(
            "the image has no mount {path}; it has: {}",
            wanted.iter().map(|m| m.path).collect::<Vec<_>>().join(", ")
        )));
    }
    let mut all = Vec::new();
    for Mount { path, kind } in wanted {
        let directory = match (given.iter().find(|(p, _)| p == path), folder) {
            (Some((_, directory)), _) => directory.clone(),
            (None, Some(folder)) if kind.is_sealed() => {
                // Mounts do not overlap, so neither do these.
                let directory = folder.join(".enclos/mounts").join(&path[1..]);
                std::fs::create_dir_all(&directory)
                    .map_err(|source| Error::Write { path: directory.clone(), source })?;
                directory
            }
            // ENODEV inside, and a log record that says why: the program may do without.
            (None, _) => continue,
        };
        all.push((path.to_owned(), directory));
    }
    Ok(all)
}

/// Where enclaves write what they did.
struct StatisticsFile(tempfile::NamedTempFile);

impl StatisticsFile {
    fn new() -> Result<Self, Error> {
        let failed = |source| Error::Write { path: std::env::temp_dir(), source };
        tempfile::NamedTempFile::new().map(Self).map_err(failed)
    }

    fn say(self, ui: Ui) -> Result<(), Error> {
        let path = self.0.path();
        let all = Summary::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
        if all.is_empty() {
            ui.warn("no enclave told what it did: the program started none, or ended without ending it");
        }
        all.into_iter().for_each(|summary| say_statistics(summary, ui));
        Ok(())
    }
}

/// On standard error: standard output is the program's.
fn say_statistics(summary: Summary, ui: Ui) {
    let s = summary.statistics;
    let interrupts = match s.asynchronous_exits {
        Some(all) => format!("{} for interrupts", all.saturating_sub(s.exceptions)),
        None => "those for interrupts are not seen".to_owned(),
    };
    ui.status(
        "crossings",
        format_args!(
            "{} EENTER, {} ERESUME; {} asynchronous exits for exceptions, {interrupts}; {} requests to the host",
            s.eenter, s.eresume, s.exceptions, s.host_calls
        ),
    );
    if s.pages_added != 0 {
        let mebibytes = |pages: u64| (pages * 4096) as f64 / f64::from(1 << 20);
        ui.status(
            "memory",
            format_args!(
                "{} pages added ({:.1} MiB), {} given back ({:.1} MiB)",
                s.pages_added,
                mebibytes(s.pages_added),
                s.pages_removed,
                mebibytes(s.pages_removed)
            ),
        );
    }
    let mut calls = summary.linux_calls;
    if calls.is_empty() {
        ui.warn(
            "the runtime told no Linux calls: it does when the program exits by itself, and only with stdio = true",
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
}
