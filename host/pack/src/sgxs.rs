//! SGXS, the published SGX stream format: a sequence of the blocks that ECREATE, EADD and EEXTEND feed into the
//! measurement (SDM vol. 3D, 39.1), each EEXTEND followed by its data. The SHA-256 of the stream is MRENCLAVE.
//!
//! A page that is added without being measured by content has its EADD block only; this writer leaves out its data,
//! which is all zero. Streams of others may carry such data in UNMEASRD blocks: the reader takes them.

use rsa::sha2::{Digest, Sha256};
use sgx_isa::{MEAS_EADD, MEAS_ECREATE, MEAS_EEXTEND, PageType, SecinfoFlags};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes measured by one EEXTEND.
const CHUNK: usize = 256;
/// Bytes of a block without its data.
const BLOCK: usize = 64;
/// Tag of a block with contents that are loaded and not measured: "UNMEASRD".
const MEAS_UNMEASURED: u64 = u64::from_le_bytes(*b"UNMEASRD");
/// Tag of a stream whose size is filled in later: "UNSIZED".
const MEAS_UNSIZED: u64 = u64::from_le_bytes(*b"UNSIZED\0");

/// Writes a stream in memory. Pages must be added in ascending order.
#[derive(Debug)]
pub(crate) struct Writer {
    stream: Vec<u8>,
}

impl Writer {
    /// Begins a stream for an enclave of `size` bytes (a power of two) and SSA frames of `ssa_frame_size` pages.
    pub(crate) fn new(size: u64, ssa_frame_size: u32) -> Self {
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&MEAS_ECREATE.to_le_bytes());
        block[8..12].copy_from_slice(&ssa_frame_size.to_le_bytes());
        block[12..20].copy_from_slice(&size.to_le_bytes());
        Self { stream: block.to_vec() }
    }

    /// Adds pages measured by content; `data` is a whole number of pages.
    pub(crate) fn measured(&mut self, offset: u64, flags: SecinfoFlags, data: &[u8]) {
        debug_assert_eq!(data.len() % PAGE, 0);
        self.stream.reserve(data.len() / PAGE * (BLOCK + PAGE / CHUNK * (BLOCK + CHUNK)));
        for (page, at) in data.chunks_exact(PAGE).zip((offset..).step_by(PAGE)) {
            self.block(MEAS_EADD, at, flags.bits());
            for (chunk, at) in page.chunks_exact(CHUNK).zip((at..).step_by(CHUNK)) {
                self.block(MEAS_EEXTEND, at, 0);
                self.stream.extend_from_slice(chunk);
            }
        }
    }

    /// Adds `count` zero pages whose place and permissions are measured, and whose contents are not.
    pub(crate) fn unmeasured(&mut self, offset: u64, flags: SecinfoFlags, count: u64) {
        for i in 0..count {
            self.block(MEAS_EADD, offset + i * PAGE as u64, flags.bits());
        }
    }

    /// The finished stream.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.stream
    }

    fn block(&mut self, tag: u64, offset: u64, flags: u64) {
        let mut block = [0; BLOCK];
        block[..8].copy_from_slice(&tag.to_le_bytes());
        block[8..16].copy_from_slice(&offset.to_le_bytes());
        block[16..24].copy_from_slice(&flags.to_le_bytes());
        self.stream.extend_from_slice(&block);
    }
}

/// A stream read and checked.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Size of ELRANGE in bytes, a power of two.
    pub size: u64,
    /// Pages of one SSA frame.
    pub ssa_frame_size: u32,
    /// The pages, ascending.
    pub pages: Vec<Page>,
    /// SHA-256 of the measured blocks: MRENCLAVE.
    pub mrenclave: [u8; 32],
}

/// One page of a stream.
#[derive(Clone, Debug)]
pub struct Page {
    /// Offset from the ELRANGE base.
    pub offset: u64,
    /// Permissions and type.
    pub flags: SecinfoFlags,
    /// Which of the sixteen chunks are measured, bit 0 for the first.
    pub measured: u16,
    /// Contents; `None` when the stream gives none: zeros.
    pub data: Option<Box<[u8; PAGE]>>,
}

impl Page {
    /// Is this a page of the given type?
    pub fn is(&self, kind: PageType) -> bool {
        self.flags.page_type() == kind as u8
    }
}

