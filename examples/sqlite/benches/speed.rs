//! SQLite inside an enclave, on files in its memory, on the host's own and on sealed ones, against the same binary outside.
//! A sample of each, then the next. Prints one JSON object a figure: name, unit, median, min, max, baseline name, baseline
//! median, ratio.

#![allow(missing_docs, reason = "a program")]
#![forbid(unsafe_code)]

#[path = "../../runs_inside.rs"]
mod runs_inside;
use std::path::Path;
use std::process::Command;

use enclos_pack::Config;
use runs_inside::Program;

const SAMPLES: usize = 9;
/// Mounts of `enclos.toml`, and what lies there.
const PLACES: [(&str, &str); 3] =
    [("/tmp", "in memory"), ("/plain", "on the host's own files"), ("/data", "on sealed files")];

fn main() {
    // `cargo test --benches` asks for a list, or for a run without a measurement.
    if std::env::args().any(|a| a == "--list" || a == "--test") {
        return;
    }
    let project: &Path = env!("CARGO_MANIFEST_DIR").as_ref();
    let program = Program::build(project);
    let config = Config::load(&project.join("enclos.toml")).expect("a configuration");
    let binary = enclos_pack::build::compile(project, &config, &mut |_| {}).expect("it was just built");
    // On one disk, which /tmp may not be on.
    let folder = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (native, plain, sealed) = (folder(), folder(), folder());
    let mut outside: [Vec<u64>; 2] = Default::default();
    let mut inside: [[Vec<u64>; 2]; 3] = Default::default();
    for _ in 0..SAMPLES {
        let out = Command::new(&binary).arg("--bench").arg(native.path()).output().expect("it runs outside");
        add(&mut outside, &String::from_utf8_lossy(&out.stdout));
        for ((place, _), figures) in PLACES.iter().zip(&mut inside) {
            let out = program.output(|b| {
                b.args(["--bench", place]).mount("/plain", plain.path()).mount("/data", sealed.path())
            });
            add(figures, &out);
        }
    }
    for ((_, place), figures) in PLACES.iter().zip(&mut inside) {
        for ((what, ours), theirs) in ["insert", "select"].iter().zip(figures).zip(&mut outside) {
            ours.sort_unstable();
            theirs.sort_unstable();
            let (median, baseline) = (ours[SAMPLES / 2], theirs[SAMPLES / 2]);
            println!(
                "{{\"name\":\"SQLite {what}, {place}\",\"unit\":\"ns\",\"median\":{median},\"min\":{},\"max\":{},\
                 \"baseline\":\"the same outside\",\"baseline_median\":{baseline},\"ratio\":{:.2}}}",
                ours[0],
                ours[SAMPLES - 1],
                median as f64 / baseline as f64
            );
        }
    }
}

/// Nanoseconds of an insert and of a select, as the program printed them.
fn add(figures: &mut [Vec<u64>; 2], out: &str) {
    let times: Vec<u64> = out.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    assert_eq!(times.len(), 2, "{out:?}");
    figures.iter_mut().zip(times).for_each(|(all, n)| all.push(n));
}
