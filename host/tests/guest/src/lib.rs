//! The contracts between the host's tests and their enclave.

#![allow(missing_docs)]

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("refused: {0}")]
pub struct Refused(pub String);

/// What the enclave can be asked to do, good and bad.
#[enclos::interface]
pub trait Guest {
    fn nothing(&self);
    fn add(&self, a: u64, b: u64) -> u64;
    fn echo(&self, data: &[u8]) -> Vec<u8>;
    fn refuse(&self, text: &str) -> Result<u32, Refused>;
    fn panic(&self, text: &str);
    fn large(&self, len: u64) -> Vec<u8>;
    /// Waits until `count` calls of this method are inside at once.
    fn meet(&self, count: u32);
    fn sleep(&self, ms: u64);
    fn spin(&self);
    /// Waits for something that never comes.
    fn block(&self);
    fn crash(&self);
    fn exit(&self, status: i32);
    /// Asks the host, which asks the enclave, and so on.
    fn down(&self, depth: u32) -> Result<u32, String>;
    fn host_echo(&self, data: &[u8]) -> Result<Vec<u8>, String>;
    fn host_panic(&self) -> String;
    fn host_nothing(&self, times: u32) -> Result<(), String>;
    fn unlisted(&self) -> String;
    fn unserved(&self) -> String;
    fn say(&self, text: &str);
    fn seal(&self, to_signer: bool, associated: &[u8], data: &[u8]) -> Result<Vec<u8>, String>;
    fn unseal(&self, associated: &[u8], data: &[u8]) -> Result<Vec<u8>, String>;
    fn identity(&self) -> ([u8; 32], [u8; 32], u16, u16);
    fn random(&self) -> [u8; 32];
    fn attest(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, String>;
    fn is_emulated_alleged(&self) -> bool;
    /// Leaves another rounding mode in MXCSR and the x87 control word.
    fn round_otherwise(&self);
    fn pointers(&self) -> Vec<String>;
    /// Writes a file and makes it durable.
    fn keep(&self, path: &str, data: &[u8]) -> Result<(), String>;
    /// Volume, generation and digest of sealed files.
    fn sealed_state(&self, path: &str) -> Result<([u8; 16], u64, Vec<u8>), i32>;
}

#[cfg(not(feature = "other"))]
#[enclos::interface]
pub trait Second {
    fn name(&self) -> String;
}

#[cfg(feature = "other")]
#[enclos::interface]
pub trait Second {
    fn name(&self) -> Vec<String>;
}

/// What the host does for the enclave.
#[enclos::interface]
pub trait Oracle {
    fn nothing(&self);
    fn down(&self, depth: u32) -> Result<u32, String>;
    fn echo(&self, data: &[u8]) -> Vec<u8>;
    fn panic(&self, text: &str);
}

#[enclos::interface]
pub trait Unlisted {
    fn nothing(&self);
}

#[enclos::interface]
pub trait Unserved {
    fn nothing(&self);
}
