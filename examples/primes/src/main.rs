//! Counts primes on all threads with rayon: the same program inside an enclave and outside.
//!
//! `enclos run examples/primes -- 1000000`
#![forbid(unsafe_code)]

use rayon::prelude::*;

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn main() -> std::process::ExitCode {
    let limit = std::env::args().nth(1).unwrap_or_else(|| "1000000".to_owned());
    let Ok(limit) = limit.parse::<u64>() else {
        eprintln!("primes: {limit:?} is no number; write how far to count, for example 1000000");
        return std::process::ExitCode::from(2);
    };
    let started = std::time::Instant::now();
    let pool = match rayon::ThreadPoolBuilder::new().num_threads(4).build() {
        Ok(pool) => pool,
        Err(e) => {
            eprintln!("primes: cannot start threads: {e}; `threads` in enclos.toml must allow for them");
            return std::process::ExitCode::FAILURE;
        }
    };
    let count = pool.install(|| (0..limit).into_par_iter().filter(|n| is_prime(*n)).count());
    println!("{count} primes below {limit}");
    eprintln!("{:?} on {} threads", started.elapsed(), pool.current_num_threads());
    std::process::ExitCode::SUCCESS
}
