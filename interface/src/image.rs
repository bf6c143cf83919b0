//! The measured layout of an image's address space, and the `.enclave` file that carries it.
//!
//! # Address space (offsets from the ELRANGE base)
//! ```text
//! 0            runtime ELF (starts at offset 0)
//! info         ImageInfo, manifest, trap table              read-only
//! app          application ELF, then its rewriting stubs
//! threads      one region of abi::thread::STRIDE bytes a thread
//! heap         zero pages, not measured by content: cleared inside before use
//! ```
//! Of an image with dynamic memory (SGX2) only the first thread's region and the end of the heap are there from the
//! start; the rest of both is address space that the runtime fills on demand.
//!
//! # File
//! A [`FileHeader`], then the SGXS stream, the SIGSTRUCT (1,808 bytes, absent in an unsigned image) and the hints: JSON
//! that makes loading faster and `enclos inspect` richer. Hints are not measured; nothing relies on them for
//! security, and a loader checks those it uses against the measured bytes.

use crate::abi::PAGE_SIZE;

/// The measured description of an image that the runtime starts from. Native-endian (x86-64), at the start of the
/// info pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ImageInfo {
    /// [`INFO_MAGIC`].
    pub magic: u64,
    /// [`crate::abi::ABI_VERSION`] the image was packed for.
    pub abi_version: u32,
    /// Number of thread regions.
    pub threads: u32,
    /// Size of ELRANGE, a power of two.
    pub enclave_size: u64,
    /// Offset of the manifest.
    pub manifest: u64,
    /// Its length in bytes.
    pub manifest_len: u64,
    /// Offset of the application: its ELF's address 0.
    pub app: u64,
    /// Offset just after its last page.
    pub app_end: u64,
    /// Offset of its entry point.
    pub app_entry: u64,
    /// Offset of its program headers.
    pub app_phdr: u64,
    /// Their number.
    pub app_phnum: u64,
    /// Offset of the first thread region.
    pub thread_area: u64,
    /// Offset of the heap.
    pub heap: u64,
    /// Its size in bytes; of an image with dynamic memory the most it can grow to.
    pub heap_size: u64,
    /// Offset of the trap table: sorted array of [`TrapSite`]s.
    pub traps: u64,
    /// Number of entries.
    pub trap_count: u64,
    /// Offset of the application's `.eh_frame_hdr`, 0 if none. For symbolised fault reports later.
    pub app_eh_frame_hdr: u64,
    /// Bytes at the end of the heap that are part of the image: all of it, unless memory is dynamic.
    pub heap_present: u64,
    /// Thread regions that are part of the image, from the first on: all of them, unless memory is dynamic.
    pub threads_present: u64,
}

/// Bytes of the heap that an image with dynamic memory has from the start, at its end: what the runtime needs to know
/// of each page of `heap_size` bytes (a bit and a byte), and 256 KiB to begin with. All of a small heap.
pub const fn dynamic_heap_present(heap_size: u64) -> u64 {
    let pages = heap_size / PAGE_SIZE;
    let tables = pages.div_ceil(8).next_multiple_of(PAGE_SIZE) + pages.next_multiple_of(PAGE_SIZE);
    let present = tables + (256 << 10);
    if present < heap_size { present } else { heap_size }
}

/// First field of [`ImageInfo`]: "ENCLOSI1".
pub const INFO_MAGIC: u64 = u64::from_le_bytes(*b"ENCLOSI1");

/// An instruction that the packer replaced by UD2 (0F 0B) because it could not be rewritten into a jump, and because
/// executing it inside does not fault under every platform. The runtime's exception handler does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TrapSite {
    /// Offset of the instruction from the ELRANGE base.
    pub offset: u64,
    /// What stood there: [`TRAP_CPUID`].
    pub kind: u64,
}

/// [`TrapSite::kind`]: CPUID.
pub const TRAP_CPUID: u64 = 1;

/// First bytes of an `.enclave` file.
pub const FILE_MAGIC: [u8; 8] = *b"ENCLAVE\x01";

/// Size of a SIGSTRUCT in bytes (SDM vol. 3D, 34.14).
pub const SIGSTRUCT_SIZE: u64 = 1808;

/// The head of an `.enclave` file: what follows it, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Length of the SGXS stream in bytes.
    pub sgxs_len: u64,
    /// Length of the SIGSTRUCT: 0 or [`SIGSTRUCT_SIZE`].
    pub sigstruct_len: u64,
    /// Length of the hints in bytes.
    pub hints_len: u64,
}

impl FileHeader {
    /// Encoded size in bytes.
    pub const SIZE: usize = 32;

    /// The encoded header.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[..8].copy_from_slice(&FILE_MAGIC);
        for (i, v) in [self.sgxs_len, self.sigstruct_len, self.hints_len].into_iter().enumerate() {
            out[8 + i * 8..16 + i * 8].copy_from_slice(&v.to_le_bytes());
        }
        out
    }

    /// Splits a file into SGXS stream, SIGSTRUCT (empty when unsigned) and hints.
    ///
    /// # Errors
    /// When the magic or a length is wrong: the file is not an image, is of another version, was cut short or has
    /// something after its end.
    pub fn split(file: &[u8]) -> Result<Parts<'_>, FileError> {
        let (head, mut rest) = file.split_first_chunk::<{ Self::SIZE }>().ok_or(FileError::NotAnImage)?;
        if head[..8] != FILE_MAGIC {
            return Err(FileError::NotAnImage);
        }
        let word = |i: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&head[8 + i * 8..16 + i * 8]);
            u64::from_le_bytes(w)
        };
        let mut take = |what: &'static str, len: u64| {
            let at = usize::try_from(len).ok().filter(|l| *l <= rest.len());
            let at = at.ok_or(FileError::Truncated { what, need: len, have: rest.len() as u64 })?;
            let (part, after) = rest.split_at(at);
            rest = after;
            Ok(part)
        };
        let sgxs = take("SGXS stream", word(0))?;
        if word(1) != 0 && word(1) != SIGSTRUCT_SIZE {
            return Err(FileError::SigstructLength { found: word(1) });
        }
        let sigstruct = take("SIGSTRUCT", word(1))?;
        let hints = take("hints", word(2))?;
        if !rest.is_empty() {
            return Err(FileError::TrailingBytes { count: rest.len() as u64 });
        }
        Ok(Parts { sgxs, sigstruct, hints })
    }
}

/// The parts of an `.enclave` file.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The SGXS stream: what MRENCLAVE is the SHA-256 of.
    pub sgxs: &'a [u8],
    /// The SIGSTRUCT, or empty.
    pub sigstruct: &'a [u8],
    /// Hints, JSON.
    pub hints: &'a [u8],
}

/// Why a file is not a usable `.enclave` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// No magic.
    #[error("not an .enclave file (or of another version): build one with `enclos build`")]
    NotAnImage,
    /// Shorter than its header says.
    #[error(
        "the file is cut short in its {what}: {need} bytes expected, {have} left; copy or build it again"
    )]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Expected bytes.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// Neither unsigned nor of a SIGSTRUCT's size.
    #[error("the signature structure has {found} bytes instead of {SIGSTRUCT_SIZE}: the file is damaged")]
    SigstructLength {
        /// Length found.
        found: u64,
    },
    /// Longer than its header says.
    #[error("{count} bytes follow the end of the image: the file is damaged")]
    TrailingBytes {
        /// How many.
        count: u64,
    },
}
