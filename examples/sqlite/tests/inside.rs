//! The program finds what it stored when it runs again, and the host cannot read it.
#![forbid(unsafe_code)]

#[path = "../../runs_inside.rs"]
mod runs_inside;

use runs_inside::Program;

#[test]
fn the_database_is_there_again_and_sealed() {
    let program = Program::build(env!("CARGO_MANIFEST_DIR").as_ref());
    let sealed = tempfile::tempdir().unwrap();
    for run in 0..2 {
        let out = program.output(|b| b.mount("/data", sealed.path()));
        assert_eq!(out, expected(run), "run {run}");
    }
    for file in ["root", "blocks"] {
        let bytes = std::fs::read(sealed.path().join(file)).unwrap();
        for needle in [&b"sensor-"[..], b"SQLite format 3", b"readings.sqlite"] {
            assert!(!bytes.windows(needle.len()).any(|w| w == needle), "{file} shows what is sealed");
        }
    }
    assert_eq!(std::fs::read_dir(sealed.path()).unwrap().count(), 2);
}

/// What the same program prints outside, in its nth run.
fn expected(run: i64) -> String {
    let mut text = format!("{} readings of earlier runs\n", run * 20_000);
    for (sensor, (count, sum)) in [
        (2858, 14_289_285.5),
        (2857, 14_280_714.5),
        (2857, 14_282_143.0),
        (2857, 14_283_571.5),
        (2857, 14_285_000.0),
        (2857, 14_286_428.5),
        (2857, 14_287_857.0),
    ]
    .into_iter()
    .enumerate()
    {
        let times = run + 1;
        text += &format!("sensor-{sensor}: {} readings, sum {:.1}\n", count * times, sum * times as f64);
    }
    text + "integrity: ok\n"
}
