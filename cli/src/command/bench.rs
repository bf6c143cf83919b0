//! `enclos bench`
//!
//! Builds the benchmark enclave that the command carries with it and measures it next to what it competes with, in one
//! run: each sample of a figure is followed by one of its baseline, so that what else the machine does hits both.

use std::hint::{black_box, spin_loop};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use enclos_bench::{BenchClient, Host, HostServer, compute, grow};
use enclos_host::{Enclave, EnclaveTransport, Kind, PlatformChoice};
use enclos_pack::config::{Profile, Size};
use sha2::{Digest, Sha256};

use super::{Error, Outcome, build, say_json};
use crate::embedded;
use crate::ui::{DIM, LABEL, Ui, say};

/// Measures what calls, Linux calls and starts cost on this machine.
///
/// Every figure comes with a baseline of the same run. Times depend on the machine and on what else it does; the
/// ratios less so. On the emulator they say what the software costs; hardware adds thousands of cycles a transition.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  enclos bench\n  enclos bench --only ecall --samples 101\n  enclos bench --json > figures.jsonl\n\n\
    With --json, one object a line: name, unit, median, min, max, baseline, baseline_median, ratio."
)]
pub(crate) struct Args {
    /// Only figures whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Samples a figure
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: u32,
    /// auto, hardware or emulated
    #[arg(long, env = "ENCLOS_PLATFORM", default_value = "auto")]
    platform: PlatformChoice,
    /// Results as JSON, one object a line
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args, ui: Ui) -> Outcome {
    let platform = super::run::resolve(args.platform)?;
    let built = build::embedded_image("bench", embedded::BENCH, ui)?;
    if platform == PlatformChoice::Emulated {
        ui.warn("the platform is an emulated SGX CPU: transitions cost what the software costs, not what SGX does");
    }
    let bytes = built.image.to_file_bytes();
    let start = || -> Result<(Enclave, BenchClient<EnclaveTransport>), Error> {
        let enclave = Enclave::builder(bytes.as_slice())
            .platform(platform)
            .service(HostServer::new(Service))
            .start()?;
        let client = enclave.connect()?;
        Ok((enclave, client))
    };
    let (enclave, client) = start()?;
    debug_assert_eq!(enclave.platform() == Kind::Hardware, platform == PlatformChoice::Hardware);

    let mut table = Table { args, ui, rows: 0, bar: (!ui.json()).then(|| ui.steps(FIGURES)) };
    let call = "empty ecall";
    table.figure(call, "ns", "getpid, native", per_op(2000, || Ok(client.nothing()?)), native_call(2000))?;

    let host_calls = |count: u32| match client.host_calls(count) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Usage("the benchmark enclave could not reach its host service".into())),
        Err(e) => Err(e.into()),
    };
    // The call that carries the loop in must not show: 5,000 are asked for in one.
    table.figure(
        "empty host service call",
        "ns",
        "getpid, native",
        in_one(5000, host_calls),
        native_call(2000),
    )?;

    let data = vec![0xa5_u8; 4096];
    let echo = || {
        let back = client.echo(&data)?;
        debug_assert_eq!(back.len(), data.len());
        black_box(back);
        Ok(())
    };
    let mut target = vec![0_u8; 4096];
    let copy = || {
        for _ in 0..2 {
            black_box(&mut target).copy_from_slice(black_box(&data));
        }
        Ok(())
    };
    table.figure(
        "4 KiB in and out, typed",
        "ns",
        "two memcpy of 4 KiB",
        per_op(1000, echo),
        per_op(1000, copy),
    )?;

    if table.wants(SWITCHLESS) {
        let switchless = client.switchless().map_err(|e| Error::Call(e.into()))?;
        let line = Line::default();
        table.figure(
            SWITCHLESS,
            "ns",
            "cache-line round trip between two threads",
            per_op(2000, || Ok(switchless.nothing()?)),
            || line.round_trip(20_000),
        )?;
    }

    let linux_calls = |count| {
        black_box(client.linux_calls(count)?);
        Ok(())
    };
    table.figure(
        "Linux call answered inside (getppid)",
        "ns",
        "getppid, native",
        in_one(200_000, linux_calls),
        || {
            let started = Instant::now();
            for _ in 0..2000 {
                black_box(std::os::unix::process::parent_id());
            }
            Ok(started.elapsed().as_nanos() as f64 / 2000.0)
        },
    )?;

    let inside = || {
        let started = Instant::now();
        black_box(client.compute(black_box(ROUNDS))?);
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let native = || {
        let started = Instant::now();
        black_box(compute(black_box(ROUNDS)));
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    table.figure("computing (5 million steps)", "ms", "the same function, native", inside, native)?;
    drop((client, enclave));

    let create = || {
        let started = Instant::now();
        let enclave = Enclave::builder(bytes.as_slice()).platform(platform).start()?;
        let took = started.elapsed();
        drop(enclave);
        Ok(took.as_secs_f64() * 1e3)
    };
    let hash = || {
        let started = Instant::now();
        black_box(Sha256::digest(black_box(built.image.sgxs())));
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    table.figure("create and init", "ms", "SHA-256 of the measured bytes", create, hash)?;

    let first_call = || {
        let started = Instant::now();
        let (enclave, client) = start()?;
        client.nothing()?;
        let took = started.elapsed();
        drop((client, enclave));
        Ok(took.as_secs_f64() * 1e3)
    };
    let process = || {
        let started = Instant::now();
        let spawned = std::process::Command::new("true").status();
        spawned.map_err(|source| Error::Spawn { program: "true".into(), source })?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    table.figure("start to first ecall", "ms", "a process (true), started and ended", first_call, process)?;
    if table.wants(GROWTH) || table.wants(PAUSE) {
        measure_growth(&mut table, platform, ui)?;
    }
    table.end()
}

/// The same enclave with memory that grows on demand: how long it takes to get [`GROWN`], and how long the program stands
/// still at most.
fn measure_growth(table: &mut Table<'_>, platform: PlatformChoice, ui: Ui) -> Result<(), Error> {
    let mut project = build::embedded_project("bench", embedded::BENCH, ui)?;
    project.config.profile = Profile::Sgx2;
    project.config.heap = Size::new(2 << 30).map_err(Error::Usage)?;
    let output = Some(project.image().with_extension("growing.enclave"));
    let built = build::image(&project, &build::Options { output, ..Default::default() }, ui)?;
    let enclave = Enclave::builder(built.image.to_file_bytes())
        .platform(platform)
        .service(HostServer::new(Service))
        .start()?;
    let client = enclave.connect::<BenchClient<EnclaveTransport>>()?;
    let none = || Error::Usage(format!("there are no {GROWN} MiB of memory to measure with"));
    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    table.step(GROWTH);
    for sample in 0..=table.args.samples.min(MOST_GROWTHS) {
        for (grown, of) in
            [(client.grow(GROWN)?.ok_or_else(none)?, &mut ours), (grow(GROWN).ok_or_else(none)?, &mut theirs)]
        {
            // The first warms up.
            if sample != 0 {
                of[0].push(grown.0 as f64 / 1e6);
                of[1].push(grown.1 as f64 / 1e6);
            }
        }
    }
    for (name, ours, theirs) in ours.into_iter().zip(theirs).zip([GROWTH, PAUSE]).map(|((a, b), n)| (n, a, b))
    {
        if table.wants(name) {
            table.show(name, "ms", "the same function, native", Stats::of(ours), Stats::of(theirs));
        }
    }
    Ok(())
}

const GROWTH: &str = "growth by 1 GiB on demand";
const PAUSE: &str = "longest pause of that growth";
/// MiB.
const GROWN: u32 = 1024;
/// Samples of it, at most: each takes the better part of a second.
const MOST_GROWTHS: u32 = 7;

const SWITCHLESS: &str = "switchless ecall";
const FIGURES: u64 = 9;
/// Steps of the function that only computes.
const ROUNDS: u32 = 5_000_000;

struct Service;

impl Host for Service {
    fn nothing(&self) {}
}

/// Nanoseconds of one of `count` operations, the clock read around all of them.
fn per_op(count: u32, mut op: impl FnMut() -> Result<(), Error>) -> impl FnMut() -> Result<f64, Error> {
    move || {
        let started = Instant::now();
        for _ in 0..count {
            op()?;
        }
        Ok(started.elapsed().as_nanos() as f64 / f64::from(count))
    }
}

/// As [`per_op`], for something that repeats itself.
fn in_one(count: u32, op: impl Fn(u32) -> Result<(), Error>) -> impl FnMut() -> Result<f64, Error> {
    move || {
        let started = Instant::now();
        op(count)?;
        Ok(started.elapsed().as_nanos() as f64 / f64::from(count))
    }
}

/// getpid(2), which every kernel entry costs at least.
fn native_call(count: u32) -> impl FnMut() -> Result<f64, Error> {
    per_op(count, || {
        black_box(std::process::id());
        Ok(())
    })
}

/// Two words on lines of their own (128 bytes: CPUs fetch lines in pairs).
#[derive(Default)]
struct Line {
    ping: Padded,
    pong: Padded,
}

#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicU64);

impl Line {
    /// Nanoseconds until a word written on one core has come back from another one: the least that two threads can
    /// have to do with each other.
    fn round_trip(&self, count: u64) -> Result<f64, Error> {
        self.ping.0.store(0, Ordering::Relaxed);
        self.pong.0.store(0, Ordering::Relaxed);
        let wait = |word: &AtomicU64, value| {
            while word.load(Ordering::Acquire) != value {
                spin_loop();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 1..=count {
                    wait(&self.ping.0, i);
                    self.pong.0.store(i, Ordering::Release);
                }
            });
            // The other thread's start does not count.
            self.ping.0.store(1, Ordering::Release);
            wait(&self.pong.0, 1);
            let started = Instant::now();
            for i in 2..=count {
                self.ping.0.store(i, Ordering::Release);
                wait(&self.pong.0, i);
            }
            Ok(started.elapsed().as_nanos() as f64 / (count - 1) as f64)
        })
    }
}

struct Table<'a> {
    args: &'a Args,
    ui: Ui,
    rows: u32,
    bar: Option<crate::ui::Bar>,
}

