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
    /// Listens there for as long as the enclave lives.
    fn listen(&self, address: &str) -> Result<(), String>;
    /// Volume, generation and digest of sealed files.
    fn sealed_state(&self, path: &str) -> Result<([u8; 16], u64, Vec<u8>), i32>;
    fn processor(&self) -> Processor;
    /// Fills ZMM0 to ZMM31 and the mask registers, computes for so many rounds, makes the Linux call, and says which
    /// registers have other values then: bit 0 is ZMM0, bit 32 is K0. And the result of the call.
    fn keep_vectors(&self, rounds: u64, call: Call) -> Result<(u64, i64), String>;
    /// The sum of products, by AVX-512; `None` where it is not there.
    fn dot(&self, a: &[i32], b: &[i32]) -> Option<i64>;
    /// What a file has in it.
    fn contents(&self, path: &str) -> Result<Vec<u8>, String>;
}

/// What the processor is like inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// XFRM, from a report.
    pub xfrm: u64,
    /// What the standard library finds.
    pub avx512f: bool,
    pub avx2: bool,
    /// CPUID leaf 0DH: XCR0, and bytes of an XSAVE area.
    pub components: u32,
    pub area: u32,
    /// The end of the last component of AVX-512 by its subleaves.
    pub end: u32,
    /// AMX, AVX10, PKU in leaf 7.
    pub more_state: bool,
    /// Does the auxiliary vector say that a signal handler's frame is larger than such an area?
    pub large_frames: bool,
}

/// A Linux call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// None at all.
    None,
    /// One that waits in the host.
    Nanosleep,
    /// One that the runtime answers.
    Getpid,
    /// One that sends this thread a signal, whose handler changes all of these registers.
    Tgkill,
    /// One that encrypts: of data that was written to this file.
    Fsync(String),
    /// One that brings so much new memory.
    Mmap(u64),
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
