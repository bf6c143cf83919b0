//! `enclos-attestation-service CONFIG.toml`: what `enclos attestation-service` does, for images that carry nothing else.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: enclos-attestation-service CONFIG.toml");
        return ExitCode::from(2);
    };
    match enclos_attestation_service::serve_file(&PathBuf::from(path), "info") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
