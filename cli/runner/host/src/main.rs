//! The host program that `enclos image` puts into containers of plain programs: runs the image that ENCLOS_IMAGE names on
//! the platform that ENCLOS_PLATFORM names (default: auto), with this process's arguments, environment and standard
//! streams, as `enclos run` does. Its exit code is the program's; 70: the enclave ended by a fault, 1: it did not start.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, BufReader};
use std::process::ExitCode;

use enclos_host::{Enclave, End, PlatformChoice};

fn main() -> ExitCode {
    run().unwrap_or_else(|e| {
        eprintln!("error: {e}");
        let faulted = matches!(e.downcast_ref(), Some(End::Faulted { .. }));
        ExitCode::from(if faulted { 70 } else { 1 })
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let image = std::env::var("ENCLOS_IMAGE")
        .map_err(|_| "ENCLOS_IMAGE does not name the image to run: set it to an .enclave file")?;
    let platform = match std::env::var("ENCLOS_PLATFORM") {
        Ok(name) => name.parse().map_err(|e| format!("ENCLOS_PLATFORM: {e}"))?,
        Err(_) => PlatformChoice::Auto,
    };
    let text = |word: std::ffi::OsString| word.into_string().ok();
    let enclave = Enclave::builder(image)
        .platform(platform)
        .args(std::env::args_os().skip(1).filter_map(text))
        .envs(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))))
        .stdin(BufReader::new(io::stdin()))
        .start()?;
    Ok(ExitCode::from(enclave.wait()? as u8))
}
