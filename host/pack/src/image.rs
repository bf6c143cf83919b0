//! An image in memory: the page stream, its signature and hints, and how they stand in an `.enclave` file.

use enclos::abi::{thread, xfrm};
use enclos::image::{FileError, FileHeader, ImageInfo};
use enclos::manifest::{Manifest, ManifestError};
use serde::{Deserialize, Serialize};
use sgx_isa::{Attributes, AttributesFlags, Miscselect, PageType, Sigstruct};

use crate::layout::{INFO_SIZE, decode_info};
use crate::sgxs::{SgxsError, Stream};
use crate::{Counts, PAGE};

/// File name extension of images.
pub const EXTENSION: &str = "enclave";

/// Longest manifest taken, in bytes.
pub(crate) const MAX_MANIFEST: u64 = 1 << 20;

/// XFRM that every image can be created with: x87, SSE and AVX state.
pub const XFRM: u64 = xfrm::BASE;

/// An image: measured, and signed or not yet.
#[derive(Clone, Debug)]
pub struct Image {
    sgxs: Vec<u8>,
    stream: Stream,
    info: ImageInfo,
    info_offset: u64,
    identity: Identity,
    manifest: Vec<u8>,
    pub(crate) sigstruct: Option<Box<Sigstruct>>,
    hints: Hints,
}

/// What the manifest says an image is, as far as the CPU must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// ISVPRODID.
    pub product_id: u16,
    /// ISVSVN.
    pub security_version: u16,
    /// Is it a debug image?
    pub debug: bool,
    /// May the enclave have AVX-512 state?
    pub avx512: bool,
}

impl Identity {
    /// ATTRIBUTES to create the enclave with, exactly but for [`optional_xfrm`](Self::optional_xfrm).
    pub fn attributes(&self) -> Attributes {
        let mut flags = AttributesFlags::MODE64BIT;
        flags.set(AttributesFlags::DEBUG, self.debug);
        Attributes { flags, xfrm: XFRM }
    }

    /// Bits of XFRM that the host may set as well, all or none of them: SIGSTRUCT.ATTRIBUTEMASK leaves them out.
    pub fn optional_xfrm(&self) -> u64 {
        if self.avx512 { xfrm::AVX512 } else { 0 }
    }

    /// MISCSELECT that the enclave needs: none. EXINFO is left to the host and the processor.
    pub fn miscselect(&self) -> Miscselect {
        Miscselect::empty()
    }
}

/// What is not measured: it makes loading faster and inspection richer. Nothing relies on it for security.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hints {
    /// Offsets of ENCLU instructions followed by a two-byte NOP.
    pub enclu_sites: Vec<u64>,
    /// Bytes of the runtime's executable pages.
    pub runtime_code: u64,
    /// Bytes of the application's executable pages as they were built.
    pub app_code: u64,
    /// What became of the application's `syscall` and `cpuid` sites.
    pub sites: Counts,
    /// Functions by offset, of debug images only: what a fault report's address means. Names are as the linker knows
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symbols: Vec<Symbol>,
}

/// A function in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Offset of its first byte from the ELRANGE base.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its name.
    pub name: String,
}

impl Hints {
    /// The function that an offset from the ELRANGE base lies in. `None` in images that are no debug images.
    pub fn symbol(&self, offset: u64) -> Option<&Symbol> {
        let after = self.symbols.partition_point(|s| s.offset <= offset);
        self.symbols[..after].iter().rev().take(8).find(|s| offset - s.offset < s.size)
    }
}

impl Image {
    /// Takes a page stream written by this crate.
    pub(crate) fn new(sgxs: Vec<u8>, hints: Hints) -> Result<Self, ImageError> {
        let stream = Stream::parse(&sgxs)?;
        let (info_offset, info) = find_info(&stream).ok_or(ImageError::NoInfo)?;
        let len = usize::try_from(info.manifest_len).unwrap_or(usize::MAX);
        let manifest = stream.read(info.manifest, len).ok_or(ImageError::NoInfo)?;
        let decoded = Manifest::decode(&manifest)?;
        let identity = Identity {
            product_id: decoded.product_id,
            security_version: decoded.security_version,
            debug: decoded.debug,
            avx512: decoded.avx512,
        };
        Ok(Self { sgxs, stream, info, info_offset, identity, manifest, sigstruct: None, hints })
    }

