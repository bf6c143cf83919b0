//! `enclos run`

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, PoisonError};

use enclos::abi::{LINUX_MAGIC, REPORT_MAGIC, REPORT_VARIABLE};
use enclos::quoting::QuotingServer;
use enclos_host::aesm::SOCKET_VARIABLE;
use enclos_host::{Enclave, PlatformChoice, StartError};
use enclos_pack::config::Signal;
use enclos_platform::hardware::{self, Hardware};
use signal_hook::iterator::Signals;

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
  enclos run --stats                  say at the end what entered and left, and which Linux calls were made

A project with a host crate (`host/`) runs that program, with ENCLOS_IMAGE naming the image and ENCLOS_PLATFORM the
platform. A project without one is a plain program: it runs inside as it is, with this command's standard streams, and
is passed the signals that `signals` in enclos.toml lists.";

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
        Some(manifest) => run_host(&manifest, &built, platform, aesm.as_ref(), args, ui),
        None => run_inside(&built, platform, aesm.as_ref(), &project.config.signals, args, ui),
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
    signals: &[Signal],
    args: &Args,
    ui: Ui,
) -> Outcome {
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
    if args.stats {
        builder = builder.env(REPORT_VARIABLE, "1").log(move |level, text| match parse_linux_calls(text) {
            Some(calls) => *seen.lock().unwrap_or_else(PoisonError::into_inner) = calls,
            None if text.starts_with(REPORT_MAGIC) => {}
            None => eprintln!("[enclave] {level:?}: {text}"),
        });
    }
    let enclave = builder.start()?;
    let status = waited(&enclave, signals)?;
    if args.stats {
        let calls = std::mem::take(&mut *linux.lock().unwrap_or_else(PoisonError::into_inner));
        say_statistics(&enclave, calls, ui);
    }
    Ok(ExitCode::from(status? as u8))
}

/// Waits for the program's end and passes on to it the signals that its manifest permits; the others do to this process
/// what they always do.
fn waited(enclave: &Enclave, signals: &[Signal]) -> Result<Result<i32, Error>, Error> {
    if signals.is_empty() {
        return Ok(enclave.wait().map_err(Error::End));
    }
    let numbers = signals.iter().map(|s| s.number() as i32);
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
    fn the_runtimes_record_is_read() {
        assert_eq!(parse_linux_calls("ENCLOS-LINUX 0=5/3 202=7/0"), Some(vec![(0, 5, 3), (202, 7, 0)]));
        assert_eq!(parse_linux_calls("ENCLOS-LINUX"), Some(vec![]));
        assert_eq!(parse_linux_calls("ENCLOS-LINUX 0=5"), None);
        assert_eq!(parse_linux_calls("ENCLOS-CALLS direct=1"), None);
    }
}
