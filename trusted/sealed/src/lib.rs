//! The sealed file system: a tree of files, of which the host keeps ciphertext in two files.
//!
//! It is a copy-on-write tree of 4 KiB blocks (`docs/sealed-files.md` is the format and what it protects against whom).
//! Each pointer holds place, key, nonce and tag of what it leads to, so that the one root, sealed with a key of the CPU,
//! stands for every byte. A commit writes new blocks to free places, makes them durable, and then replaces the root: what
//! an earlier commit made durable is never overwritten before that.
//!
//! This crate knows nothing of enclaves: what it needs of CPU and host is the trait [`Platform`], so that tests and fuzzers
//! run it anywhere. It believes nothing that the host says: a block is what the root says it is, or an error.
//!
//! - [`Volume`]: the file system;
//! - [`format`]: what stands in blocks, written and read.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod format;
mod places;
mod roots;
#[cfg(test)]
mod tests;
mod volume;

pub use self::format::{BLOCK, Kind, MAX_NAME, MAX_SIZE, Policy};
pub use self::volume::{Listed, State, Status, Volume};

/// What a volume needs of CPU and host. Host errors are Linux error numbers.
pub trait Platform {
    /// Reads from a host file; returns how many bytes there were, less than asked for at its end.
    ///
    /// # Errors
    /// The host's; `ENOENT` where there is no such file.
    fn read(&mut self, file: HostFile, at: u64, to: &mut [u8]) -> Result<usize, i32>;

    /// Writes all of it.
    ///
    /// # Errors
    /// The host's.
    fn write(&mut self, file: HostFile, at: u64, from: &[u8]) -> Result<(), i32>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// The host's.
    fn sync(&mut self, file: HostFile) -> Result<(), i32>;

    /// Makes sure that the file can be written up to `len` bytes.
    ///
    /// # Errors
    /// The host's; `ENOSPC` when it is full.
    fn reserve(&mut self, file: HostFile, len: u64) -> Result<(), i32>;

    /// Random bytes; `false` when there are none to be had.
    fn random(&mut self, to: &mut [u8]) -> bool;

    /// Security versions of this enclave and CPU.
    fn versions(&mut self) -> Versions;

    /// The sealing key for these fields (SDM vol. 3D, 38.4 EGETKEY).
    ///
    /// # Errors
    /// When the CPU refuses.
    fn seal_key(&mut self, request: &KeyRequest) -> Result<[u8; 16], KeyError>;

    /// Is there memory for another block?
    fn has_room(&self) -> bool;

    /// Runs something that uses vector registers.
    fn with_vectors<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
}

/// The host's files of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostFile {
    /// The two roots.
    Root,
    /// All blocks.
    Blocks,
}

impl HostFile {
    /// Its name in the host's directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Blocks => "blocks",
        }
    }
}

impl core::fmt::Display for HostFile {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Security versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// ISVSVN.
    pub isv_svn: u16,
    /// CPUSVN.
    pub cpu_svn: [u8; 16],
}

/// What a sealing key depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyRequest {
    /// Who can derive it.
    pub policy: Policy,
    /// Least versions of enclave and CPU that can.
    pub versions: Versions,
    /// KEYID.
    pub key_id: [u8; 32],
}

/// Why the CPU gives no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The ISVSVN asked for is higher than the enclave's.
    NewerEnclave,
    /// The CPUSVN asked for is higher than the CPU's.
    NewerPlatform,
    /// Another error code of EGETKEY.
    Other(u64),
}

/// Why something on a volume failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is nothing of that name.
    #[error("there is nothing of that name")]
    NotFound,
    /// There is something of that name.
    #[error("there is something of that name")]
    Exists,
    /// A name on the way is not a directory's.
    #[error("not a directory")]
    NotDirectory,
    /// It is a directory.
    #[error("a directory")]
    IsDirectory,
    /// The directory is not empty.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory cannot go into itself; the root cannot go anywhere.
    #[error("not to be moved or removed like that")]
    Invalid,
    /// A name is longer than [`MAX_NAME`], empty, or has a slash or NUL.
    #[error("a name of more than {MAX_NAME} bytes, or one that cannot be a name")]
    BadName,
    /// Longer than [`MAX_SIZE`].
    #[error("files have at most {MAX_SIZE} bytes")]
    TooLarge,
    /// The host has no space left. Everything durable still is.
    #[error("the host's disk is full")]
    NoSpace,
    /// No memory left.
    #[error("no memory left for another block")]
    NoMemory,
    /// The host refused to read, write or make durable.
    #[error("the host could not {what} `{file}` (error {errno})")]
    Host {
        /// Which of its files.
        file: HostFile,
        /// What it was asked to do.
        what: &'static str,
        /// Linux error number.
        errno: i32,
    },
    /// Storing failed before, in a way that leaves unknown what the host has kept.
    #[error(
        "the host failed to store the files before; what was durable then still is: start the program again"
    )]
    Failed,
    /// A block is not what was written there.
    #[error(
        "`{file}` was altered, cut short or exchanged at byte {at}: restore the directory from a backup, whole"
    )]
    Altered {
        /// Which of the host's files.
        file: HostFile,
        /// Where.
        at: u64,
    },
    /// One of the two files is older than the other.
    #[error("`{file}` was replaced by an older version: restore the directory from a backup, whole")]
    RolledBack {
        /// Which of the host's files.
        file: HostFile,
    },
    /// One of the two files is not there.
    #[error(
        "`{file}` is missing or empty, though the other file is there: restore the directory from a backup, whole"
    )]
    Missing {
        /// Which of the host's files.
        file: HostFile,
    },
    /// No root opens.
    #[error(
        "the root does not open: it was altered, or sealed by another image or signer, for another path, or on another \
         machine"
    )]
    NotAuthentic,
    /// Sealed by a newer version of the program.
    #[error(
        "sealed by security version {sealed} of this program, this one is {own}: a newer version's files stay closed to \
         older ones; run the newer image"
    )]
    FromNewerVersion {
        /// ISVSVN of the root.
        sealed: u16,
        /// ISVSVN of the enclave.
        own: u16,
    },
    /// Sealed under newer microcode.
    #[error("sealed under a newer CPU security version than the present one: update the microcode")]
    FromNewerPlatform,
    /// Sealed under the other policy.
    #[error(
        "sealed with policy {found}, the manifest says {wanted}: keep the policy, or begin with an empty directory"
    )]
    Policy {
        /// That of the root.
        found: Policy,
        /// That of the manifest.
        wanted: Policy,
    },
    /// A format that this build does not know.
    #[error("format version {found}, this build knows {}: use a newer build", format::VERSION)]
    Version {
        /// The version found.
        found: u16,
    },
    /// What was sealed makes no sense: a bug in what sealed it.
    #[error("sealed by a faulty program: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// EGETKEY failed in another way.
    #[error("EGETKEY failed with error code {code}")]
    Key {
        /// RAX.
        code: u64,
    },
    /// The CPU gives no random numbers.
    #[error("the CPU gives no random numbers")]
    NoRandom,
}