    /// Reads an `.enclave` file. The signature is taken as it is: see [`Image::verify`](crate::Image::verify).
    ///
    /// # Errors
    /// When the file is damaged, cut short or of another version.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        let parts = FileHeader::split(file)?;
        let hints =
            serde_json::from_slice(parts.hints).map_err(|e| ImageError::Hints { message: e.to_string() })?;
        let mut image = Self::new(parts.sgxs.to_vec(), hints)?;
        // FileHeader::split let only the right length through.
        image.sigstruct = Sigstruct::try_copy_from(parts.sigstruct).map(Box::new);
        Ok(image)
    }

    /// The contents of its `.enclave` file.
    pub fn to_file_bytes(&self) -> Vec<u8> {
        let sigstruct: &[u8] = self.sigstruct.as_deref().map_or(&[], AsRef::as_ref);
        let hints = serde_json::to_vec(&self.hints).expect("numbers and strings always encode");
        let header = FileHeader {
            sgxs_len: self.sgxs.len() as u64,
            sigstruct_len: sigstruct.len() as u64,
            hints_len: hints.len() as u64,
        };
        [&header.to_bytes()[..], &self.sgxs, sigstruct, &hints].concat()
    }

    /// MRENCLAVE.
    pub fn mrenclave(&self) -> [u8; 32] {
        self.stream.mrenclave
    }

    /// The page stream, byte for byte.
    pub fn sgxs(&self) -> &[u8] {
        &self.sgxs
    }

    /// The page stream, read.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The measured description of the layout.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Offset of the measured description.
    pub(crate) fn info_offset(&self) -> u64 {
        self.info_offset
    }

    /// Product id, security version and debug flag, from the measured manifest.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The measured manifest.
    pub fn manifest(&self) -> Manifest<'_> {
        Manifest::decode(&self.manifest).expect("it was decoded when the image was made")
    }

    /// The signature, if there is one.
    pub fn sigstruct(&self) -> Option<&Sigstruct> {
        self.sigstruct.as_deref()
    }

    /// What is known about the image besides.
    pub fn hints(&self) -> &Hints {
        &self.hints
    }
}

/// Finds the image info as the runtime does: through the first thread's data page.
fn find_info(stream: &Stream) -> Option<(u64, ImageInfo)> {
    let tcs = stream.pages.iter().find(|p| p.is(PageType::Tcs))?;
    let data = tcs.offset.checked_sub(thread::TCS - thread::DATA)?;
    let seed: [u8; 24] = stream.read(data, 24)?.try_into().ok()?;
    let info_offset =
        u64::from_le_bytes([seed[16], seed[17], seed[18], seed[19], seed[20], seed[21], seed[22], seed[23]]);
    let bytes: [u8; INFO_SIZE] = stream.read(info_offset, INFO_SIZE)?.try_into().ok()?;
    let info = decode_info(&bytes)?;
    let sound = info.enclave_size == stream.size
        && info.manifest_len <= MAX_MANIFEST
        && info.threads >= 1
        && info.app % PAGE == 0
        && info.app <= info.app_end
        && info.app_end <= info.thread_area;
    sound.then_some((info_offset, info))
}

/// Why a file is not a usable image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file's outer structure.
    #[error(transparent)]
    File(#[from] FileError),
    /// The page stream.
    #[error(transparent)]
    Sgxs(#[from] SgxsError),
    /// The description of the layout is missing or contradicts the pages.
    #[error("the image has no sound description of itself: it is damaged, or was not built by enclos")]
    NoInfo,
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The hints.
    #[error("the image's hints do not decode ({message}): copy or build the image again")]
    Hints {
        /// What is wrong.
        message: String,
    },
}
