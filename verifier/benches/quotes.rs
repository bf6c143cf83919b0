//! Quotes verified per second of CPU time, one thread, against `dcap-qvl` in the same run.
//!
//! "Uncached" starts from the bytes of quote and collateral each time; "cached" has the certificate chains, the
//! quoting enclave and the collateral verified before, and verifies a quote's signature and all that depends on time.

use std::{fs, hint::black_box, time::Duration};

use enclos_verifier::{Collateral, Policy, Roots, Time, Verifier};

/// 2025-06-27, when the recorded collateral was current.
const TIME: Time = Time(1_751_066_974);

fn main() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let quote = fs::read(format!("{data}/sgx_v3.bin")).expect("tests/data/sgx_v3.bin");
    let json = fs::read(format!("{data}/sgx_v3.json")).expect("tests/data/sgx_v3.json");
    let collateral = Collateral::from_json(&json).expect("collateral");
    let theirs: dcap_qvl::QuoteCollateralV3 = serde_json::from_slice(&json).expect("collateral");
    let policy = Policy { any_identity: true, ..Policy::default() };

    // A result nobody could rely on is not worth measuring.
    let verifier = Verifier::new(Roots::vendors());
    let trusted = verifier.trust(&collateral);
    assert!(verifier.verify_quote(&quote, &trusted, TIME).is_authentic());
    dcap_qvl::verify::ring::verify(&quote, &theirs, TIME.0).expect("dcap-qvl accepts the quote");

    // Interleaved, because a shared machine's speed changes from second to second.
    let mut best = [0.0f64; 4];
    for _ in 0..20 {
        let rates = [
            rate(|| {
                let verifier = Verifier::new(Roots::vendors());
                let trusted = verifier.trust(black_box(&collateral));
                black_box(verifier.verify_quote(black_box(&quote), &trusted, TIME));
            }),
            rate(|| {
                black_box(dcap_qvl::verify::ring::verify(black_box(&quote), &theirs, TIME.0).is_ok());
            }),
            rate(|| {
                black_box(verifier.verify_quote(black_box(&quote), &trusted, TIME));
            }),
            rate(|| {
                let _ = black_box(policy.judge(verifier.verify_quote(black_box(&quote), &trusted, TIME)));
            }),
        ];
        for (best, rate) in best.iter_mut().zip(rates) {
            *best = best.max(rate);
        }
    }
    let [uncached, dcap_qvl, cached, judged] = best;
    println!("SGX quotes per CPU-second, best of 20:");
    println!("  dcap-qvl, uncached   {dcap_qvl:>8.0}");
    println!("  Enclos, uncached     {uncached:>8.0}  ({:.2} x dcap-qvl)", uncached / dcap_qvl);
    println!("  Enclos, cached       {cached:>8.0}  ({:.2} x dcap-qvl uncached)", cached / dcap_qvl);
    println!("  Enclos, and judged   {judged:>8.0}");
}

/// Calls per second of CPU time.
fn rate(mut call: impl FnMut()) -> f64 {
    let mut calls = 0u32;
    let start = cpu_time();
    loop {
        for _ in 0..20 {
            call();
        }
        calls += 20;
        let spent = cpu_time() - start;
        if spent > Duration::from_millis(100) {
            return f64::from(calls) / spent.as_secs_f64();
        }
    }
}

/// CPU time of this thread so far (`schedstat`, see Documentation/scheduler/sched-stats in the Linux sources).
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with scheduler statistics");
    let nanoseconds = stat.split(' ').next().and_then(|field| field.parse().ok()).expect("time on CPU");
    Duration::from_nanos(nanoseconds)
}
