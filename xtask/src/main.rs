//! Workspace tasks. `cargo xtask test` runs everything there is to be tested, from a clean clone on a fresh machine.
#![forbid(unsafe_code)]

mod steps;

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::steps::{Lane, STEPS, Step};

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
        /// Have clippy look at every crate and test while it is built; what it warns of ends the step. A pass of its own would
        /// check all dependencies besides building them
        #[arg(long)]
        clippy: bool,
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
    let (only, list, clippy) = match Cli::parse().task {
        Task::Test { only, list, clippy } => (only, list, clippy),
        Task::Demo { what: Demo::Evidence } => (vec!["demo".to_owned()], false, false),
        Task::Demo { what: Demo::Inference } => (vec!["inference-demo".to_owned()], false, false),
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
    let context = match Context::new(clippy) {
        Ok(context) => context,
        Err(e) => {
            eprintln!("error: {e}");
            return ExitCode::FAILURE;
        }
    };
    test(&context, &only)
}

fn test(context: &Context, only: &[String]) -> ExitCode {
    let started = Instant::now();
    let is_chosen = |step: &&Step| only.is_empty() || only.iter().any(|name| name == step.name);
    let chosen: Vec<_> = STEPS.iter().filter(is_chosen).collect();
    let lane = |lane| chosen.iter().copied().filter(|s| s.lane == lane).collect::<Vec<_>>();
    let together = chosen.iter().any(|step| step.lane != chosen[0].lane);
    let run = |steps: Vec<&Step>| -> Vec<Row> {
        steps.into_iter().map(|step| Row::of(context, step, together)).collect()
    };
    let mut rows = Vec::new();
    thread::scope(|scope| {
        let beside = |of| scope.spawn(move || run(lane(of)));
        let release = beside(Lane::Release);
        rows.extend(run(lane(Lane::First)));
        for lane in [beside(Lane::Tests), beside(Lane::Others), release] {
            match lane.join() {
                Ok(lane) => rows.extend(lane),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    println!(
        "\n{:16} {:8} {:>7} {:>7} {:>8} {:>9} {:>9}",
        "step", "result", "passed", "failed", "ignored", "time", "CPU"
    );
    let mut failures = 0;
    for Row { name, outcome, report, took } in &rows {
        let result = match outcome {
            Ok(()) => "ok",
            Err(_) => "FAILED",
        };
        failures += usize::from(outcome.is_err());
        let Tally { passed, failed, ignored } = report.tally;
        println!(
            "{name:16} {result:8} {passed:>7} {failed:>7} {ignored:>8} {:>9} {:>9}",
            seconds(*took),
            seconds(report.cpu)
        );
        if let Err(e) = outcome {
            println!("{:16} {e}", "");
        }
    }
    let cpu: Duration = rows.iter().map(|r| r.report.cpu).sum();
    let passed: u64 = rows.iter().map(|r| r.report.tally.passed).sum();
    let time = format!("in {}; {} of processor time", seconds(started.elapsed()), seconds(cpu));
    if failures == 0 {
        println!("\nAll {} steps passed, {passed} tests, {time}.", rows.len());
        return ExitCode::SUCCESS;
    }
    // Last, since whoever reads the end of a log wants to know why.
    for row in rows.iter().filter(|r| r.outcome.is_err()) {
        for failure in &row.report.failures {
            println!("\n━━━ {} FAILED:\n{failure}", row.name);
        }
    }
    println!("\n{failures} of {} steps failed, {time}.", rows.len());
    ExitCode::FAILURE
}

/// What came of a step.
struct Row {
    name: &'static str,
    outcome: Result<(), Failure>,
    report: Report,
    took: Duration,
}

impl Row {
    fn of(context: &Context, step: &Step, together: bool) -> Self {
        let started = Instant::now();
        let mut report = Report { prefix: together.then_some(step.name), ..Report::default() };
        report.say(&format!("\n━━━ {}: {}", step.name, step.about));
        let outcome = (step.run)(context, &mut report);
        match &outcome {
            Ok(()) => report.say(&format!("━━━ {}: ok, {}", step.name, seconds(started.elapsed()))),
            Err(e) => report.say(&format!("━━━ {} FAILED: {e}", step.name)),
        }
        Self { name: step.name, outcome, report, took: started.elapsed() }
    }
}

/// Processor time of a program that has ended but not been waited for, and of all that it waited for: on a shared machine it
/// says more than the time that went by. Zero where it cannot be read.
fn cpu_time(child: &Child) -> Duration {
    let stat = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // proc_pid_stat(5): the second field may hold spaces; the third is the state, 14 to 17 are utime, stime, cutime and
    // cstime, in ticks of 1/100 s.
    loop {
        let stat = stat();
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        match fields[0] {
            "" | "Z" => {
                let ticks: u64 = fields.iter().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum();
                return Duration::from_millis(ticks * 10);
            }
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
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
    /// Whether clippy compiles our crates.
    clippy: bool,
    /// Goes when the run ends.
    scratch: tempfile::TempDir,
}

impl Context {
    fn new(clippy: bool) -> Result<Self, Failure> {
        let scratch =
            tempfile::tempdir().map_err(|source| Failure::File { path: std::env::temp_dir(), source })?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default();
        let cargo = std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from);
        Ok(Self { root, cargo, clippy, scratch })
    }

    /// A new folder that goes when the run ends.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.scratch.path().join(name);
        fs::create_dir_all(&path).map_err(|source| Failure::File { path: path.clone(), source })?;
        Ok(path)
    }

    /// Cargo, in a folder.
    pub(crate) fn cargo(&self, folder: &Path) -> Command {
        program(&self.cargo, folder)
    }
}

/// A program that runs cargo, or is it. What `cargo xtask` set for this program is not meant for those it runs: build scripts look at
/// it (ring's does), and with and without it by turns crates are built again and again, under running tests.
pub(crate) fn program(path: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(path);
    command.current_dir(folder);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
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

/// What a step says and counts.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Before each line, while another step runs at the same time.
    prefix: Option<&'static str>,
    tally: Tally,
    cpu: Duration,
    /// What commands that failed said about it.
    failures: Vec<String>,
}

impl Report {
    /// Prints text.
    pub(crate) fn say(&self, text: &str) {
        say(self.prefix, text);
    }
}

fn say(prefix: Option<&str>, text: &str) {
    let mut out = std::io::stdout().lock();
    for line in text.split('\n') {
        let _ = match prefix {
            Some(prefix) => writeln!(out, "{prefix}: {line}"),
            None => writeln!(out, "{line}"),
        };
    }
    let _ = out.flush();
}

/// Hands on lines as they come.
fn lines(from: impl Read, mut each: impl FnMut(&str)) {
    for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
        each(&String::from_utf8_lossy(&line));
    }
}

/// Why a command failed, as far as its output tells: which tests did, and what their harness says of them or else its last lines.
#[derive(Debug, Default)]
struct Reasons {
    names: Vec<String>,
    told: Vec<String>,
    /// Whether a harness is telling.
    is_telling: bool,
    last: VecDeque<String>,
}

impl Reasons {
    /// Lines of the output that are kept when no harness tells.
    const LAST: usize = 30;
    /// Lines that are kept of what harnesses tell.
    const TOLD: usize = 150;
    /// Characters that are kept of a line.
    const LINE: usize = 400;

    fn add(&mut self, line: &str) {
        let line: String = line.chars().take(Self::LINE).collect();
        // libtest's line of a test, and that of the suites in tests/conformance.
        if line.starts_with("test ") && line.ends_with("... FAILED") || line.starts_with("FAILED ") {
            self.names.push(line.clone());
        }
        // libtest writes `failures:`, the output of each test that failed, `failures:` again and their names, and the result.
        self.is_telling |= line == "failures:";
        if self.is_telling && self.told.len() < Self::TOLD {
            self.told.push(line.clone());
        }
        self.is_telling &= !line.starts_with("test result: ");
        if self.last.len() == Self::LAST {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    fn text(self) -> String {
        let why = if self.told.is_empty() { Vec::from(self.last) } else { self.told };
        [self.names, why].concat().join("\n")
    }
}

/// Characters of a line of a command's output that are shown: a report in JSON is one line of many pages.
const SHOWN: usize = 600;

/// Runs a command; what it prints is shown and, where it is about tests, counted. Returns what it printed on standard
/// output.
pub(crate) fn run(command: &mut Command, report: &mut Report) -> Result<String, Failure> {
    let shown = shown(command);
    report.say(&format!("$ {shown}"));
    let spawn = |source| Failure::Spawn { command: shown.clone(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    if report.prefix.is_some() {
        command.stderr(Stdio::piped());
    }
    let mut child = command.spawn().map_err(spawn)?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let (prefix, tally) = (report.prefix, &mut report.tally);
    let reasons = Mutex::new(Reasons::default());
    let show = |line: &str| {
        match line.char_indices().nth(SHOWN) {
            None => say(prefix, line),
            Some((end, _)) => say(prefix, &format!("{}… ({} bytes)", &line[..end], line.len())),
        }
        reasons.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(line);
    };
    let mut all = String::new();
    thread::scope(|scope| {
        scope.spawn(move || errors.map(|errors| lines(errors, show)));
        let Some(out) = out else { return };
        lines(out, |line| {
            show(line);
            tally.add(line);
            all.push_str(line);
            all.push('\n');
        });
    });
    report.cpu += cpu_time(&child);
    let status = child.wait().map_err(spawn)?;
    if !status.success() {
        report.failures.push(reasons.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).text());
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
    use super::{Reasons, Tally};

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

    #[test]
    fn what_failed_is_told_again() {
        let mut reasons = Reasons::default();
        let told = "failures:\n\n---- a stdout ----\npanicked\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed";
        let output = format!("running 2 tests\ntest a ... FAILED\n\n{told}\n\n     Running b\ntest b ... ok");
        output.lines().for_each(|line| reasons.add(line));
        assert_eq!(reasons.text(), format!("test a ... FAILED\n{told}"));

        let mut reasons = Reasons::default();
        reasons.add("FAILED  one of a suite");
        (0..100).for_each(|line| reasons.add(&line.to_string()));
        let last: Vec<_> = (70..100).map(|l| l.to_string()).collect();
        assert_eq!(reasons.text(), format!("FAILED  one of a suite\n{}", last.join("\n")));
    }
}
