//! What crosses the boundary between host and enclave. Both halves are compiled against this crate.

use serde::{Deserialize, Serialize};

/// Calls into the enclave. `enclos` makes a typed client and a server of it.
#[enclos::interface]
pub trait Greeter {
    /// Greets someone by name.
    fn greet(&self, name: &str) -> Result<String, GreetError>;

    /// Seals a note: only this signer's images, on this machine, can read it.
    fn seal_note(&self, note: &str) -> Result<Vec<u8>, GreetError>;

    /// Reads a sealed note.
    fn read_note(&self, sealed: &[u8]) -> Result<String, GreetError>;
}

/// What the enclave asks of the host. It is listed in `enclos.toml`, and its answers are not to be trusted.
#[enclos::interface]
pub trait Clock {
    /// Hours since midnight.
    fn hour(&self) -> u32;
}

/// Why the enclave refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum GreetError {
    #[error("a name is needed")]
    NoName,
    #[error("the host's clock is not usable: {0}")]
    Clock(String),
    #[error("{0}")]
    Sealing(String),
}
