//! The benchmark enclave.
#![forbid(unsafe_code)]

use enclos_bench::{Bench, BenchServer, HostClient, compute, grow};
use enclos_enclave::{HostTransport, host};

fn main() -> Result<(), enclos_enclave::ServeError> {
    enclos_enclave::serve(BenchServer::new(Measured))
}

struct Measured;

impl Bench for Measured {
    fn nothing(&self) {}

    fn echo(&self, data: &[u8]) -> Vec<u8> {
        data.to_vec()
    }

    fn host_calls(&self, count: u32) -> bool {
        let Ok(client) = host::<HostClient<HostTransport>>() else { return false };
        (0..count).all(|_| client.nothing().is_ok())
    }

    fn linux_calls(&self, count: u32) -> u64 {
        (0..count).map(|_| u64::from(std::os::unix::process::parent_id())).sum()
    }

    fn compute(&self, rounds: u32) -> u64 {
        compute(rounds)
    }

    fn grow(&self, mebibytes: u32) -> Option<(u64, u64)> {
        grow(mebibytes)
    }
}
