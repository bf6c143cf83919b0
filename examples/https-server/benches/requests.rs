//! Requests a second of the HTTPS server inside an enclave and outside: the same file, the same load generator, by turns.
//!
//! ```text
//! cargo bench -p https-server                  # a table
//! cargo bench -p https-server -- --json        # one object a figure, a line each
//! cargo bench -p https-server -- --rounds 9 --seconds 4 --connections 64
//! ```
//! Load comes from Debian's `wrk` (package `wrk`): one thread, kept-alive connections, small requests. It shares the
//! machine's processors with the server, so besides requests a second the processor time that the server's process
//! took a request is told: on a machine with idle processors that is what the enclave costs.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use enclos_host::{Captured, Enclave, PlatformChoice, Statistics};
use enclos_pack::build::compile;
use enclos_pack::{Config, Date, PackInput, SigningKey, pack};

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "{0}\nusage: cargo bench -p https-server -- [--json] [--rounds N] [--seconds N] [--connections N]"
    )]
    Usage(String),
    #[error("cannot start {program}: {source}{hint}")]
    Spawn { program: String, source: std::io::Error, hint: &'static str },
    #[error("wrk failed, or had failing requests:\n{0}")]
    Load(String),
    #[error("the server {0}")]
    Server(String),
    #[error("cannot read {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] enclos_pack::ConfigError),
    #[error(transparent)]
    Build(#[from] enclos_pack::BuildError),
    #[error(transparent)]
    Pack(#[from] enclos_pack::PackError),
    #[error(transparent)]
    Sign(#[from] enclos_pack::SignError),
    #[error(transparent)]
    Start(#[from] enclos_host::StartError),
}

struct Options {
    json: bool,
    rounds: usize,
    seconds: u64,
    connections: u64,
}

fn main() -> ExitCode {
    match Options::of(std::env::args().skip(1)).and_then(|o| run(&o)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn of(mut arguments: impl Iterator<Item = String>) -> Result<Self, Error> {
        let mut options = Self { json: false, rounds: 5, seconds: 2, connections: 32 };
        while let Some(argument) = arguments.next() {
            let mut number = || match arguments.next().map(|a| a.parse::<u64>()) {
                Some(Ok(n)) if n != 0 => Ok(n),
                _ => Err(Error::Usage(format!("{argument} takes a number"))),
            };
            match argument.as_str() {
                "--json" => options.json = true,
                // Cargo says so to every benchmark.
                "--bench" => {}
                "--rounds" => options.rounds = number()? as usize,
                "--seconds" => options.seconds = number()?,
                "--connections" => options.connections = number()?,
                _ => return Err(Error::Usage(format!("{argument} is not known"))),
            }
        }
        Ok(options)
    }
}

/// What one round of one server gave.
#[derive(Clone, Copy)]
struct Round {
    requests: f64,
    per_second: f64,
    /// Microseconds of the server's process a request.
    processor_us: f64,
    /// Of the enclave: EENTER and requests to the host.
    crossings: [f64; 2],
}

type Figure = fn(&Round) -> f64;

fn run(options: &Options) -> Result<(), Error> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::load(&project.join("enclos.toml"))?;
    eprintln!("building the server");
    let program = compile(project, &config, &mut |_| {})?;
    let native = Native::start(&program)?;
    let inside = Inside::start(&program, &config)?;
    let (mut outside_rounds, mut inside_rounds) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        eprint!("\rround {round} of {}", options.rounds);
        let a = native.round(options)?;
        let b = inside.round(options)?;
        // The first is for warming up.
        if round > 0 {
            outside_rounds.push(a);
            inside_rounds.push(b);
        }
    }
    eprintln!();
    let median = |rounds: &[Round], f: Figure| {
        let mut all: Vec<f64> = rounds.iter().map(f).collect();
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[0], all[all.len() - 1])
    };
    let exits = median(&inside_rounds, |r| r.crossings[0] / r.requests).0;
    let asked = median(&inside_rounds, |r| r.crossings[1] / r.requests).0;
    let figures: [(&str, &str, Figure, bool); 2] = [
        ("HTTPS requests", "1/s", |r| r.per_second, true),
        ("processor time a request", "us", |r| r.processor_us, false),
    ];
    if !options.json {
        println!(
            "{:26} {:>10} {:>10} {:>10} {:>10} {:>7}",
            "figure", "inside", "least", "most", "native", "ratio"
        );
    }
    for (name, unit, f, has_target) in figures {
        let (value, least, most) = median(&inside_rounds, f);
        let baseline = median(&outside_rounds, f).0;
        let ratio = value / baseline;
        let target = if has_target { ",\"target\":0.8" } else { "" };
        if options.json {
            println!(
                "{{\"name\":\"{name}\",\"unit\":\"{unit}\",\"median\":{value:.1},\"min\":{least:.1},\"max\":{most:.1},\
                 \"baseline\":\"the same program, native\",\"baseline_median\":{baseline:.1},\"ratio\":{ratio:.3}{target}}}"
            );
        } else {
            let name = format!("{name} ({unit})");
            println!("{name:26} {value:>10.1} {least:>10.1} {most:>10.1} {baseline:>10.1} {ratio:>7.3}");
        }
    }
    for (name, value) in [("exits a request", exits), ("host calls a request", asked)] {
        if options.json {
            println!("{{\"name\":\"{name}\",\"unit\":\"1\",\"median\":{value:.2}}}");
        } else {
            println!("{name:26} {value:>10.2}");
        }
    }
    Ok(())
}

/// Where a server listens, by what it prints.
fn address_in(text: &str) -> Option<&str> {
    Some(text.split_once("listening on ")?.1.split_once('\n')?.0)
}

/// The program as it is.
struct Native {
    child: Child,
    url: String,
}

impl Native {
    fn start(program: &Path) -> Result<Self, Error> {
        let mut command = Command::new(program);
        command.arg("127.0.0.1:0").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|source| Error::Spawn {
            program: program.display().to_string(),
            source,
            hint: "",
        })?;
        let mut text = String::new();
        let mut lines = BufReader::new(child.stdout.take().ok_or_else(no_address)?);
        while address_in(&text).is_none() {
            if !lines.read_line(&mut text).is_ok_and(|n| n != 0) {
                return Err(no_address());
            }
        }
        let url = address_in(&text).ok_or_else(no_address)?.to_owned();
        Ok(Self { child, url })
    }

    fn round(&self, options: &Options) -> Result<Round, Error> {
        let before = processor_time(self.child.id())?;
        let (requests, per_second) = load(&self.url, options)?;
        let took = processor_time(self.child.id())? - before;
        Ok(Round { requests, per_second, processor_us: took * 1e6 / requests, crossings: [0.0; 2] })
    }
}

fn no_address() -> Error {
    Error::Server("ended without saying where it listens".into())
}

impl Drop for Native {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program in an enclave of this process.
struct Inside {
    enclave: Enclave,
    url: String,
}

impl Inside {
    fn start(program: &Path, config: &Config) -> Result<Self, Error> {
        let file = |source| Error::File { path: program.to_path_buf(), source };
        let app = std::fs::read(program).map_err(file)?;
        let mut image = pack(&PackInput { runtime: enclos_pack::runtime(), app: &app, config })?;
        let pem = include_str!("../../vault/host/tests/data/test-only-signer.pem");
        image.sign(&SigningKey::from_pem(pem)?, Date::from_unix(1_700_000_000))?;
        let out = Captured::default();
        let enclave = Enclave::builder(image.to_file_bytes())
            .platform(PlatformChoice::Auto)
            .arg("127.0.0.1:0")
            .stdout(out.clone())
            .start()?;
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let text = out.text();
            if let Some(url) = address_in(&text) {
                return Ok(Self { enclave, url: url.to_owned() });
            }
            if enclave.end().is_some() || Instant::now() > until {
                return Err(no_address());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn round(&self, options: &Options) -> Result<Round, Error> {
        let (before, counted) = (processor_time(std::process::id())?, self.enclave.statistics());
        let (requests, per_second) = load(&self.url, options)?;
        let took = processor_time(std::process::id())? - before;
        let now = self.enclave.statistics();
        let since = |f: fn(&Statistics) -> u64| (f(&now) - f(&counted)) as f64;
        let crossings = [since(|s| s.eenter + s.eresume), since(|s| s.host_calls)];
        Ok(Round { requests, per_second, processor_us: took * 1e6 / requests, crossings })
    }
}

/// Runs wrk: how many requests, and how many a second.
fn load(url: &str, options: &Options) -> Result<(f64, f64), Error> {
    let (connections, seconds) = (options.connections.to_string(), format!("{}s", options.seconds));
    let out = Command::new("wrk")
        .args(["--threads", "1", "--connections", &connections, "--duration", &seconds])
        .arg(format!("{url}/benchmark"))
        .output()
        .map_err(|source| Error::Spawn {
            program: "wrk".into(),
            source,
            hint: "; it is in Debian's package `wrk`: apt-get install wrk",
        })?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    // `  123456 requests in 2.00s, 17.3MB read`, `Requests/sec:  61728.00`
    let per_second = text.lines().find_map(|l| l.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let requests =
        text.lines().find_map(|l| l.trim().split_once(" requests in ")?.0.parse().ok()).filter(|n| *n > 0.0);
    let has_failures = text.contains("Non-2xx") || text.contains("Socket errors");
    match (requests, per_second) {
        (Some(requests), Some(per_second)) if out.status.success() && !has_failures => {
            Ok((requests, per_second))
        }
        _ => Err(Error::Load(format!("{text}{}", String::from_utf8_lossy(&out.stderr)))),
    }
}

/// Seconds that the process has had of the processors (proc_pid_stat(5): utime and stime, in hundredths of a second).
fn processor_time(process: u32) -> Result<f64, Error> {
    let path = PathBuf::from(format!("/proc/{process}/stat"));
    let text = std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })?;
    // The second field, the program's name, may hold anything but is the only one in parentheses.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
