//! SQLite inside an enclave, on files in its memory, on the host's own and on sealed ones, against the same outside. A
//! sample of each, then the next. Prints one JSON object a figure: name, unit, median, min, max, baseline name, baseline
//! median, ratio.

#![allow(missing_docs, reason = "a program")]
#![forbid(unsafe_code)]

#[path = "../../runs_inside.rs"]
mod runs_inside;
#[path = "../src/workload.rs"]
mod workload;

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
    let program = Program::build(env!("CARGO_MANIFEST_DIR").as_ref());
    // On one disk, which /tmp may not be on.
    let folder = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let (native, plain, sealed) = (folder(), folder(), folder());
    let mut outside = [Vec::new(), Vec::new()];
    let mut inside: [[Vec<u64>; 2]; 3] = Default::default();
    for _ in 0..SAMPLES {
        let times = workload::run(native.path()).expect("SQLite works outside");
        outside[0].push(times.insert);
        outside[1].push(times.select);
        for ((place, _), figures) in PLACES.iter().zip(&mut inside) {
            let out = program.output(|b| {
                b.args(["--bench", place]).mount("/plain", plain.path()).mount("/data", sealed.path())
            });
            let times = out.split_whitespace().map(|n| n.parse::<u64>().expect("a number"));
            figures.iter_mut().zip(times).for_each(|(all, n)| all.push(n));
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
