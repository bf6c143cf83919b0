//! The measured configuration of an image: what affects its security, fixed when it is built.
//!
//! Developers write it as `enclos.toml`; the packer encodes it (postcard) into the image's info pages, so that it is
//! part of MRENCLAVE. Inside, the runtime reads it in place: nothing is allocated, lists are newline-separated text.

use serde::{Deserialize, Serialize};

/// Version of the encoding; first field of a manifest.
pub const MANIFEST_VERSION: u32 = 4;

/// The manifest as it stands in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest<'a> {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Name of the application, for people.
    pub name: &'a str,
    /// How many threads the application may have inside at once, the first included.
    pub threads: u32,
    /// Most bytes of heap (the application's anonymous memory: malloc, thread stacks).
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
    /// Do heap and threads grow on demand (SGX2)? Else all of both is part of the image.
    pub dynamic_memory: bool,
    /// Addresses that may be listened on: [rules](crate::network::Rule), newline-separated.
    pub listen: &'a str,
    /// Addresses that may be connected to or sent to: likewise.
    pub connect: &'a str,
    /// Directories of the host and where they are seen: [mounts](Mount), newline-separated.
    pub mounts: &'a str,
    /// Signals that the host may send to the program: bit 0 is signal 1.
    pub signals: u64,
    /// May it use AVX-512 where the platform has it? Then the host may create the enclave with or without that state.
    pub avx512: bool,
}

/// A directory of the host that programs inside see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Where: an absolute path without `.`, `..`, doubled or trailing slashes.
    pub path: &'a str,
    /// What is in it.
    pub kind: MountKind,
}

/// What a mounted directory has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Sealed files, for this very image.
    SealedImage,
    /// Sealed files, for images of this signer and product.
    SealedSigner,
    /// The host's own files, to be read. Untrusted.
    HostReadOnly,
    /// The host's own files. Untrusted.
    HostWritable,
}

impl MountKind {
    const WORDS: [(&'static str, Self); 4] = [
        ("sealed-image", Self::SealedImage),
        ("sealed-signer", Self::SealedSigner),
        ("host-read-only", Self::HostReadOnly),
        ("host-writable", Self::HostWritable),
    ];

    /// As it stands in a manifest.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, k)| *k == self).map_or("", |(word, _)| word)
    }

    /// Is it sealed?
    pub fn is_sealed(self) -> bool {
        matches!(self, Self::SealedImage | Self::SealedSigner)
    }
}

impl<'a> Mount<'a> {
    /// Longest path in bytes.
    pub const MAX_PATH: usize = 1024;

    /// Reads an item of [`Manifest::mounts`]: kind, a space, path. `None`: it is none.
    pub fn parse(item: &'a str) -> Option<Self> {
        let (word, path) = item.split_once(' ')?;
        let (_, kind) = MountKind::WORDS.iter().find(|(w, _)| *w == word)?;
        Self::is_path(path).then_some(Self { path, kind: *kind })
    }

    /// Can something be mounted at this path?
    pub fn is_path(path: &str) -> bool {
        let sound = |name: &str| {
            (1..=255).contains(&name.len()) && name != "." && name != ".." && !name.contains(char::is_control)
        };
        path.len() <= Self::MAX_PATH && path.strip_prefix('/').is_some_and(|p| p.split('/').all(sound))
    }
}

impl core::fmt::Display for Mount<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {}", self.kind.word(), self.path)
    }
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
