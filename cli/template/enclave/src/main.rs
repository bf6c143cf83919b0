//! The trusted half: an ordinary Rust program, measured as a whole. Whatever comes from the host is checked here.

use enclos_enclave::{HostTransport, Policy};
use {{ident}}_contract::{ClockClient, GreetError, Greeter, GreeterServer};

fn main() -> Result<(), enclos_enclave::ServeError> {
    enclos_enclave::serve(GreeterServer::new(Inside))
}

struct Inside;

/// Ties sealed notes to their purpose.
const NOTE: &[u8] = b"{{name}} note";

impl Greeter for Inside {
    fn greet(&self, name: &str) -> Result<String, GreetError> {
        if name.is_empty() {
            return Err(GreetError::NoName);
        }
        let clock: ClockClient<HostTransport> =
            enclos_enclave::host().map_err(|e| GreetError::Clock(e.to_string()))?;
        let hour = clock.hour().map_err(|e| GreetError::Clock(e.to_string()))?;
        let greeting = match hour {
            5..12 => "Good morning",
            12..18 => "Good afternoon",
            0..24 => "Good evening",
            _ => return Err(GreetError::Clock(format!("a day has no hour {hour}"))),
        };
        Ok(format!("{greeting}, {name}, from inside the enclave"))
    }

    fn seal_note(&self, note: &str) -> Result<Vec<u8>, GreetError> {
        enclos_enclave::seal(Policy::Signer, NOTE, note.as_bytes()).map_err(|e| GreetError::Sealing(e.to_string()))
    }

    fn read_note(&self, sealed: &[u8]) -> Result<String, GreetError> {
        let note = enclos_enclave::unseal(NOTE, sealed).map_err(|e| GreetError::Sealing(e.to_string()))?;
        String::from_utf8(note).map_err(|e| GreetError::Sealing(e.to_string()))
    }
}