impl Table<'_> {
    fn wants(&self, name: &str) -> bool {
        self.args.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }

    /// Measures one figure and its baseline and says both.
    fn figure(
        &mut self,
        name: &str,
        unit: &str,
        baseline: &str,
        mut ours: impl FnMut() -> Result<f64, Error>,
        mut theirs: impl FnMut() -> Result<f64, Error>,
    ) -> Result<(), Error> {
        if !self.wants(name) {
            return Ok(());
        }
        self.step(name);
        // Caches, branch predictors and lazily made buffers.
        let warm_until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < warm_until {
            ours()?;
            theirs()?;
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..self.args.samples {
            a.push(ours()?);
            b.push(theirs()?);
        }
        self.show(name, unit, baseline, Stats::of(a), Stats::of(b));
        Ok(())
    }

    /// Says what is measured now.
    fn step(&self, name: &str) {
        if let Some(bar) = &self.bar {
            bar.step(name);
        }
    }

    /// Says what came out.
    fn show(&mut self, name: &str, unit: &str, baseline: &str, a: Stats, b: Stats) {
        let ratio = a.median / b.median;
        self.rows += 1;
        if self.ui.json() {
            say_json(&Figure {
                name,
                unit,
                median: round(a.median),
                min: round(a.min),
                max: round(a.max),
                baseline,
                baseline_median: round(b.median),
                ratio: round(ratio),
            });
            return;
        }
        self.bar = None;
        if self.rows == 1 {
            say!(
                "{DIM}{:<38} {:>10} {:>10} {:>10}    {:>6}  baseline{DIM:#}",
                "",
                "median",
                "min",
                "max",
                "ratio"
            );
        }
        let said = |v: f64| if v < 100.0 { format!("{v:.1}") } else { format!("{v:.0}") };
        say!(
            "{LABEL}{name:<38}{LABEL:#} {:>10} {:>10} {:>10} {unit} {ratio:>6.2}  {} {unit}: {baseline}",
            said(a.median),
            said(a.min),
            said(a.max),
            said(b.median)
        );
    }

    fn end(self) -> Outcome {
        match (self.rows, &self.args.only) {
            (0, Some(only)) => Err(Error::Usage(format!("no figure's name contains {only:?}"))),
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}

/// A line of JSON. Every benchmark of the project writes these.
#[derive(serde::Serialize)]
struct Figure<'a> {
    name: &'a str,
    unit: &'a str,
    median: f64,
    min: f64,
    max: f64,
    baseline: &'a str,
    baseline_median: f64,
    ratio: f64,
}

struct Stats {
    median: f64,
    min: f64,
    max: f64,
}

impl Stats {
    /// Of at least one sample.
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = match samples.len() % 2 {
            1 => samples[middle],
            _ => (samples[middle - 1] + samples[middle]) / 2.0,
        };
        Self { median, min: samples[0], max: samples[samples.len() - 1] }
    }
}

/// To four significant places: more is noise.
fn round(v: f64) -> f64 {
    if v == 0.0 || !v.is_finite() {
        return v;
    }
    let scale = 10_f64.powi(3 - v.abs().log10().floor() as i32);
    (v * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_rounding() {
        let s = Stats::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((s.median, s.min, s.max), (2.0, 1.0, 3.0));
        assert_eq!(Stats::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(round(123.456), 123.5);
        assert_eq!(round(0.012_345_6), 0.012_35);
        assert_eq!(round(0.0), 0.0);
    }

    #[test]
    fn a_cache_line_goes_to_and_fro() {
        assert!(Line::default().round_trip(100).unwrap() > 0.0);
    }
}
