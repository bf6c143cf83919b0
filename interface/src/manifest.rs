//! The measured configuration of an image: what affects its security, fixed when it is built.
//!
//! Developers write it as `enclos.toml`; the packer encodes it (postcard) into the image's info pages, so that it is
//! part of MRENCLAVE. Inside, the runtime reads it in place: nothing is allocated, lists are newline-separated text.

use serde::{Deserialize, Serialize};

/// Version of the encoding; first field of a manifest.
pub const MANIFEST_VERSION: u32 = 3;

/// The manifest as it stands in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest<'a> {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Name of the application, for people.
    pub name: &'a str,
    /// Number of TCSs: how many threads the application may have inside at once, the first included.
    pub threads: u32,
    /// Bytes of heap (the application's anonymous memory: malloc, thread stacks).
    pub heap_bytes: u64,
    /// Bytes of the first thread's stack, taken from the heap.
    pub stack_bytes: u64,
    /// Environment variables that may be passed in: names, newline-separated. All others are dropped.
    pub env: &'a str,
    /// Variables with a measured value: `NAME=value`, newline-separated. The host cannot override them.
    pub fixed_env: &'a str,
    /// May the host pass program arguments?
    pub args: bool,
    /// Names of the host services (contracts served by the host) that may be called, newline-separated.
    pub services: &'a str,
    /// May standard output and error go to the host in plain text?
    pub stdio: bool,
    /// May standard input come from the host?
    pub stdin: bool,
    /// ISVPRODID.
    pub product_id: u16,
    /// ISVSVN, the security version.
    pub security_version: u16,
    /// Is this a debug image (ATTRIBUTES.DEBUG required)?
    pub debug: bool,
    /// Uses SGX2 dynamic memory?
    pub dynamic_memory: bool,
    /// Addresses that may be listened on: [rules](crate::network::Rule), newline-separated.
    pub listen: &'a str,
    /// Addresses that may be connected to or sent to: likewise.
    pub connect: &'a str,
    /// Signals that the host may send to the program: bit 0 is signal 1.
    pub signals: u64,
}

impl<'a> Manifest<'a> {
    /// Decodes a manifest in place. Trailing bytes are allowed (pages are padded with zeros).
    ///
    /// # Errors
    /// When the bytes do not decode or are of another version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let (manifest, _) = postcard::take_from_bytes::<Self>(bytes).map_err(|_| ManifestError::Malformed)?;
        if manifest.version != MANIFEST_VERSION {
            return Err(ManifestError::Version { found: manifest.version });
        }
        Ok(manifest)
    }

    /// Encodes into `buffer` and returns the used part.
    ///
    /// # Errors
    /// When the buffer is too small.
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], ManifestError> {
        postcard::to_slice(self, buffer).map_err(|_| ManifestError::TooLarge)
    }
}

/// The items of one of a manifest's newline-separated lists.
pub fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split('\n').filter(|s| !s.is_empty())
}

/// Why a manifest could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The bytes are not a manifest.
    #[error("the manifest does not decode: the image is damaged or of another kind; rebuild it")]
    Malformed,
    /// Another version of the encoding.
    #[error(
        "the manifest has version {found}, this build reads {MANIFEST_VERSION}: rebuild the image with the same version of enclos"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// It does not fit where it must go.
    #[error("the manifest is too large")]
    TooLarge,
}