impl Stream {
    /// Reads a stream and recomputes its measurement.
    ///
    /// # Errors
    /// When it is cut short, has unknown blocks, or is not canonical: ECREATE first and once, pages ascending and
    /// inside the enclave, chunks inside the page before them and each once.
    pub fn parse(bytes: &[u8]) -> Result<Self, SgxsError> {
        let mut hash = Sha256::new();
        let (head, mut rest) = split_block(bytes, 0)?;
        match word(head, 0) {
            MEAS_ECREATE => {}
            MEAS_UNSIZED => return Err(SgxsError::Unsized),
            tag => return Err(SgxsError::Block { at: 0, tag }),
        }
        hash.update(head);
        let ssa_frame_size = word(head, 8) as u32;
        let size = word(head, 12);
        if !size.is_power_of_two() || size < 2 * PAGE as u64 {
            return Err(SgxsError::Size { size });
        }
        let mut pages: Vec<Page> = Vec::new();
        while !rest.is_empty() {
            let at = (bytes.len() - rest.len()) as u64;
            let (block, after) = split_block(rest, at)?;
            let (tag, offset) = (word(block, 0), word(block, 8));
            match tag {
                MEAS_EADD => {
                    let last = pages.last().map(|p| p.offset);
                    if !offset.is_multiple_of(PAGE as u64)
                        || offset >= size
                        || last.is_some_and(|l| l >= offset)
                    {
                        return Err(SgxsError::Order { at, offset });
                    }
                    hash.update(block);
                    let flags = SecinfoFlags::from_bits(word(block, 16)).ok_or(SgxsError::Flags { at })?;
                    pages.push(Page { offset, flags, measured: 0, data: None });
                    rest = after;
                }
                MEAS_EEXTEND | MEAS_UNMEASURED => {
                    let (data, after) =
                        after.split_first_chunk::<CHUNK>().ok_or(SgxsError::Truncated { at })?;
                    let page = pages.last_mut().ok_or(SgxsError::Order { at, offset })?;
                    let within = offset
                        .checked_sub(page.offset)
                        .filter(|o| *o < PAGE as u64 && o.is_multiple_of(CHUNK as u64))
                        .ok_or(SgxsError::Order { at, offset })? as usize;
                    page.data.get_or_insert_with(|| Box::new([0; PAGE]))[within..within + CHUNK]
                        .copy_from_slice(data);
                    if tag == MEAS_EEXTEND {
                        let bit = 1 << (within / CHUNK);
                        if page.measured & bit != 0 {
                            return Err(SgxsError::Order { at, offset });
                        }
                        page.measured |= bit;
                        hash.update(&rest[..BLOCK + CHUNK]);
                    }
                    rest = after;
                }
                _ => return Err(SgxsError::Block { at, tag }),
            }
        }
        Ok(Self { size, ssa_frame_size, pages, mrenclave: hash.finalize().into() })
    }

    /// Copies out `len` bytes at an offset; pages without contents read as zeros. `None` when a page is missing.
    pub fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        offset.checked_add(len as u64).filter(|end| *end <= self.size)?;
        let mut out = Vec::new();
        let mut index = self.pages.partition_point(|p| p.offset + PAGE as u64 <= offset);
        while out.len() < len {
            let page = self.pages.get(index)?;
            let at = offset + out.len() as u64;
            let within = usize::try_from(at.checked_sub(page.offset)?).ok().filter(|w| *w < PAGE)?;
            let take = (PAGE - within).min(len - out.len());
            match &page.data {
                Some(data) => out.extend_from_slice(&data[within..within + take]),
                None => out.resize(out.len() + take, 0),
            }
            index += 1;
        }
        Some(out)
    }
}

/// Why a stream is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SgxsError {
    /// It ends inside a block.
    #[error("the page stream is cut short in the block at byte {at}: copy or build the image again")]
    Truncated {
        /// Where the block begins.
        at: u64,
    },
    /// A block of an unknown kind.
    #[error("the page stream has an unknown block {tag:#018x} at byte {at}: the file is damaged or not SGXS")]
    Block {
        /// Where.
        at: u64,
        /// Its tag.
        tag: u64,
    },
    /// The enclave's size is left open.
    #[error("the page stream is of the unsized kind: give it a size first (sgxs-append)")]
    Unsized,
    /// The enclave's size is not a power of two of at least two pages.
    #[error("the enclave's size {size:#x} is not a power of two of at least 8192: the file is damaged")]
    Size {
        /// The size found.
        size: u64,
    },
    /// A page or chunk where it may not be.
    #[error("the page stream has offset {offset:#x} out of order at byte {at}: the file is damaged")]
    Order {
        /// Where.
        at: u64,
        /// The offset.
        offset: u64,
    },
    /// Flags that do not exist.
    #[error("the page stream has unknown page flags at byte {at}: the file is damaged")]
    Flags {
        /// Where.
        at: u64,
    },
}

fn split_block(bytes: &[u8], at: u64) -> Result<(&[u8; BLOCK], &[u8]), SgxsError> {
    bytes.split_first_chunk().ok_or(SgxsError::Truncated { at })
}

fn word(block: &[u8; BLOCK], at: usize) -> u64 {
    let mut w = [0; 8];
    w.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(w)
}
