//! The untrusted half, as far as the tests use it too.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use enclos_host::{Enclave, StartError};
use {{ident}}_contract::{Clock, ClockServer};

/// Starts the enclave: the image that `enclos run` names, else the one that `enclos build` made.
pub fn start() -> Result<Enclave, StartError> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/enclos/{{name}}.enclave");
    let image = std::env::var_os("ENCLOS_IMAGE").map_or_else(|| built.into(), PathBuf::from);
    Enclave::builder(image).service(ClockServer::new(SystemClock)).start()
}

struct SystemClock;

impl Clock for SystemClock {
    fn hour(&self) -> u32 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        (now / 3600 % 24) as u32
    }
}
