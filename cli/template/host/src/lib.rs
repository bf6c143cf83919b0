//! The untrusted half, as far as the tests use it too.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use enclos_host::{Enclave, StartError};
use {{ident}}_contract::{Clock, ClockServer};

/// Starts the enclave: the image that `enclos run` names, else the one that `enclos build` made.
pub fn start() -> Result<Enclave, StartError> {
    // Cargo tells the programs it runs where their crate is. Compiled in, it would make `enclos image` depend on it.
    let project = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, |host| Path::new(&host).join(".."));
    let built = project.join("target/enclos/{{name}}.enclave");
    let image = std::env::var_os("ENCLOS_IMAGE").map_or(built, PathBuf::from);
    Enclave::builder(image).service(ClockServer::new(SystemClock)).start()
}

struct SystemClock;

impl Clock for SystemClock {
    fn hour(&self) -> u32 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        (now / 3600 % 24) as u32
    }
}
