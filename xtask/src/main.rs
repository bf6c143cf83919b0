//! Workspace tasks. `cargo xtask test` runs everything there is to be tested, from a clean clone on a fresh machine.
#![forbid(unsafe_code)]

mod steps;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::steps::STEPS;

/// Tasks of the workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Test everything: unit and integration tests, both emulator modes, other people's software, the two README
    /// commands, the scaffold, reproducibility. Installs what is missing (apt). Ends with a summary; the exit code is 1
    /// when anything failed.
    #[command(
        after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --only workspace --only scaffold\n  cargo xtask test --list"
    )]
    Test {
        /// Only the step of this name; may be given several times
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Name the steps and what they do
        #[arg(long)]
        list: bool,
    },
    /// Show something from one end to the other on the emulated platform. Installs what is missing (apt, PyPI, npm).
    Demo {
        /// Of what
        #[arg(value_enum, default_value_t)]
        what: Demo,
    },
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Demo {
    /// An enclave attests, a relying party refuses that by default and accepts it when told the root, an attestation service
    /// inside an enclave proves where its key is held, and both of Azure's SDKs validate its token
    #[default]
    Evidence,
    /// Key broker, inference server and verifying proxy; held-out digits through Triton's client; and a search for plain text in
    /// all that the operator's side handled
    Inference,
}

fn main() -> ExitCode {
    let (only, list) = match Cli::parse().task {
        Task::Test { only, list } => (only, list),
        Task::Demo { what: Demo::Evidence } => (vec!["demo".to_owned()], false),
        Task::Demo { what: Demo::Inference } => (vec!["key-broker".to_owned()], false),
    };
    if list {
        for step in STEPS {
            println!("{:16} {}", step.name, step.about);
        }
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = only.iter().find(|o| STEPS.iter().all(|s| s.name != **o)) {
        eprintln!("error: there is no step {unknown:?}; `cargo xtask test --list` names them");
        return ExitCode::from(2);
    }
    let context = match Context::new() {
        Ok(context) => context,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    test(&context, &only)
}

fn test(context: &Context, only: &[String]) -> ExitCode {
    let chosen: Vec<_> =
        STEPS.iter().filter(|s| only.is_empty() || only.iter().any(|o| o == s.name)).collect();
    let mut rows = Vec::new();
    for (i, step) in chosen.iter().enumerate() {
        println!("\n━━━ {}/{} {}: {}", i + 1, chosen.len(), step.name, step.about);
        let (started, cpu) = (Instant::now(), cpu_time());
        let mut tally = Tally::default();
        let outcome = (step.run)(context, &mut tally);
        if let Err(e) = &outcome {
            println!("━━━ {} FAILED: {e}", step.name);
        }
        rows.push((step.name, outcome, tally, started.elapsed(), cpu_time() - cpu));
    }
    println!(
        "\n{:16} {:8} {:>7} {:>7} {:>8} {:>9} {:>9}",
        "step", "result", "passed", "failed", "ignored", "time", "CPU"
    );
    let mut failures = 0;
    for (name, outcome, tally, took, cpu) in &rows {
        let result = match outcome {
            Ok(()) => "ok",
            Err(_) => "FAILED",
        };
        failures += usize::from(outcome.is_err());
        let Tally { passed, failed, ignored } = tally;
        println!(
            "{name:16} {result:8} {passed:>7} {failed:>7} {ignored:>8} {:>9} {:>9}",
            seconds(*took),
            seconds(*cpu)
        );
        if let Err(e) = outcome {
            println!("{:16} {e}", "");
        }
    }
    let total: Duration = rows.iter().map(|r| r.3).sum();
    let passed: u64 = rows.iter().map(|r| r.2.passed).sum();
    if failures == 0 {
        println!("\nAll {} steps passed, {passed} tests, in {}.", rows.len(), seconds(total));
        return ExitCode::SUCCESS;
    }
    println!("\n{failures} of {} steps failed, in {}.", rows.len(), seconds(total));
    ExitCode::FAILURE
}

/// Processor time of the programs that ran and ended: on a shared machine it says more than the time that went by. Zero where
/// it cannot be read.
fn cpu_time() -> Duration {
    // proc_pid_stat(5): cutime and cstime are fields 16 and 17, in ticks of 1/100 s; the second may hold spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(13).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn seconds(time: Duration) -> String {
    match time.as_secs() {
        s if s < 60 => format!("{:.1} s", time.as_secs_f64()),
        s => format!("{}:{:02} min", s / 60, s % 60),
    }
}

/// Where things are.
pub(crate) struct Context {
    /// Root of the repository.
    pub(crate) root: PathBuf,
    /// The cargo that runs this.
    cargo: PathBuf,
    /// Goes when the run ends.
    scratch: tempfile::TempDir,
}

impl Context {
    fn new() -> Result<Self, Failure> {
        let scratch =
            tempfile::tempdir().map_err(|source| Failure::File { path: std::env::temp_dir(), source })?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default();
        let cargo = std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        Ok(Self { root, cargo, scratch })
    }

    /// A new folder that goes when the run ends.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.scratch.path().join(name);
        std::fs::create_dir_all(&path).map_err(|source| Failure::File { path: path.clone(), source })?;
        Ok(path)
    }

    /// Cargo, in a folder.
    pub(crate) fn cargo(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(folder);
        // What `cargo xtask` set for this program is not meant for those it runs.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// Numbers of tests, as their harness reported them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Adds what a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …` or `3 passed, 0 failed` says.
    fn add(&mut self, line: &str) {
        let line = line.trim();
        let result = match line.strip_prefix("test result: ") {
            Some(result) => result,
            None if line.ends_with(" failed") && line.contains(" passed, ") => line,
            None => return,
        };
        let mut words = result.split([' ', ';', ',']).filter(|w| !w.is_empty());
        let mut before = words.next().unwrap_or_default();
        for word in words {
            let number = before.parse().unwrap_or(0);
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
            before = word;
        }
    }
}

/// Runs a command; what it prints is shown and, where it is about tests, counted. Returns what it printed on standard
/// output.
pub(crate) fn run(command: &mut Command, tally: &mut Tally) -> Result<String, Failure> {
    let shown = shown(command);
    println!("$ {shown}");
    let spawn = |source| Failure::Spawn { command: shown.clone(), source };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(spawn)?;
    let mut all = String::new();
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.add(&line);
            all.push_str(&line);
            all.push('\n');
        }
    }
    let _ = std::io::stdout().flush();
    let status = child.wait().map_err(spawn)?;
    if !status.success() {
        return Err(Failure::Command { command: shown, status });
    }
    Ok(all)
}

fn shown(command: &Command) -> String {
    let env = command.get_envs().filter_map(|(n, v)| Some(format!("{}={} ", n.display(), v?.display())));
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
    let args = command.get_args().map(|a| format!(" {}", a.display()));
    env.chain([program]).chain(args).collect()
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot start `{command}`: {source}")]
    Spawn { command: String, source: std::io::Error },
    #[error("`{command}` failed: {status}")]
    Command { command: String, status: std::process::ExitStatus },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Wrong(String),
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_test_harnesses_are_counted() {
        let mut tally = Tally::default();
        tally.add("running 4 tests");
        tally.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        tally.add("test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out");
        tally.add("40 passed, 2 failed");
        tally.add("nothing passed, everything failed to begin");
        assert_eq!(tally, Tally { passed: 45, failed: 7, ignored: 1 });
    }
}
