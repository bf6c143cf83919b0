//! The program gives inside an enclave what it must.
#![forbid(unsafe_code)]

#[path = "../../runs_inside.rs"]
mod runs_inside;

#[test]
fn it_runs_inside() {
    assert_eq!(runs_inside::output(env!("CARGO_MANIFEST_DIR").as_ref()), EXPECTED);
}

/// What the same program prints outside.
const EXPECTED: &str = "\
sensor-0: 2858 readings, sum 14289285.5\n\
sensor-1: 2857 readings, sum 14280714.5\n\
sensor-2: 2857 readings, sum 14282143.0\n\
sensor-3: 2857 readings, sum 14283571.5\n\
sensor-4: 2857 readings, sum 14285000.0\n\
sensor-5: 2857 readings, sum 14286428.5\n\
sensor-6: 2857 readings, sum 14287857.0\n\
integrity: ok\n\
";
