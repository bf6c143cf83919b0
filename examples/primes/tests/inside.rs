//! The program gives inside an enclave what it must.
#![forbid(unsafe_code)]

#[path = "../../runs_inside.rs"]
mod runs_inside;

#[test]
fn it_runs_inside() {
    assert_eq!(runs_inside::output(env!("CARGO_MANIFEST_DIR").as_ref()), EXPECTED);
}

/// The number of primes below a million: OEIS A006880.
const EXPECTED: &str = "78498 primes below 1000000\n";
