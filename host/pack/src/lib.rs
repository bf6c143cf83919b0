//! Build time: lay out, rewrite, measure and sign an image; inspect one.
//!
//! [`pack`] makes an [`Image`] of a runtime, an application and a [`Config`]; [`Image::sign`] signs it,
//! [`Image::to_file_bytes`] is the `.enclave` file. The same inputs give the same MRENCLAVE wherever and whenever.
#![forbid(unsafe_code)]

pub mod build;
pub mod config;
mod elf;
pub mod image;
pub mod inspect;
mod layout;
pub mod oci;
mod rewrite;
pub mod sgxs;
pub mod sign;

pub use build::{BuildError, Progress, build_application, compile_host};
pub use config::{Config, ConfigError};
pub use elf::ElfError;
pub use image::{Image, ImageError};
pub use inspect::{Inspection, inspect};
pub use layout::{PackError, PackInput, pack};
pub use rewrite::{Counts, Forms, RewriteError};
pub use sign::{Date, SignError, SigningKey, VerifyingKey};

/// The runtime that goes into every image: an ELF file. It was built together with this crate.
pub fn runtime() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/enclos-runtime"))
}

/// Size of a page in bytes.
const PAGE: u64 = enclos::abi::PAGE_SIZE;
