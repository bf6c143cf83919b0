//! What stands in blocks: roots, inodes, pointers, directory entries. Numbers are little-endian.
//!
//! Readers take any bytes: roots come from the host, and the rest is only as sound as what sealed it.

use alloc::vec::Vec;

use crate::{Error, KeyRequest, Versions};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Longest name in bytes, as in Linux.
pub const MAX_NAME: usize = 255;
/// Largest file in bytes.
pub const MAX_SIZE: u64 = 1 << 40;
/// Version of the format.
pub const VERSION: u16 = 1;
/// Bytes of a root, at the beginning of its block.
pub const ROOT: usize = 512;
/// Bytes of a root that are not encrypted but authenticated.
pub const ROOT_HEADER: usize = 80;
/// Bytes of a root that are encrypted.
pub const ROOT_BODY: usize = 112;
/// Bytes of an authentication tag.
pub const TAG: usize = 16;
/// Bytes of an inode.
pub const INODE: usize = 64;
/// Inodes of a block.
pub const INODES: u32 = (BLOCK / INODE) as u32;
/// Bytes of a pointer.
pub const POINTER: usize = 40;
/// Pointers of a block.
pub const FANOUT: u64 = (BLOCK / POINTER) as u64;
/// Highest tree: `FANOUT` to that power is more blocks than `MAX_SIZE` has.
pub const MAX_HEIGHT: u8 = 5;

const MAGIC: [u8; 8] = *b"ENCLROOT";

/// Who can open a volume: KEYREQUEST.KEYPOLICY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Policy {
    /// This very image (MRENCLAVE).
    Image = 1,
    /// Images of the same signer and product (MRSIGNER) of at least the security version that wrote last.
    Signer = 2,
}

impl core::fmt::Display for Policy {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Signer => "signer",
        })
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A file.
    File = 1,
    /// A directory.
    Directory = 2,
}

impl Kind {
    fn read(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::File),
            2 => Some(Self::Directory),
            _ => None,
        }
    }
}

/// The part of a root that is not encrypted: what the key is derived from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootHeader {
    /// Fields of the key.
    pub key: KeyRequest,
    /// Nonce of the encryption.
    pub nonce: [u8; 12],
}

impl RootHeader {
    /// As it stands at the beginning of a root.
    pub fn to_bytes(&self) -> [u8; ROOT_HEADER] {
        let mut b = [0; ROOT_HEADER];
        b[..8].copy_from_slice(&MAGIC);
        b[8..10].copy_from_slice(&VERSION.to_le_bytes());
        b[10..12].copy_from_slice(&(self.key.policy as u16).to_le_bytes());
        b[12..14].copy_from_slice(&self.key.versions.isv_svn.to_le_bytes());
        b[16..32].copy_from_slice(&self.key.versions.cpu_svn);
        b[32..64].copy_from_slice(&self.key.key_id);
        b[64..76].copy_from_slice(&self.nonce);
        b
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::NotAuthentic`].
    pub fn from_bytes(b: &[u8; ROOT_HEADER]) -> Result<Self, Error> {
        if b[..8] != MAGIC {
            return Err(Error::NotAuthentic);
        }
        let version = u16::from_le_bytes([b[8], b[9]]);
        if version != VERSION {
            return Err(Error::Version { found: version });
        }
        let policy = match u16::from_le_bytes([b[10], b[11]]) {
            1 => Policy::Image,
            2 => Policy::Signer,
            _ => return Err(Error::NotAuthentic),
        };
        if b[14..16] != [0; 2] || b[76..] != [0; 4] {
            return Err(Error::NotAuthentic);
        }
        let versions = Versions { isv_svn: u16::from_le_bytes([b[12], b[13]]), cpu_svn: array(&b[16..32]) };
        let key = KeyRequest { policy, versions, key_id: array(&b[32..64]) };
        Ok(Self { key, nonce: array(&b[64..76]) })
    }
}

/// The encrypted part of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootBody {
    /// Random, fixed when the volume was made.
    pub volume: [u8; 16],
    /// Commits so far.
    pub generation: u64,
    /// Blocks that the host has set aside; block 0 is the root's witness.
    pub blocks: u32,
    /// The file of all inodes.
    pub inodes: Inode,
}

impl RootBody {
    /// As it is encrypted.
    pub fn to_bytes(&self) -> [u8; ROOT_BODY] {
        let mut b = [0; ROOT_BODY];
        b[..16].copy_from_slice(&self.volume);
        b[16..24].copy_from_slice(&self.generation.to_le_bytes());
        b[24..28].copy_from_slice(&self.blocks.to_le_bytes());
        b[48..].copy_from_slice(&self.inodes.to_bytes());
        b
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(b: &[u8; ROOT_BODY]) -> Result<Self, Error> {
        let what = "the root does not say where the inodes are";
        let inodes = Inode::from_bytes(&array(&b[48..]))?.ok_or(Error::Malformed { what })?;
        if inodes.size % INODE as u64 != 0 || inodes.size / INODE as u64 > u64::from(u32::MAX) {
            return Err(Error::Malformed { what });
        }
        Ok(Self { volume: array(&b[..16]), generation: u64_at(b, 16), blocks: u32_at(b, 24), inodes })
    }
}

/// Where a block is and what it must be.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Pointer {
    /// Number of the block in the host's file; 0: a block of zeros that is nowhere.
    pub block: u32,
    /// The nonce: eight zero bytes and this number.
    pub counter: u32,
    /// AES-128-GCM key.
    pub key: [u8; 16],
    /// Its tag.
    pub tag: [u8; TAG],
}

impl core::fmt::Debug for Pointer {
    /// Without the key.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Pointer").field("block", &self.block).finish_non_exhaustive()
    }
}

impl Pointer {
    /// The nonce.
    pub fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[8..].copy_from_slice(&self.counter.to_le_bytes());
        nonce
    }

    /// Is there no block?
    pub fn is_hole(&self) -> bool {
        self.block == 0
    }

    /// As it stands in blocks.
    pub fn to_bytes(&self) -> [u8; POINTER] {
        let mut b = [0; POINTER];
        b[..4].copy_from_slice(&self.block.to_le_bytes());
        b[4..8].copy_from_slice(&self.counter.to_le_bytes());
        b[8..24].copy_from_slice(&self.key);
        b[24..].copy_from_slice(&self.tag);
        b
    }

    /// Reads one; every value is one.
    pub fn from_bytes(b: &[u8; POINTER]) -> Self {
        Self { block: u32_at(b, 0), counter: u32_at(b, 4), key: array(&b[8..24]), tag: array(&b[24..]) }
    }

    /// One of a block's.
    pub fn at(block: &[u8; BLOCK], index: u64) -> Self {
        let at = (index % FANOUT) as usize * POINTER;
        Self::from_bytes(&array(&block[at..at + POINTER]))
    }

    /// Writes it to its place in a block.
    pub fn put(&self, block: &mut [u8; BLOCK], index: u64) {
        let at = (index % FANOUT) as usize * POINTER;
        block[at..at + POINTER].copy_from_slice(&self.to_bytes());
    }
}

/// A file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// Has it a name? One that has none goes when nobody has it open.
    pub is_linked: bool,
    /// Levels of pointers between the pointer below and the contents.
    pub height: u8,
    /// Permission bits.
    pub permissions: u16,
    /// Bytes of the contents.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub modified: u64,
    /// The top of its tree.
    pub top: Pointer,
}

impl Inode {
    /// An empty one.
    pub fn new(kind: Kind, permissions: u16, modified: u64) -> Self {
        Self { kind, is_linked: true, height: 0, permissions, size: 0, modified, top: Pointer::default() }
    }

    /// As it stands in blocks. All zeros: there is none.
    pub fn to_bytes(&self) -> [u8; INODE] {
        let mut b = [0; INODE];
        b[0] = self.kind as u8;
        b[1] = u8::from(self.is_linked);
        b[2] = self.height;
        b[4..6].copy_from_slice(&self.permissions.to_le_bytes());
        b[8..16].copy_from_slice(&self.size.to_le_bytes());
        b[16..24].copy_from_slice(&self.modified.to_le_bytes());
        b[24..].copy_from_slice(&self.top.to_bytes());
        b
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(b: &[u8; INODE]) -> Result<Option<Self>, Error> {
        if b[0] == 0 {
            return Ok(None);
        }
        let wrong = Error::Malformed { what: "an inode that makes no sense" };
        let inode = Self {
            kind: Kind::read(b[0]).ok_or(wrong.clone())?,
            is_linked: b[1] == 1,
            height: b[2],
            permissions: u16::from_le_bytes([b[4], b[5]]),
            size: u64_at(b, 8),
            modified: u64_at(b, 16),
            top: Pointer::from_bytes(&array(&b[24..])),
        };
        let blocks = inode.size.div_ceil(BLOCK as u64);
        let sound = b[1] <= 1
            && inode.permissions <= 0o7777
            && inode.height <= MAX_HEIGHT
            && inode.size <= MAX_SIZE
            && blocks <= reach(inode.height);
        if sound { Ok(Some(inode)) } else { Err(wrong) }
    }
}

/// Blocks of contents that a tree of this height has room for.
pub fn reach(height: u8) -> u64 {
    FANOUT.pow(u32::from(height))
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Number of its inode.
    pub inode: u32,
    /// What that is.
    pub kind: Kind,
}

/// Bytes of an entry without its name.
pub const ENTRY: usize = 6;

/// The entries of a directory's block, up to the first whose length is 0.
///
/// # Errors
/// [`Error::Malformed`].
pub fn entries(block: &[u8; BLOCK]) -> Result<Vec<DirectoryEntry>, Error> {
    let wrong = || Error::Malformed { what: "a directory entry that makes no sense" };
    let (mut all, mut rest) = (Vec::new(), &block[..]);
    while let Some((head, after)) = rest.split_first_chunk::<ENTRY>() {
        let len = usize::from(head[0]);
        if len == 0 {
            break;
        }
        let (name, after) = after.split_at_checked(len).ok_or_else(wrong)?;
        let kind = Kind::read(head[1]).ok_or_else(wrong)?;
        if !is_name(name) {
            return Err(wrong());
        }
        all.push(DirectoryEntry { name: name.to_vec(), inode: u32_at(head, 2), kind });
        rest = after;
    }
    Ok(all)
}

/// Writes entries into a block; `false` when they do not fit.
pub fn put_entries<'a>(
    block: &mut [u8; BLOCK],
    entries: impl Iterator<Item = (&'a [u8], u32, Kind)>,
) -> bool {
    block.fill(0);
    let mut at = 0;
    for (name, inode, kind) in entries {
        let end = at + ENTRY + name.len();
        if end > BLOCK || !is_name(name) {
            return false;
        }
        block[at] = name.len() as u8;
        block[at + 1] = kind as u8;
        block[at + 2..at + ENTRY].copy_from_slice(&inode.to_le_bytes());
        block[at + ENTRY..end].copy_from_slice(name);
        at = end;
    }
    true
}

/// Can these bytes be a name?
pub fn is_name(name: &[u8]) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut a = [0; N];
    a.copy_from_slice(bytes);
    a
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(&b[at..at + 4]))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(&b[at..at + 8]))
}
